// What the running audit last found; plans, repairs and blast radii are jobs of the background process.

import { change, get } from "./api.js";
import { ask, problemBox } from "./dialogs.js";
import { ago, badge, count, empty, h, replace, signed, table, tile, when } from "./dom.js";
import * as stream from "./stream.js";

const POLL_MS = 5_000;
const JOB_POLL_MS = 1_000;
const STATES = { queued: "", running: "warn", done: "good", failed: "bad" };
const NAMES = { repair_plan: "Plan of a repair", repair_apply: "Repair", import_blast_radius: "Blast radius" };
const KINDS = { critical: "bad", warning: "warn", notice: "" };
const BAD_IMPORT = /--without (import:\S+) --merchant (\S+)/;

// Names are anything; a shell takes them in quotes.
const quoted = (name) => /^[\w:.@/-]+$/.test(name) ? name : `'${name.replaceAll("'", "'\\''")}'`;
const command = (text) => h("pre", { tabindex: "0" }, h("code", {}, text));

export async function open(root, context) {
  let alive = true;
  const seen = h("div", {});
  const work = h("div", {});
  replace(root, h("div", { class: "title-bar" }, h("h1", {}, "Audit")), seen, work);

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
    const imports = [...new Map(findings.map((one) => BAD_IMPORT.exec(one.remedy)).filter(Boolean)
      .map((match) => [match[1] + match[2], match])).values()];
    const oldest = partitions.map((one) => one.at).sort()[0];
    replace(seen,
      h("section", { class: "card" }, h("dl", { class: "tiles" },
        tile("Findings", count(total), { id: "findings", kind: total ? "bad" : "" }),
        tile("Partitions audited", count(partitions.length)),
        tile("Rows", count(partitions.reduce((sum, one) => sum + one.rows, 0))),
        tile("Reservations", count(partitions.reduce((sum, one) => sum + one.reservations, 0))),
        tile("Oldest look", oldest ? ago(oldest) : "not yet"))),
      h("section", { class: "card" }, h("h2", {}, "Last findings"), findings.length === 0
        ? empty(data.length ? "The store agrees with its ledger" : "The first round is not done yet", data.length ? "Every row, reservation, index and record was compared." : "The background process audits all the time.")
        : table("Last findings", ["Severity", "What", "About", "Detail", "To do"], findings.map((one) => [
          badge(KINDS[one.severity] ?? "", one.severity), one.code.replaceAll("_", " "), about(one), one.detail, one.remedy]))));
    wrong.hidden = imports.length === 0;
    wrong.textContent = imports.length ? `An import looks wrong: ${imports.map(([, name]) => name).join(", ")}.` : "";
    if (imports.length && !without.value) [, without.value, merchant.value] = imports[0];
  }

  function about(one) {
    if (one.sku) return `${one.sku} at ${one.location} (${one.merchant})${one.reservation ? `, ${one.reservation}` : ""}`;
    return one.reservation || one.location || "the store";
  }

  // Jobs: the background process does them, and this page waits and shows what came of each.

  const wrong = h("p", { class: "note" });
  const without = h("input", { id: "without", name: "without", required: true, autocomplete: "off", placeholder: "import:ID" });
  const merchant = h("input", { id: "without-merchant", name: "merchant", autocomplete: "off", value: context.merchant });
  const repair = h("div", { class: "told", "aria-live": "polite" });
  const blast = h("div", { class: "told", "aria-live": "polite" });
  const timers = new Set();

  async function start(box, body) {
    try {
      await follow(box, await change("POST", "/v1/audit/jobs", body));
    } catch (error) {
      replace(box, problemBox(error));
    }
  }

  async function follow(box, asked) {
    let job = asked;
    while (alive && (job.state === "queued" || job.state === "running")) {
      replace(box, h("p", {}, badge(STATES[job.state], job.state), ` ${NAMES[job.kind]}, asked for ${ago(job.queued_at)}`));
      await new Promise((resolve) => timers.add(setTimeout(resolve, JOB_POLL_MS)));
      job = await get(`/v1/audit/jobs/${job.id}`);
    }
    if (alive) replace(box, shown(job));
  }

  function shown(job) {
    const head = h("p", {}, badge(STATES[job.state], job.state), ` ${NAMES[job.kind]}, `, when(job.ended_at), ` (${job.id})`);
    if (job.state === "failed") return [head, h("div", { class: "problem", role: "alert" }, h("p", {}, job.problem))];
    if (job.blast) return [head, blastOf(job)];
    // A result is gone some time after its job.
    return job.repair ? [head, job.kind === "repair_plan" ? planOf(job) : appliedOf(job)] : [head];
  }

  const stepsOf = (name, steps, more) => steps.length > 0 && [table(name, ["Step", "About", "For", "What it does", ...more], steps.map((one) => [
    one.type, about(one), one.finding.replaceAll("_", " "), one.why,
    ...(more.length ? [h("span", {}, one.verdict, one.detail && ` (${one.detail})`)] : [])]))];

  function planOf(job) {
    const { findings, steps, shown: some, appliable } = job.repair;
    return [h("p", {}, steps === 0 ? "There is nothing that entries in the ledger would put right." : `${count(findings)} findings; ${count(steps)} steps would put right what can be${steps > some.length ? `, the first ${count(some.length)} of them:` : "."}`),
      stepsOf("Steps of the plan", some, []),
      steps > 0 && (appliable ? h("button", { type: "button", class: "danger", onclick: () => confirm(job) }, "Apply this plan")
        : [h("p", {}, "That is more than the page applies. Whoever may reach the store does it with:"), command("holdfast repair --apply --reason \"what you know of it\"")])];
  }

  function confirm(job) {
    ask({ title: "Apply the plan", danger: true, typed: "repair", action: "Apply",
      explain: `${count(job.repair.steps)} steps, each an operation in the ledger. One whose subject changed since the plan is left alone.`,
      fields: [{ name: "reason", label: "Reason", required: true, hint: "What you know of it: it stays in the ledger." }],
      submit: async ({ reason }) => {
        const asked = await change("POST", "/v1/audit/jobs", { kind: "repair_apply", plan: job.id, reason });
        follow(repair, asked).catch((error) => replace(repair, problemBox(error)));
        return "The repair is asked for";
      } });
  }

  function appliedOf(job) {
    const told = Object.entries(job.repair.by_verdict).map(([verdict, number]) => `${count(number)} ${verdict}`).join(", ");
    return [h("p", {}, `${count(job.repair.steps)} steps: ${told}.`, job.repair.by_verdict.stale > 0 && " What is stale changed since the plan: plan again."),
      stepsOf("Steps of the repair", job.repair.shown, ["Came to"])];
  }

  function blastOf(job) {
    const it = job.blast;
    return [h("dl", { class: "tiles" }, tile("Operations", count(it.operations)), tile("Rows that would change", count(it.rows_differing)),
      tile("Units given", signed(it.units_added)), tile("Units taken", signed(-it.units_taken)), it.units_to_come !== 0 && tile("To come", signed(it.units_to_come), { note: "with supplies" }),
      tile("Promised on it", count(it.unfounded), { note: "reservations" }), tile("Left without units", count(it.endangered), { kind: it.endangered ? "bad" : "", note: "open reservations" })),
    it.shown.length > 0 && table("Left without units", ["Reservation", "State", "Order", "About", ":Missing"], it.shown.map((one) => [
      h("span", { class: "id" }, one.reservation), one.state, one.order_ref || "–", `${one.sku} at ${one.location} (${one.merchant})`, count(one.missing)])),
    it.rows_differing > 0 && [h("p", {}, "Undoing it is done beside the store:"),
      command(`holdfast rebuild --without ${quoted(job.without)}${job.merchant ? ` --merchant ${quoted(job.merchant)}` : ""} --reason "what you know of it"`)]];
  }

  if (context.can("admin")) {
    replace(work,
      h("section", { class: "card" }, h("h2", {}, "Plan and apply a repair"),
        h("p", {}, "The plan audits from the newest snapshots, and changes nothing. What is applied is exactly the plan that you have seen."),
        h("div", { class: "actions" }, h("button", { type: "button", class: "primary", onclick: () => start(repair, { kind: "repair_plan" }) }, "Plan a repair")),
        repair),
      h("section", { class: "card" }, h("h2", {}, "Blast radius of a bad import"), wrong,
        h("form", { class: "tools", onsubmit: (event) => {
          event.preventDefault();
          start(blast, { kind: "import_blast_radius", without: without.value.trim(), merchant: merchant.value.trim() });
        } },
        h("div", {}, h("label", { for: "without" }, "Import, reference or actor "), without),
        h("div", {}, h("label", { for: "without-merchant" }, "Merchant "), merchant),
        h("button", { type: "submit" }, "See what undoing would change")), blast));
    const { data: jobs } = await get("/v1/audit/jobs");
    for (const [box, kinds] of [[repair, ["repair_plan", "repair_apply"]], [blast, ["import_blast_radius"]]]) {
      const last = jobs.find((one) => kinds.includes(one.kind));
      if (last) get(`/v1/audit/jobs/${last.id}`).then((job) => follow(box, job)).catch((error) => replace(box, problemBox(error)));
    }
  } else {
    replace(work, h("section", { class: "card" }, h("h2", {}, "Plan and apply a repair"), h("p", {}, "That takes an admin key of the whole platform, or:"),
      command("holdfast audit\nholdfast repair --plan\nholdfast repair --apply --reason \"what you know of it\"")));
  }
  await read();
  const timer = setInterval(() => { if (!document.hidden) read().catch(() => context.polled(false)); }, POLL_MS);
  return { close() { alive = false; clearInterval(timer); timers.forEach(clearTimeout); } };
}
