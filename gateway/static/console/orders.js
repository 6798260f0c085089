// An order of several locations: its parts, what is proposed and missing, and giving back what it holds.

import { Problem, call, get } from "./api.js";
import { ask } from "./dialogs.js";
import { count, empty, h, replace, table, tile, when } from "./dom.js";
import { stateBadge } from "./history.js";
import { isLate, lineBadges, lineList, linesText, proposals } from "./lines.js";

export const ORDER_ID = /^ord_\d+_[0-9a-f]{24}$/;
const POLL_MS = 3_000;
const COLUMNS = ["Order", "State", "Parts", "Made", "Ends"];

// The orders that go by a reference, null where there are none.
export async function ordersCard(context, reference) {
  const { data, has_more: more } = await get(`${context.base}/orders`, { order_ref: reference, limit: 50 });
  return data.length === 0 ? null : h("section", { class: "card" }, h("h2", {}, "Orders of several locations"),
    table("Orders of several locations", COLUMNS, data.map((one) => [
      h("a", { class: "id", href: context.address("reservations", one.id) }, one.order_ref || one.id),
      h("span", {}, stateBadge(one.state), lineBadges(one.parts)),
      one.parts.map((part) => `${part.location}: ${linesText(part.lines)}`).join("; "),
      when(one.created_at), one.expires_at ? when(one.expires_at) : one.ended_at ? when(one.ended_at) : "no end"])),
    more && h("p", { class: "note" }, "The oldest 50."));
}

export async function openOrder(root, context, id) {
  const path = `${context.base}/orders/${id}`;
  let alive = true;
  let shown = "";
  const body = h("div", {});
  replace(root, h("p", { class: "crumbs" }, h("a", { href: context.address("reservations") }, "Reservations and orders")), body);

  async function read() {
    const one = await get(path).catch((error) => {
      if (error instanceof Problem && error.code === "order_not_found") return null;
      throw error;
    });
    if (!alive) return;
    context.polled(true);
    // What is as it was is left alone: whoever is on one of its buttons stays there.
    const now = JSON.stringify(one);
    if (now !== shown) draw(one);
    shown = now;
  }

  function draw(one) {
    if (one === null) {
      replace(body, h("h1", {}, "Order"), h("p", { class: "sku" }, id), empty("There is no such order", "It may have ended a while ago; the ledger keeps what its parts did."));
      return;
    }
    const open = one.parts.filter((part) => ["held", "confirmed"].includes(part.state));
    const lines = open.flatMap((part) => part.lines);
    const waiting = lines.reduce((sum, line) => sum + (line.backordered ?? 0), 0);
    const late = lines.filter(isLate).reduce((sum, line) => sum + line.backordered, 0);
    replace(body,
      h("div", { class: "title-bar" },
        h("div", {}, h("h1", {}, one.order_ref || "Order", " ", stateBadge(one.state)), h("p", { class: "sku" }, id)),
        context.can("reserve") && open.length > 0 && h("div", { class: "actions" },
          h("button", { type: "button", class: "danger", onclick: cancel }, "Cancel the order"))),
      proposals({ held: open, asked: one.lines, path, mayDecide: context.can("reserve"), done: decided,
        declined: "The substitutes are given back, and the order is planned anew without them; it fails where nothing else can be had." }),
      h("section", { class: "card" }, h("dl", { class: "tiles" },
        tile("Parts", count(one.parts.length)), tile("Units", count(one.lines.reduce((sum, line) => sum + line.quantity, 0))),
        one.by && tile("By", one.by, { id: "by", note: "the day that was asked for" }),
        waiting > 0 && tile("Not here yet", count(waiting), { id: "waiting", kind: late > 0 ? "bad" : "",
          note: late > 0 ? `${count(late)} of them late` : "promised before they come" }),
        tile("Made", when(one.created_at)), one.expires_at && tile("Time is up", when(one.expires_at))),
      one.settled ? null : h("p", { class: "note" }, "A step of it is still being done."),
      one.reason && h("p", { class: "note" }, "Why it is so: ", one.reason),
      table("Parts by location", ["Location", "State", "Lines", "Why there", "Reservation"], one.parts.map((part) => [
        part.location, h("span", {}, stateBadge(part.state), lineBadges([part])), lineList(part.lines),
        h("span", {}, part.why, part.replaces && `; stands in for ${part.replaces}`),
        h("a", { class: "id", href: context.address("reservations", part.reservation) }, part.reservation)])),
      one.missing.length > 0 && h("p", { class: "note" }, "Missing: ", linesText(one.missing))));
  }

  async function decided(answer) {
    await read();
    return `Done: the order is ${answer.state}${answer.reason ? `, ${answer.reason}` : ""}`;
  }

  function cancel() {
    ask({ title: "Cancel the order", danger: true, typed: "cancel", action: "Cancel the order",
      explain: "All its parts give their units back, and others can be promised them. What was committed stays so.",
      fields: [{ name: "reason", label: "Reason", required: true }],
      submit: async (values) => {
        await call("POST", `${path}/cancel`, { body: values });
        await read();
        return "Done: the order is cancelled";
      } });
  }

  await read();
  const timer = setInterval(() => {
    if (!document.hidden && !document.querySelector("dialog[open]")) read().catch(() => context.polled(false));
  }, POLL_MS);
  return { close() { alive = false; clearInterval(timer); } };
}
