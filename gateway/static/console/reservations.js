// Reservations and orders: found by id or by what the shop calls them, with what happened to each.

import { Problem, call, change, get, pages } from "./api.js";
import { ask } from "./dialogs.js";
import { badge, count, duration, empty, h, replace, table, tile, when } from "./dom.js";
import { entryItem, stateBadge } from "./history.js";
import { lineBadges, linesText, proposals, standsForText, toCome } from "./lines.js";
import { ORDER_ID, openOrder, ordersCard } from "./orders.js";
import { locationTabs, locationsOf } from "./stock.js";
import * as stream from "./stream.js";

const ID = /^rsv_\d+_[0-9a-f]{24}$/;
// What is told of a reservation after it was made.
const TYPES = [
  ...["confirmed", "extended", "amended", "proposed", "accepted", "declined", "committed", "released", "expired"].map((one) => `reservation.${one}`),
  "backorder.filled", "promise.slipped", "promise.restored",
];
const SHOWN = 200;
const MAX_FOUND = 50;

export async function open(root, context) {
  if (context.path.length === 1 && ID.test(context.path[0])) return openOne(root, context, context.path[0]);
  if (context.path.length === 1 && ORDER_ID.test(context.path[0])) return openOrder(root, context, context.path[0]);
  const asked = context.query.get("q") ?? "";
  const box = h("input", { type: "search", "aria-label": "Find a reservation", value: asked,
    placeholder: "Id of a reservation or order, or order reference ( / )" });
  const form = h("form", { class: "tools", role: "search" }, box, h("button", { type: "submit", class: "primary" }, "Find"));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const wanted = box.value.trim();
    if (ID.test(wanted) || ORDER_ID.test(wanted)) location.hash = context.address("reservations", wanted);
    else location.hash = `${context.address("reservations")}?q=${encodeURIComponent(wanted)}`;
  });
  const results = h("div", {});
  replace(root, h("div", { class: "title-bar" }, h("h1", {}, "Reservations and orders")), form, results);
  if (asked) {
    await showFound(results, context, asked);
    return null;
  }
  return showOpen(results, context);
}

function rowsOf(context, found) {
  return found.map((one) => [
    h("a", { class: "id", href: context.address("reservations", one.id) }, one.order_ref || one.id),
    h("span", {}, stateBadge(one.state), lineBadges([one])), one.location, linesText(one.lines),
    when(one.created_at),
    one.expires_at ? h("span", { "data-expires": one.expires_at }) : one.ended_at ? when(one.ended_at) : "no end",
  ]);
}

const COLUMNS = ["Reservation", "State", "Location", "Lines", "Made", "Ends"];

async function showFound(results, context, asked) {
  const [{ items }, orders] = await Promise.all([
    pages(`${context.base}/ledger`, { reference: asked }, { most: 500 }), ordersCard(context, asked),
  ]);
  const ids = [...new Set(items.filter((entry) => ID.test(entry.id)).map((entry) => entry.id))].slice(0, MAX_FOUND);
  const found = (await Promise.all(ids.map((id) => get(`${context.base}/reservations/${id}`).catch((error) => {
    if (error instanceof Problem) return null;
    throw error;
  })))).filter(Boolean);
  const gone = ids.filter((id) => !found.some((one) => one.id === id));
  const moved = items.filter((entry) => !ID.test(entry.id));
  replace(results, orders,
    (orders === null || found.length + gone.length > 0) && h("section", { class: "card" }, h("h2", {}, "Found as “", asked, "”"),
      found.length + gone.length === 0 ? empty("No reservation goes by this", "Look for the whole reference; upper and lower case differ.")
        : table("Found reservations", COLUMNS, [
          ...rowsOf(context, found),
          ...gone.map((id) => [h("a", { class: "id", href: context.address("reservations", id) }, id), badge("", "ended"), "", "", "", "more than 24 hours ago"]),
        ])),
    moved.length > 0 && h("section", { class: "card" }, h("h2", {}, "Movements with this reference"),
      h("ol", { class: "entries" }, moved.slice(0, 100).map((entry) => entryItem(entry, { showSku: true })))));
  tick(results);
}

async function showOpen(results, context) {
  const locations = await locationsOf(context);
  const place = context.path[0] ?? locations[0];
  if (place === undefined) {
    replace(results, empty("No location yet"));
    return null;
  }
  let alive = true;
  const list = h("section", { class: "card" });
  replace(results, locationTabs(context, "reservations", locations, place), list);
  async function read() {
    const page = await get(`${context.base}/locations/${encodeURIComponent(place)}/reservations`, { limit: SHOWN });
    stream.paint(() => {
      if (!alive) return;
      replace(list, h("h2", {}, `Open at ${place}`), page.data.length === 0 ? empty("Nothing is open", "Held and confirmed reservations are here until they end.")
        : table(`Open at ${place}`, COLUMNS, rowsOf(context, page.data)),
      page.has_more && h("p", { class: "note" }, `The oldest ${SHOWN}; find others by their reference.`));
      tick(list);
    });
  }
  let due = null;
  const soon = () => { due ??= setTimeout(() => { due = null; read().catch(() => {}); }, 1000); };
  const types = ["reservation.held", ...TYPES];
  await read();
  context.listen({ merchant: context.merchant, locations: [place], types, snapshot: false }, {
    ready: soon, resumed: soon, event: soon,
  });
  const ticking = setInterval(() => tick(list), 1000);
  return { close() { alive = false; clearInterval(ticking); clearTimeout(due); } };
}

function tick(element) {
  for (const cell of element.querySelectorAll("[data-expires]")) {
    const left = Date.parse(cell.dataset.expires) - Date.now();
    cell.textContent = left > 0 ? `in ${duration(left)}` : "due";
  }
}

async function openOne(root, context, id) {
  const path = `${context.base}/reservations/${id}`;
  let alive = true;
  let one = null;
  const head = h("div", {});
  const timeline = h("ol", { class: "entries timeline" });
  replace(root, h("p", { class: "crumbs" }, h("a", { href: context.address("reservations") }, "Reservations and orders")),
    head, h("section", { class: "card" }, h("h2", {}, "Timeline"), timeline));

  async function read() {
    const [found, entries] = await Promise.all([
      get(path).catch((error) => {
        if (error instanceof Problem && error.code === "reservation_not_found") return null;
        throw error;
      }),
      pages(`${context.base}/ledger`, { reservation: id, order: "oldest" }, { most: 1000 }),
    ]);
    if (!alive) return;
    one = found;
    draw(entries.items);
  }

  function draw(entries) {
    replace(timeline, entries.map((entry) => h("li", {}, ...entryItem(entry, { showSku: true }).childNodes)));
    if (one === null) {
      replace(head, h("h1", {}, "Reservation"), h("p", { class: "sku" }, id),
        entries.length === 0 ? empty("There is no such reservation") : h("p", {}, "It ended more than 24 hours ago; the ledger keeps what happened."));
      return;
    }
    replace(head,
      h("div", { class: "title-bar" },
        h("div", {}, h("h1", {}, one.order_ref || "Reservation", " ", stateBadge(one.state)), h("p", { class: "sku" }, id)),
        actions()),
      proposals({ held: ["held", "confirmed"].includes(one.state) ? [one] : [], path, mayDecide: context.can("reserve"), done: decided,
        declined: "The substitutes go back to the shelf, and what they stood for is missing." }),
      h("section", { class: "card" }, h("dl", { class: "tiles" },
        tile("Location", one.location), tile("Units", count(one.lines.reduce((sum, line) => sum + line.quantity, 0))),
        one.expires_at && tile("Time left", h("span", { "data-left": "" }), { id: "left" })),
      one.expires_at && h("div", { class: "countdown", role: "presentation" }, h("span", {})),
      linesTable(),
      ORDER_ID.test(one.order_ref) && h("p", { class: "note" }, "Part of an order: ",
        h("a", { class: "id", href: context.address("reservations", one.order_ref) }, one.order_ref)),
      one.missing.length > 0 && h("p", { class: "note" }, "Missing: ", linesText(one.missing))));
    countDown();
  }

  function linesTable() {
    const stand = one.lines.some((line) => line.stands_for);
    const waits = one.lines.some((line) => line.backordered);
    return table("Lines", ["SKU", ":Units", ":Picked", ...(stand ? ["Held for"] : []), ...(waits ? ["To come"] : [])], one.lines.map((line) => [
      h("a", { href: context.address("stock", one.location, line.sku) }, line.sku), count(line.quantity), line.picked === null ? "–" : count(line.picked),
      ...(stand ? [standsForText(line) || "itself"] : []), ...(waits ? [toCome(line) ?? "–"] : []),
    ]));
  }

  async function decided(answer) {
    await read();
    return `Done: the reservation is ${answer.state}${answer.missing.length > 0 ? `, missing ${linesText(answer.missing)}` : ""}`;
  }

  function actions() {
    if (!context.can("reserve") || !["held", "confirmed"].includes(one.state)) return null;
    return h("div", { class: "actions" },
      one.state === "held" && [
        h("button", { type: "button", class: "primary", onclick: () => typed("confirm", "Confirm the order", "The order is placed: its units are kept until they are picked or given back.",
          [{ name: "order_ref", label: "Order reference", value: one.order_ref }], (values) => call("POST", `${path}/confirm`, { body: values })) }, "Confirm"),
        h("button", { type: "button", onclick: () => typed("extend", "Extend the hold", "It runs on from now, if that is longer than it would.",
          [{ name: "ttl_seconds", label: "Seconds from now", type: "number", required: true, min: 1, max: 86400, value: "900" }], (values) => change("POST", `${path}/extend`, values)) }, "Extend"),
      ],
      h("button", { type: "button", class: "danger", onclick: () => typed("release", "Release the units", "Whoever placed this order loses its units, and they can be promised to others.",
        [{ name: "reason", label: "Reason", required: true }], (values) => call("POST", `${path}/release`, { body: values })) }, "Release"));
  }

  function typed(verb, title, explain, fields, send) {
    ask({ title, explain, fields, typed: verb, danger: verb === "release", action: title, submit: async (values) => {
      await send(values);
      await read();
      return `Done: ${title.toLowerCase()}`;
    } });
  }

  function countDown() {
    const cell = head.querySelector("[data-left]");
    if (!cell || !one?.expires_at) return;
    const left = Date.parse(one.expires_at) - Date.now();
    cell.textContent = left > 0 ? duration(left) : "due";
    const whole = Date.parse(one.expires_at) - Date.parse(one.created_at);
    const bar = head.querySelector(".countdown span");
    if (bar) bar.style.width = `${Math.max(0, Math.min(100, (100 * left) / whole))}%`;
  }

  await read();
  if (one !== null) {
    const soon = (event) => { if (!event || event.subject === id) read().catch(() => {}); };
    context.listen({ merchant: context.merchant, locations: [one.location], types: TYPES, snapshot: false }, { resumed: () => soon(), event: soon });
  }
  const ticking = setInterval(countDown, 500);
  return { close() { alive = false; clearInterval(ticking); } };
}
