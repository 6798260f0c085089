// On what terms a row's units are promised: what is set, how it is used up, and setting it anew.

import { Problem, change, get } from "./api.js";
import { ask } from "./dialogs.js";
import { count, h, replace, table, tile } from "./dom.js";

const SPANS = [["604800", "weeks"], ["86400", "days"], ["3600", "hours"], ["60", "minutes"], ["1", "seconds"]];
const SCOPES = [["location", "at this location"], ["merchant", "over all locations"]];
const MAX_ATTEMPTS = 5;

// The greatest unit that says it in whole numbers, and how many of them.
function windowOf(seconds) {
  const [length, name] = SPANS.find(([one]) => seconds % Number(one) === 0);
  return { length, name, many: seconds / Number(length) };
}

function windowText(seconds) {
  const { name, many } = windowOf(seconds);
  return many === 1 ? `a ${name.slice(0, -1)}`.replace("a hour", "an hour") : `${count(many)} ${name}`;
}

// Terms as a request has them, in one form: what is not set is not there, nor is what pools hold.
function asked(terms) {
  const channels = Object.entries(terms?.channels ?? {}).filter(([, pool]) => pool.cap !== null || pool.minimum > 0)
    .sort(([a], [b]) => (a < b ? -1 : 1)).map(([name, { cap, minimum }]) => [name, { cap, minimum }]);
  return {
    ...(terms?.backorder_limit ? { backorder_limit: terms.backorder_limit } : {}),
    ...(channels.length ? { channels: Object.fromEntries(channels) } : {}),
    ...(terms?.buyer_cap ? { buyer_cap: {
      units: terms.buyer_cap.units, window_seconds: terms.buyer_cap.window_seconds,
      ...(terms.buyer_cap.scope === "merchant" ? { scope: "merchant" } : {}),
    } } : {}),
  };
}

const same = (one, other) => JSON.stringify(one) === JSON.stringify(other);

export function drawTerms(section, row) {
  const owed = row.backordered ?? 0;
  const limit = row.terms?.backorder_limit ?? 0;
  const pools = Object.entries(row.terms?.channels ?? {});
  const cap = row.terms?.buyer_cap;
  // What is promised of supplies does not count for the limit.
  const expects = row.supplies?.length > 0 || row.late > 0;
  const backorders = limit > 0 || (owed > 0 && !expects);
  section.hidden = !row.terms || !(backorders || cap || pools.length > 0);
  if (section.hidden) return;
  replace(section, h("h2", {}, "Terms"),
    (backorders || cap) && h("dl", { class: "tiles" },
      backorders && (expects ? tile("Backorder limit", count(limit), { id: "backorder_limit", note: `${count(row.backorder_available)} more before they come` })
        : tile("Backordered", `${count(owed)} of ${count(limit)}`, {
          id: "backordered", kind: owed > limit ? "warn" : "",
          note: owed > limit ? "more than the limit allows now" : `${count(limit - owed)} more before they come`,
        })),
      cap && tile("A buyer may have", count(cap.units), {
        id: "buyer_cap",
        note: `promised, or picked within ${windowText(cap.window_seconds)}${cap.scope === "merchant" ? ", over all locations" : ""}`,
      })),
    pools.length > 0 && table("Pools of channels", ["Channel", ":Held", ":Cap", ":Minimum"], pools.map(([name, pool]) => [
      name, count(pool.held), pool.cap === null ? "none" : count(pool.cap), pool.minimum ? count(pool.minimum) : "none",
    ])));
}

export function editTerms(context, { location, sku, row }) {
  const path = `${context.base}/locations/${encodeURIComponent(location)}/stock/${encodeURIComponent(sku)}`;
  const before = asked(row.terms);
  const cap = before.buyer_cap && { ...before.buyer_cap, ...windowOf(before.buyer_cap.window_seconds) };
  const pools = poolEditor(before.channels ?? {});
  ask({
    title: `Terms of ${sku}`, action: "Save",
    explain: "What is left empty does not apply. No promise that was made is taken back.",
    fields: [
      { name: "backorder_limit", label: "Backorder limit", type: "number", min: 0, value: String(before.backorder_limit ?? ""), hint: "Units that may be promised before they come." },
      { name: "cap_units", label: "Cap a buyer", type: "number", min: 1, value: String(cap?.units ?? ""), hint: "Units that one buyer may have, promised or picked within the time below." },
      { name: "cap_many", label: "Within", type: "number", min: 1, value: String(cap?.many ?? 1) },
      { name: "cap_length", label: "Unit of time", options: SPANS, value: cap?.length ?? "86400" },
      { name: "cap_scope", label: "The cap counts", options: SCOPES, value: cap?.scope ?? "location" },
      { name: "channels", ...pools }],
    submit: async (values) => {
      const terms = asked({
        backorder_limit: values.backorder_limit,
        channels: values.channels,
        buyer_cap: values.cap_units === null ? null
          : {
            units: values.cap_units, window_seconds: (values.cap_many ?? 1) * Number(values.cap_length),
            scope: values.cap_scope,
          },
      });
      await save(path, before, terms);
      return `Saved the terms of ${sku}`;
    },
  });
}

// Sales go on and each is a new version, and none of them is about the terms: what would be
// overwritten unseen is what somebody else has made of the terms since they were read.
async function save(path, before, terms) {
  for (let attempt = 1; ; attempt += 1) {
    const now = await get(path, { consistency: "strong" });
    if (!same(asked(now.terms), before)) {
      throw new Error("Somebody else changed the terms meanwhile, and nothing was saved. Cancel, look at what they are now, and change them anew.");
    }
    try {
      return await change("PUT", `${path}/terms`, terms, { headers: { "if-match": `"${now.version}"` } });
    } catch (error) {
      if (!(error instanceof Problem) || error.status !== 412 || attempt === MAX_ATTEMPTS) throw error;
    }
  }
}

// A line for each pool, and one more for a new one.
function poolEditor(channels) {
  const lines = h("div", {});
  const labelled = (label, props) => h("label", {}, label, h("input", { autocomplete: "off", ...props }));
  const number = (label, value) => labelled(label, { type: "number", min: 0, step: 1, inputmode: "numeric", value: value ?? "" });

  function add(name = "", pool = {}) {
    const line = h("div", { class: "pool" },
      labelled("Channel", { value: name }), number("Cap", pool.cap), number("Minimum", pool.minimum || null),
      h("button", { type: "button", class: "quiet small", onclick: () => line.remove() }, "Remove"));
    lines.append(line);
    return line;
  }
  for (const [name, pool] of Object.entries(channels)) add(name, pool);
  const element = h("fieldset", { class: "pools" }, h("legend", {}, "Pools of channels"), lines,
    h("button", { type: "button", class: "small", onclick: () => add().querySelector("input").focus() }, "Add a channel"),
    h("p", { class: "note" }, "At most the cap at once; the minimum is kept for the channel."));

  function read() {
    const found = new Map();
    for (const line of lines.children) {
      const [name, cap, minimum] = [...line.querySelectorAll("input")].map((input) => input.value.trim());
      if (!name && !cap && !minimum) continue;
      if (!name) throw new Error("A pool has no channel: name it, or remove the line.");
      if (!cap && !Number(minimum)) throw new Error(`${name} has neither a cap nor a minimum: say one, or remove the line.`);
      if (found.has(name)) throw new Error(`${name} is there twice: remove one of the lines.`);
      found.set(name, { cap: cap === "" ? null : Number(cap), minimum: Number(minimum || 0) });
    }
    return Object.fromEntries(found);
  }
  return { element, read };
}
