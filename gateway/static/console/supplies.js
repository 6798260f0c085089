// What is to come to a row and what of it can be promised by which day; who waits for it.

import { change, get } from "./api.js";
import { ask } from "./dialogs.js";
import { badge, count, h, replace, table } from "./dom.js";
import { stateBadge } from "./history.js";

const MAX_SHOWN = 100;

const supplyPath = (path, supply) => `${path}/supplies/${encodeURIComponent(supply)}`;

export function drawSupplies(section, row, { path, mayChange }) {
  const { supplies = [], available_to_promise: promise = [] } = row;
  section.hidden = supplies.length === 0 && !row.late;
  if (section.hidden) return;
  const columns = ["Supply", "Expected on", ":Units", ...(mayChange ? [""] : [])];
  replace(section, h("h2", {}, "To come"),
    row.late > 0 && h("p", {}, badge("bad", `${count(row.late)} late`), " Their days cannot be kept as it is."),
    supplies.length > 0 && h("div", { class: "columns" },
      table("Supplies", columns, supplies.map(({ supply, expected_on: day, quantity }) => [
        supply, day, count(quantity),
        ...(mayChange ? [h("button", { type: "button", onclick: () => cancel(path, supply) }, "Cancel")] : []),
      ])),
      table("Available to promise", ["Can be promised by", ":Units"], promise.map(({ by, quantity }) => [by, count(quantity)]))));
}

function told({ late_count: late = 0 }) {
  return late ? `: ${count(late)} reservation${late === 1 ? "" : "s"} cannot be served by the day promised` : "";
}

function cancel(path, supply) {
  ask({
    title: `Cancel ${supply}`, action: "Cancel the supply", danger: true,
    explain: "Nothing more comes with it. No promise is taken back; those whose day cannot be kept are told.",
    submit: async () => `${supply} is cancelled${told(await change("DELETE", supplyPath(path, supply)))}`,
  });
}

export function expectSupply(context, { location, sku }) {
  const path = `${context.base}/locations/${encodeURIComponent(location)}/stock/${encodeURIComponent(sku)}`;
  ask({
    title: `Expect units of ${sku}`, action: "Save",
    explain: "Units that are still to come. Say it again under the same name when the day or the quantity changes.",
    fields: [{ name: "supply", label: "Supply", required: true, hint: "Your name for it, such as a purchase order." },
      { name: "expected_on", label: "Expected on", type: "date", required: true },
      { name: "quantity", label: "Units still to come", type: "number", required: true, min: 1 }],
    submit: async ({ supply, ...values }) =>
      `${supply} is expected on ${values.expected_on}${told(await change("PUT", supplyPath(path, supply), values))}`,
  });
}

// Who waits, in the order in which they are served.
export async function drawWaiting(section, row, { path, context, isAlive }) {
  if (!row.backordered) {
    section.hidden = true;
    return;
  }
  const { data, has_more: more } = await get(`${path}/waiting`, { limit: MAX_SHOWN });
  if (!isAlive()) return;
  section.hidden = data.length === 0;
  const dated = data.some((one) => one.promised_by);
  replace(section, h("h2", {}, "Who waits"),
    table("Reservations in their order", ["Reservation", "State", ":Units", ...(dated ? ["Promised by", "Expected on"] : [])], data.map((one) => [
      h("a", { class: "id", href: context.address("reservations", one.reservation) }, one.order_ref || one.reservation),
      stateBadge(one.state), count(one.units),
      ...(dated ? [one.promised_by ?? "–", one.promised_by === one.expected_on ? one.expected_on ?? "–"
        : h("span", {}, badge("bad", "late"), ` ${one.expected_on ?? "nobody can say"}`)] : []),
    ])),
    more && h("p", { class: "note" }, `The first ${MAX_SHOWN}, in the order in which they are served.`));
}
