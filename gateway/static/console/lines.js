// Lines of a reservation as people read them: what they stand for, what of them is still to come and
// whose day cannot be kept; and the substitutes that somebody has to accept.

import { change, newKey } from "./api.js";
import { ask } from "./dialogs.js";
import { badge, count, h, table } from "./dom.js";

export const linesText = (lines) => lines.map((line) => `${count(line.quantity)} × ${line.sku}`).join(", ");

const kitOf = (one) => (one.kind === "kit" ? "part of " : "for ");

// What units of a line are held for, empty where it is their own SKU.
export function standsForText(line) {
  return (line.stands_for ?? []).map((one) => `${count(one.units)} ${kitOf(one)}${count(one.quantity)} × ${one.sku}`).join(", ");
}

export const isLate = (line) => line.promised_by !== undefined && line.expected_on !== line.promised_by;

// What has not come of a line and by when it was promised, null where all is there.
export function toCome(line) {
  if (!line.backordered) return null;
  const day = line.promised_by ? `, promised by ${line.promised_by}` : "";
  return h("span", {}, `${count(line.backordered)} not here yet${day}`,
    isLate(line) && [" ", badge("bad", "late"), line.expected_on ? ` expected on ${line.expected_on}` : " nobody can say when"]);
}

// The lines of an order's part, one below the other.
export function lineList(lines) {
  return h("ul", {}, lines.map((line) => h("li", {}, linesText([line]),
    line.picked !== null && line.picked !== line.quantity && `, ${count(line.picked)} picked`,
    standsForText(line) && h("span", { class: "note" }, ` (${standsForText(line)})`),
    line.backordered && h("div", { class: "note" }, toCome(line)))));
}

// What a list says beside the state of reservations, or of an order's parts.
export function lineBadges(held) {
  const lines = held.flatMap((one) => one.lines);
  return [held.some((one) => one.proposed?.length) && [" ", badge("warn", "to accept")],
    lines.some(isLate) ? [" ", badge("bad", "late")] : lines.some((line) => line.backordered) && [" ", badge("", "backordered")]];
}

// What is proposed, a row a SKU that was asked for. `held` are reservations or parts, and `asked` the
// lines that were asked for, where that is known; `path` takes the decisions, `declined` says what it
// means to decline, and `done(answer)` what became of it.
export function proposals({ held, asked = [], path, mayDecide, declined, done }) {
  const skus = [...new Set(held.flatMap((one) => one.proposed ?? []))];
  if (skus.length === 0) return null;
  const decide = (verb, some) => askDecision({ verb, skus: some, path, declined, done });
  const columns = ["Asked for", "Proposed instead", ...(mayDecide ? ["Decision"] : [])];
  return h("section", { class: "card" },
    h("div", { class: "title-bar" }, h("h2", {}, "Substitutes to accept"),
      mayDecide && skus.length > 1 && h("div", { class: "actions" },
        h("button", { type: "button", class: "primary", onclick: () => decide("accept", skus) }, "Accept all"),
        h("button", { type: "button", class: "danger", onclick: () => decide("decline", skus) }, "Decline all"))),
    h("p", {}, "Some of what was asked for has run short. Until somebody decides, nothing can be confirmed or committed; the units are on hold meanwhile."),
    table("Substitutes to accept", columns, skus.map((sku) => [unitsOf(asked, sku), proposedFor(held, sku),
      ...(mayDecide ? [h("div", { class: "actions" },
        h("button", { type: "button", "aria-label": `Accept substitutes for ${sku}`, onclick: () => decide("accept", [sku]) }, "Accept"),
        h("button", { type: "button", "aria-label": `Decline substitutes for ${sku}`, onclick: () => decide("decline", [sku]) }, "Decline"))] : [])])));
}

function unitsOf(lines, sku) {
  const units = lines.reduce((sum, line) => sum + (line.sku === sku ? line.quantity : 0), 0);
  return units ? linesText([{ sku, quantity: units }]) : sku;
}

function proposedFor(held, sku) {
  const found = held.filter((one) => one.proposed?.includes(sku)).flatMap((one) => one.lines.flatMap((line) =>
    (line.stands_for ?? []).filter((other) => other.sku === sku && other.kind !== "kit").map((other) =>
      `${count(other.units)} × ${line.sku} for ${count(other.quantity)} × ${sku}, at ${one.location}`)));
  return h("ul", {}, found.map((text) => h("li", {}, text)));
}

function askDecision({ verb, skus, path, declined, done }) {
  const accepts = verb === "accept";
  // One for the dialog: who sends it again decides nothing that was proposed since.
  const key = newKey();
  const action = accepts ? "Accept the substitutes" : "Decline the substitutes";
  ask({ title: `${action} for ${skus.join(", ")}`, action, danger: !accepts, typed: accepts ? undefined : "decline",
    explain: accepts ? "Whoever asked has agreed to what stands for it. It can be confirmed then." : declined,
    submit: async () => done(await change("POST", `${path}/${verb}`, { skus }, { key })) });
}
