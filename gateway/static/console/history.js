// Ledger entries as people read them, and a row's levels over time made of them.

import { ago, badge, count, h, signed, when } from "./dom.js";

const WORDS = {
  reserve: "Reserved", confirm: "Confirmed", extend: "Extended", commit: "Committed", release: "Released",
  expire: "Expired", amend: "Amended", decide: "Substitutes decided", fill: "Backorder filled", configure: "Settings", terms: "Terms", feed: "Event of a till or supplier", shortfall: "Shortfall",
  supply: "To come", slip: "Late",
  offline: "Tills silent", repair: "Repair", rebuild: "Rebuilt",
};
const MOVED = {
  receive: "Received", return: "Returned", sale: "Sold", transfer_in: "Transferred in", transfer_out: "Transferred out",
  adjust: "Adjusted", count: "Counted", receipt: "Received", adjustment: "Adjusted", heartbeat: "Heartbeat",
};

export function title(entry) {
  return MOVED[entry.details.type] ?? WORDS[entry.kind] ?? entry.kind;
}

const UNITS = ["on_hand", "reserved", "backordered", "safety_stock", "deficit", "offline_buffer"];

function changes(row) {
  const said = UNITS.filter((name) => row.changes[name]).map((name) => `${name.replaceAll("_", " ")} ${signed(row.changes[name])}`);
  return said.join(", ") || "no units";
}

// What entries say that move no units.
const SAID = {
  supply: (details) => (details.quantity ? `${details.supply}: ${count(details.quantity)} on ${details.expected_on}` : `${details.supply}: nothing more`),
  slip: ({ units, promised: [{ by: day }], expected_on: expected }) => (expected === day ? `${count(units)} in time again, by ${day}`
    : `${count(units)} promised by ${day}, ${expected ? `expected on ${expected}` : "nobody can say when"}`),
};

// One entry that can be expanded; `showSku` where the page is not about one row.
export function entryItem(entry, { showSku = false } = {}) {
  const { details } = entry;
  const more = [
    ["When", when(entry.at)], ["By", entry.actor], ["Operation", entry.id], ["Location", entry.location],
    ["Ledger", `partition ${entry.partition}, sequence ${entry.sequence}`],
    ...Object.entries(details).map(([name, value]) => [name.replaceAll("_", " "),
      typeof value === "object" ? JSON.stringify(value) : String(value)]),
  ];
  return h("li", { class: `entry entry-${entry.kind}` }, h("details", {},
    h("summary", {},
      h("span", { class: "entry-title" }, title(entry)),
      h("span", { class: "entry-what" }, SAID[entry.kind]?.(details) || entry.rows.map((row) => `${showSku ? `${row.sku}: ` : ""}${changes(row)}`).join("; ")
        || details.reason || details.how || ""),
      h("span", { class: "entry-who" }, entry.actor),
      h("span", { class: "entry-when" }, when(entry.at))),
    h("dl", { class: "facts" }, more.map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)])),
    entry.rows.map((row) => h("p", { class: "note" },
      `${row.sku} after it: ${count(row.on_hand)} on hand, ${count(row.reserved)} reserved, ${count(row.available)} available, version ${row.version}`))));
}

// The levels of one row from its entries, the newest first; the point before the first is known too.
export function points(entries, from) {
  const found = [];
  for (const entry of [...entries].reverse()) {
    const row = entry.rows[0];
    if (row === undefined) continue;
    if (found.length === 0) {
      const before = { on_hand: row.on_hand - row.changes.on_hand, reserved: row.reserved - row.changes.reserved };
      const kept = row.safety_stock - row.changes.safety_stock;
      if (row.version > 1) {
        found.push({ at: from, ...before, available: Math.max(0, before.on_hand - before.reserved - kept) });
      }
    }
    found.push({ at: Date.parse(entry.at), on_hand: row.on_hand, reserved: row.reserved, available: row.available });
  }
  return found;
}

export function stateBadge(state) {
  const kinds = { placing: "warn", held: "warn", confirmed: "good", failed: "bad" };
  return badge(kinds[state] ?? "quiet", state);
}

export { ago };
