// What staff do at a shelf: each is a movement or a setting, and is in the ledger with its actor.

import { change, get } from "./api.js";
import { ask } from "./dialogs.js";
import { count, h } from "./dom.js";
import { expectSupply } from "./supplies.js";
import { editTerms } from "./terms.js";

const whole = (value) => `${count(value)} unit${value === 1 ? "" : "s"}`;

function shelf(context, location) {
  return `${context.base}/locations/${encodeURIComponent(location)}`;
}

const move = (context, location, body) => change("POST", `${shelf(context, location)}/movements`, body);

const skuField = (sku) => ({ name: "sku", label: "SKU", required: true, value: sku });

function receive(context, { location, sku, row }) {
  const expected = row?.supplies ?? [];
  ask({
    title: "Receive a delivery", action: "Receive",
    fields: [skuField(sku), { name: "quantity", label: "Units", type: "number", required: true, min: 1 },
      ...(expected.length ? [{ name: "supply", label: "Supply", hint: "What was expected, so that it is not counted twice.",
        options: [["", "none of these"], ...expected.map((one) => [one.supply, `${one.supply}, ${one.expected_on}`])] }] : []),
      { name: "reference", label: "Reference", hint: "The delivery note or order, if there is one." }],
    submit: async ({ supply, ...values }) => {
      const booked = await move(context, location, { type: "receive", ...values, ...(supply ? { supply } : {}) });
      return `Received ${whole(values.quantity)} of ${values.sku}: ${count(booked.stock.on_hand)} on hand`;
    },
  });
}

function adjust(context, { location, sku }) {
  ask({
    title: "Adjust the books", action: "Adjust",
    fields: [skuField(sku),
      { name: "quantity", label: "Change in units", type: "number", required: true, hint: "Negative where there are fewer than the books say." },
      { name: "reason", label: "Reason", required: true, hint: "Damaged, lost, found: it stays in the ledger." }],
    submit: async (values) => {
      const booked = await move(context, location, { type: "adjust", ...values });
      return `Adjusted ${values.sku}: ${count(booked.stock.on_hand)} on hand`;
    },
  });
}

function countShelf(context, { location, sku }) {
  ask({
    title: "Count the shelf", action: "Book the count",
    explain: "Count all units that are there, reserved ones too.",
    fields: [skuField(sku), { name: "quantity", label: "Units counted", type: "number", required: true, min: 0 },
      { name: "reference", label: "Reference", hint: "The count sheet, if there is one." }],
    submit: async (values) => {
      const booked = await move(context, location, { type: "count", ...values });
      const by = booked.on_hand_change;
      return `Counted ${values.sku}: ${by === 0 ? "as the books said" : `${whole(Math.abs(by))} ${by > 0 ? "more" : "fewer"} than the books said`}`;
    },
  });
}

function safetyStock(context, { location, sku, row }) {
  ask({
    title: "Safety stock and low threshold", action: "Save",
    fields: [
      { name: "safety_stock", label: "Safety stock", type: "number", required: true, min: 0, value: String(row.safety_stock), hint: "Units that are never promised." },
      { name: "low_stock_threshold", label: "Low at or below", type: "number", required: true, min: 0, value: String(row.low_stock_threshold ?? 0), hint: "Available units; 0 is no threshold." }],
    submit: async (values) => {
      const path = `${shelf(context, location)}/stock/${encodeURIComponent(sku)}`;
      // The version just before: sales go on, and none of them is about the settings.
      const { version } = await get(path, { consistency: "strong" });
      await change("PATCH", `${path}/settings`, values, { headers: { "if-match": `"${version}"` } });
      return `Saved the settings of ${sku}`;
    },
  });
}

// The buttons that the role may press; `row()` is the row as it is now, where there is one.
export function actionButtons(context, { location, sku = "", row = null }) {
  const button = (label, run, kind = "") => h("button", {
    type: "button", class: kind, onclick: () => run(context, { location, sku, row: row?.() }),
  }, label);
  return h("div", { class: "actions" },
    context.can("feed") && [button("Receive", receive, "primary"), button("Adjust", adjust), button("Count", countShelf),
      row && button("Expect", expectSupply)],
    context.can("admin") && row && [button("Safety stock", safetyStock), button("Terms", editTerms)]);
}
