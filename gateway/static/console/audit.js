// What the running audit last found, and the commands that plan and apply what puts it right.

import { get } from "./api.js";
import { ago, badge, count, empty, h, replace, table, tile } from "./dom.js";
import * as stream from "./stream.js";

const POLL_MS = 5_000;
const KINDS = { critical: "bad", warning: "warn", notice: "" };
const BAD_IMPORT = /--without (import:\S+) --merchant (\S+)/;

const command = (text) => h("pre", { tabindex: "0" }, h("code", {}, text));

export async function open(root, context) {
  let alive = true;
  async function read() {
    const { data } = await get("/v1/audit");
    if (!alive) return;
    context.polled(true);
    stream.paint(() => { if (alive) draw(data); });
  }

  function draw(data) {
    const findings = data.flatMap((one) => one.findings.map((found) => ({ ...found, at: one.at })));
    const partitions = data.filter((one) => one.partition >= 0);
    const total = data.reduce((sum, one) => sum + Object.values(one.by_severity).reduce((a, b) => a + b, 0), 0);
    const repairable = findings.some((one) => one.repairable);
    const imports = [...new Map(findings.map((one) => BAD_IMPORT.exec(one.remedy)).filter(Boolean)
      .map((match) => [match[1] + match[2], match])).values()];
    const oldest = partitions.map((one) => one.at).sort()[0];
    replace(root, h("div", { class: "title-bar" }, h("h1", {}, "Audit")),
      h("section", { class: "card" }, h("dl", { class: "tiles" },
        tile("Findings", count(total), { id: "findings", kind: total ? "bad" : "" }),
        tile("Partitions audited", count(partitions.length)),
        tile("Rows", count(partitions.reduce((sum, one) => sum + one.rows, 0))),
        tile("Reservations", count(partitions.reduce((sum, one) => sum + one.reservations, 0))),
        tile("Oldest look", oldest ? ago(oldest) : "not yet"))),
      h("section", { class: "card" }, h("h2", {}, "Last findings"), findings.length === 0
        ? empty(data.length ? "The store agrees with its ledger" : "The first round is not done yet", data.length ? "Every row, reservation, index and record was compared." : "The background process audits all the time.")
        : table("Last findings", ["Severity", "What", "About", "Detail", "To do"], findings.map((one) => [
          badge(KINDS[one.severity] ?? "", one.severity), one.code.replaceAll("_", " "), about(one), one.detail, one.remedy]))),
      h("section", { class: "card" }, h("h2", {}, "Plan and apply a repair"),
        h("p", {}, repairable ? "Some of it can be repaired by entries in the ledger. Plan first: it changes nothing."
          : findings.length ? "None of it can be repaired by entries in the ledger." : "Nothing to repair was found. Should there be something, plan first: it changes nothing."),
        h("p", { class: "note" }, "A repair runs beside the store and not from this page, so that whoever does it is who may reach the store."),
        command("holdfast audit\nholdfast repair --plan\nholdfast repair --apply --reason \"what you know of it\"")),
      h("section", { class: "card" }, h("h2", {}, "Blast radius of a bad import"),
        imports.length === 0 ? h("p", {}, "No import looks wrong. To see what undoing one would change, before it changes anything:")
          : h("p", {}, "An import looks wrong. What undoing it would change, before it changes anything:"),
        (imports.length ? imports : [[null, "import:ID", context.merchant]]).map(([, name, merchant]) =>
          command(`holdfast rebuild --without ${name} --merchant ${merchant} --plan`))));
  }

  function about(one) {
    if (one.sku) return `${one.sku} at ${one.location} (${one.merchant})`;
    return one.reservation || one.location || "the store";
  }

  await read();
  const timer = setInterval(() => { if (!document.hidden) read().catch(() => context.polled(false)); }, POLL_MS);
  return { close() { alive = false; clearInterval(timer); } };
}
