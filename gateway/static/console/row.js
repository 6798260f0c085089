// One row: its levels, how they came to be, who holds its units, and what can be done about it.

import { Problem, get, pages } from "./api.js";
import { actionButtons } from "./actions.js";
import { Chart, levelsBar } from "./charts.js";
import { ago, badge, count, empty, h, replace, table, tile } from "./dom.js";
import { entryItem, points, stateBadge } from "./history.js";
import * as stream from "./stream.js";
import { drawSupplies, drawWaiting } from "./supplies.js";
import { drawTerms } from "./terms.js";

const RANGES = { "15m": [15, "15 minutes"], "1h": [60, "1 hour"], "6h": [360, "6 hours"], "24h": [1440, "24 hours"],
  "7d": [10080, "7 days"], "30d": [43200, "30 days"] };
const MAX_ENTRIES = 5000;
const SHOWN_ENTRIES = 50;
const MAX_HOLDS = 2000;
const REFRESH_MS = 1000;

export async function open(root, context) {
  const [place, sku] = context.path;
  const shelf = `${context.base}/locations/${encodeURIComponent(place)}`;
  const path = `${shelf}/stock/${encodeURIComponent(sku)}`;
  let row = await get(path, { consistency: "strong" });
  const found = await get(`${context.base}/search`, { sku, location: place }).catch(() => ({ data: [] }));
  const [item] = found.data;
  let alive = true;
  let entries = [];
  let more = false;

  const levels = h("section", { class: "card", "aria-label": "Levels" });
  const components = h("section", { class: "card", "aria-label": "Made of", hidden: true });
  const terms = h("section", { class: "card", "aria-label": "Terms" });
  const supplies = h("section", { class: "card", "aria-label": "To come", hidden: true });
  const waiting = h("section", { class: "card", "aria-label": "Who waits", hidden: true });
  const chart = new Chart({
    label: `On hand, reserved and available of ${sku} over time`, steps: true,
    series: [{ id: "on_hand", label: "On hand" }, { id: "reserved", label: "Reserved" }, { id: "available", label: "Available" }],
  });
  const chartNote = h("p", { class: "note" });
  const list = h("ol", { class: "entries" });
  const listNote = h("div", {});
  const holds = h("div", {});
  const danger = h("section", { class: "card", hidden: true });
  const range = h("div", { class: "ranges", role: "group", "aria-label": "Time range" });

  replace(root,
    h("p", { class: "crumbs" }, h("a", { href: context.address("stock", place) }, `Stock of ${place}`)),
    h("div", { class: "title-bar" },
      h("div", {}, h("h1", {}, item?.title || sku), item?.title && h("p", { class: "sku" }, sku)),
      // A kit has no shelf to do anything at.
      row.kit ? badge("", "Kit") : actionButtons(context, { location: place, sku, row: () => row })),
    levels, components, danger, terms, supplies, waiting,
    h("section", { class: "card" }, h("div", { class: "title-bar" }, h("h2", {}, "History"), range), chart.element, chartNote),
    h("div", { class: "columns" },
      h("section", { class: "card" }, h("h2", {}, "Ledger"), list, listNote),
      h("section", { class: "card" }, h("h2", {}, "Holds on this row"), holds)));

  function drawLevels() {
    if (!alive) return;
    const state = row.shortfall > 0 ? badge("bad", `Short of ${count(row.shortfall)}`)
      : row.available === 0 && row.backorder_available > 0 ? badge("warn", "On backorder")
      : row.available === 0 ? badge("bad", "Sold out")
        : row.low_stock_threshold && row.available <= row.low_stock_threshold ? badge("warn", "Low")
          : badge("good", "In stock");
    replace(levels,
      h("dl", { class: "tiles" },
        tile("Available", h("span", {}, count(row.available), " ", state), { id: "available" }),
        tile("On hand", count(row.on_hand), { id: "on_hand" }),
        tile("Reserved", count(row.reserved), { id: "reserved" }),
        tile("Safety stock", count(row.safety_stock), { id: "safety_stock" }),
        row.offline_buffer > 0 && tile("Held back", count(row.offline_buffer), { note: "tills are silent" }),
        row.backordered > 0 && tile("Backordered", count(row.backordered), { note: "promised before they come" }),
        row.deficit > 0 && tile("Deficit", count(row.deficit), { note: "sold beyond the books" }),
        tile("Version", count(row.version), { id: "version" })),
      levelsBar(row));
  }

  // The time range is in the address: ?range=6h, or ?from=…&to=…

  function span() {
    const from = Date.parse(context.query.get("from") ?? "");
    const to = Date.parse(context.query.get("to") ?? "");
    if (!Number.isNaN(from)) return { from, to: Number.isNaN(to) ? Date.now() : to, fixed: !Number.isNaN(to) };
    const [minutes] = RANGES[context.query.get("range")] ?? RANGES["1h"];
    return { from: Date.now() - minutes * 60_000, to: Date.now(), fixed: false };
  }

  function drawRanges() {
    const chosen = context.query.get("from") ? "" : context.query.get("range") ?? "1h";
    const local = (ms) => new Date(ms - new Date(ms).getTimezoneOffset() * 60_000).toISOString().slice(0, 16);
    const { from, to } = span();
    const edge = (name, ms) => h("label", { class: "inline" }, name === "from" ? "From " : "to ", h("input", {
      type: "datetime-local", value: local(ms), onchange: (event) => {
        if (!event.target.value) return;
        const kept = name === "from" ? { from: new Date(event.target.value).toISOString() }
          : { from: new Date(from).toISOString(), to: new Date(event.target.value).toISOString() };
        context.setQuery({ range: "", ...kept });
        drawRanges();
        readLedger();
      },
    }));
    replace(range, h("div", { class: "segments" }, Object.entries(RANGES).map(([id, [, label]]) => h("button", {
      type: "button", "aria-pressed": String(id === chosen), title: label, onclick: () => {
        context.setQuery({ range: id, from: "", to: "" });
        drawRanges();
        readLedger();
      },
    }, id))), edge("from", from), edge("to", to));
  }

  function drawHistory() {
    if (!alive) return;
    const { from, to } = span();
    const known = points(entries, from);
    if (known.length === 0 && !more && Date.parse(row.as_of ?? 0) >= from) {
      known.push({ at: from, on_hand: row.on_hand, reserved: row.reserved, available: row.available });
    }
    chart.show(known, from, to);
    replace(chartNote, more ? `The newest ${count(entries.length)} changes; choose a shorter time to see all.`
      : entries.length === 0 ? "Nothing changed in this time." : `${count(entries.length)} change${entries.length === 1 ? "" : "s"} in this time.`);
  }

  function drawEntries() {
    const open = new Set([...list.querySelectorAll("details[open]")].map((one) => one.parentElement.dataset.entry));
    const shown = entries.slice(0, SHOWN_ENTRIES);
    replace(list, shown.map((entry) => {
      const made = entryItem(entry);
      made.dataset.entry = `${entry.partition}.${entry.sequence}`;
      if (open.has(made.dataset.entry)) made.querySelector("details").open = true;
      return made;
    }));
    replace(listNote, entries.length === 0 ? empty("No entries in this time")
      : entries.length > SHOWN_ENTRIES ? h("p", { class: "note" }, `The newest ${SHOWN_ENTRIES} of ${count(entries.length)}${more ? " and more" : ""} in this time.`) : null);
  }

  let asked = 0;
  async function readLedger() {
    const mine = ++asked;
    const { from, to, fixed } = span();
    try {
      const read = await pages(`${context.base}/ledger`, {
        location: place, sku, from: new Date(from).toISOString(), to: fixed ? new Date(to).toISOString() : undefined,
      }, { most: MAX_ENTRIES });
      if (!alive || mine !== asked) return;
      entries = read.items;
      more = read.more;
      drawHistory();
      drawEntries();
    } catch (error) {
      if (alive && mine === asked && error instanceof Problem) replace(chartNote, error.message);
    }
  }

  // What the stream does not tell of: the terms, what pools hold, how much more may be backordered.
  async function readTerms() {
    const read = await get(path, { consistency: "strong" });
    if (!alive) return;
    if (read.version >= row.version) row = read;
    drawLevels();
    showTerms();
  }

  let termsShown = "";
  function showTerms() {
    const shown = JSON.stringify([row.terms, row.backordered, row.supplies, row.available_to_promise, row.late]);
    if (!alive || shown === termsShown) return;
    termsShown = shown;
    drawTerms(terms, row);
    drawSupplies(supplies, row, { path, mayChange: context.can("feed") });
  }

  async function readComponents() {
    components.hidden = !row.kit;
    if (!row.kit) return;
    const kit = await get(`${context.base}/kits/${encodeURIComponent(sku)}`);
    if (!alive) return;
    replace(components, h("h2", {}, "Made of"), table("Components", ["SKU", ":In each"], kit.components.map((one) => [
      h("a", { href: context.address("stock", place, one.sku) }, one.sku), count(one.quantity),
    ])));
  }

  const readWaiting = () => drawWaiting(waiting, row, { path, context, isAlive: () => alive });

  async function readHolds() {
    const { items, more: others } = await pages(`${shelf}/reservations`, {}, { most: MAX_HOLDS });
    if (!alive) return;
    const mine = items.filter((one) => one.lines.some((line) => line.sku === sku));
    const waits = (one) => one.lines.reduce((sum, line) => sum + (line.sku === sku ? line.backordered ?? 0 : 0), 0);
    const owed = mine.some((one) => waits(one) > 0);
    const columns = ["Reservation", "State", ":Units", ...(owed ? [":Still to come"] : []), "Ends"];
    replace(holds, mine.length === 0 ? empty("Nobody holds units of this row")
      : table("Holds on this row", columns, mine.slice(0, 100).map((one) => [
        h("a", { class: "id", href: context.address("reservations", one.id) }, one.order_ref || one.id),
        stateBadge(one.state),
        count(one.lines.filter((line) => line.sku === sku).reduce((sum, line) => sum + line.quantity, 0)),
        ...(owed ? [waits(one) ? count(waits(one)) : "–"] : []),
        one.expires_at ? h("span", { "data-expires": one.expires_at }) : "never",
      ])),
    (others || mine.length > 100) && h("p", { class: "note" }, "More than are shown here."));
    tick();
  }

  async function readShortfalls() {
    const { data } = await get(`${shelf}/shortfalls`);
    if (!alive) return;
    const found = data.find((one) => one.sku === sku);
    danger.hidden = found === undefined;
    if (found === undefined) return;
    replace(danger, h("h2", {}, "Endangered reservations"),
      h("p", {}, badge("bad", `${count(found.units)} promised and not there`), ` by a ${found.how.replaceAll("_", " ")}, ${ago(found.since)}. `,
        found.ways_out.elsewhere.length > 0 && ["Elsewhere: ", found.ways_out.elsewhere.map((other) => `${other.location} ${count(other.available)}`).join(", ")]),
      table("Endangered reservations", ["Reservation", "State", ":Units", ":Missing"], found.endangered.map((one) => [
        h("a", { class: "id", href: context.address("reservations", one.reservation) }, one.order_ref || one.reservation),
        stateBadge(one.state), count(one.quantity), count(one.missing),
      ])));
  }

  function tick() {
    for (const cell of holds.querySelectorAll("[data-expires]")) {
      const left = Date.parse(cell.dataset.expires) - Date.now();
      cell.textContent = left > 0 ? `in ${Math.ceil(left / 1000)} s` : "due";
    }
  }

  const quietly = (reading) => reading().catch((error) => {
    if (!(error instanceof Problem)) return;
  });
  const refresh = () => Promise.all([readLedger, readHolds, readShortfalls, readTerms, readWaiting].map(quietly));
  let due = null;
  function refreshSoon() {
    if (due !== null) return;
    due = setTimeout(() => { due = null; refresh(); }, REFRESH_MS);
  }

  let forgotten = false;
  drawLevels();
  showTerms();
  drawRanges();
  context.listen({ merchant: context.merchant, locations: [place], skus: [sku] }, {
    reset: () => { forgotten = true; },
    rows: ([told]) => {
      if (told && forgotten) row = { ...row, version: 0, kit: told.kit };
      forgotten = false;
      if (told?.version) take(told);
      quietly(readComponents);
    },
    ready: refreshSoon,
    resumed: refreshSoon,
    event: (event) => {
      if (event.type === "stock.changed") take(event.data);
      refreshSoon();
    },
  });
  function take(told) {
    if (told.version < row.version) return;
    row = { ...row, ...told };
    stream.paint(drawLevels);
  }

  await refresh();
  const ticking = setInterval(() => {
    tick();
    if (!span().fixed) stream.paint(drawHistory);
  }, 1000);
  return { close() { alive = false; clearInterval(ticking); clearTimeout(due); chart.close(); } };
}
