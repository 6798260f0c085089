// A location's rows: live, sorted, filtered, and searched through the index.

import { Problem, get, pages } from "./api.js";
import { actionButtons } from "./actions.js";
import { count, empty, h, replace, text } from "./dom.js";
import { Grid } from "./grid.js";
import * as stream from "./stream.js";

const FILTERS = {
  all: ["All", () => true],
  low: ["Low", (row) => row.low_stock_threshold > 0 && row.available <= row.low_stock_threshold],
  out: ["Sold out", (row) => row.available === 0],
  reserved: ["Reserved", (row) => row.reserved > 0],
  backordered: ["Backordered", (row) => row.backordered > 0],
  short: ["Shortfall", (row) => row.shortfall > 0],
};

const SEARCH_MS = 250;
const MAX_TITLES = 10_000;

function kindOf(row) {
  if (row.shortfall > 0) return "bad";
  if (row.available === 0) return "out";
  return FILTERS.low[1](row) ? "warn" : "good";
}

export async function locationsOf(context) {
  const { items } = await pages(`${context.base}/locations`, {});
  return items.map((one) => one.location);
}

export function locationTabs(context, page, locations, chosen) {
  const to = (name) => context.address(...[page].flat(), name);
  if (locations.length > 6) {
    return h("label", { class: "inline" }, "Location ", h("select", {
      onchange: (event) => { window.location.hash = to(event.target.value); },
    }, locations.map((name) => h("option", { value: name, selected: name === chosen }, name))));
  }
  return h("ul", { class: "tabs", "aria-label": "Locations" }, locations.map((name) => h("li", {},
    h("a", { href: to(name), "aria-current": name === chosen ? "page" : null }, name))));
}

export async function open(root, context) {
  const locations = await locationsOf(context);
  const place = context.path[0] ?? locations[0];
  if (place === undefined) {
    replace(root, h("h1", {}, "Stock"), empty("No location yet", "A location is here once something was booked in it."));
    return null;
  }
  const rows = new Map();
  const titles = new Map();
  const changed = new Set();
  let found = null;
  let order = context.query.get("sort") ?? "sku";
  let filter = FILTERS[context.query.get("show")] ? context.query.get("show") : "all";
  let alive = true;

  const summary = h("p", { class: "note", role: "status" }, "Loading…");
  const search = h("input", { type: "search", "aria-label": "Search items", placeholder: "Search by name or SKU ( / )",
    value: context.query.get("q") ?? "" });
  const show = h("select", { "aria-label": "Show" }, Object.entries(FILTERS).map(([id, [label]]) =>
    h("option", { value: id, selected: id === filter }, label)));

  const columns = [
    { id: "item", label: "Item", sortable: true, value: (row) => named(row) },
    { id: "available", label: "Available", numeric: true, sortable: true, value: (row) => count(row.available), kind: kindOf },
    { id: "on_hand", label: "On hand", numeric: true, sortable: true, value: (row) => count(row.on_hand) },
    { id: "reserved", label: "Reserved", numeric: true, sortable: true, value: (row) => count(row.reserved) },
    { id: "backordered", label: "Backordered", numeric: true, sortable: true, value: (row) => (row.backordered ? count(row.backordered) : "–") },
    { id: "safety_stock", label: "Safety", numeric: true, sortable: true, value: (row) => count(row.safety_stock) },
    { id: "shortfall", label: "Short", numeric: true, sortable: true, value: (row) => row.shortfall || "–" },
  ];
  const grid = new Grid({
    label: `Stock of ${place}`, columns, key: (row) => row.sku,
    link: (row) => context.address("stock", place, row.sku),
    onSort: (id) => {
      const descending = id !== "item";
      order = order === id ? `-${id}` : order === `-${id}` ? id : descending ? `-${id}` : id;
      context.setQuery({ sort: order });
      stream.paint(draw);
    },
  });

  function named(row) {
    const title = titles.get(row.sku);
    const box = document.createDocumentFragment();
    box.append(h("span", { class: "title" }, title || row.sku));
    if (title) box.append(h("span", { class: "sku" }, row.sku));
    return box;
  }

  function sorter() {
    const descending = order.startsWith("-");
    const id = order.replace("-", "");
    const bySku = (a, b) => (a.sku < b.sku ? -1 : 1);
    const byName = (a, b) => (titles.get(a.sku) ?? a.sku).localeCompare(titles.get(b.sku) ?? b.sku) || bySku(a, b);
    const ascending = id === "item" || id === "sku" ? byName : (a, b) => (a[id] ?? 0) - (b[id] ?? 0) || bySku(a, b);
    return descending ? (a, b) => -ascending(a, b) : ascending;
  }

  let shown = [];
  let sortedFor = "";
  function draw() {
    if (!alive) return;
    const wanted = FILTERS[filter][1];
    shown = [...rows.values()].filter((row) => wanted(row) && (found === null || found.has(row.sku)));
    shown.sort(sorter());
    if (sortedFor !== order) {
      grid.sorted(order.replace("-", "").replace("sku", "item"), order.startsWith("-"));
      sortedFor = order;
    }
    grid.show(shown, changed);
    changed.clear();
    none.hidden = shown.length > 0 || rows.size === 0;
    text(summary, shown.length === rows.size ? `${count(rows.size)} items`
      : `${count(shown.length)} of ${count(rows.size)} items`);
  }

  const none = h("div", { hidden: true }, empty("Nothing fits", "Change the search or what is shown."));
  replace(root,
    h("div", { class: "title-bar" }, h("h1", {}, "Stock"), actionButtons(context, { location: place })),
    locationTabs(context, "stock", locations, place),
    h("div", { class: "tools" }, search, h("label", { class: "inline" }, "Show ", show), summary),
    none, grid.element);

  function take(row, flash) {
    const known = rows.get(row.sku);
    if (known !== undefined && known.version >= row.version) return;
    rows.set(row.sku, row);
    if (flash) changed.add(row.sku);
    stream.paint(draw);
  }

  async function searchIndex() {
    const asked = search.value.trim();
    context.setQuery({ q: asked });
    if (!asked) {
      found = null;
      stream.paint(draw);
      return;
    }
    try {
      const { items } = await pages(`${context.base}/search`, { q: asked, location: place }, { most: 2000 });
      if (search.value.trim() !== asked) return;
      found = new Set(items.map((hit) => hit.sku));
      for (const hit of items) if (hit.title) titles.set(hit.sku, hit.title);
    } catch (error) {
      if (!(error instanceof Problem)) return;
      // Without an index the SKUs that are here can still be looked through.
      const part = asked.toLowerCase();
      found = new Set([...rows.keys()].filter((sku) => sku.toLowerCase().includes(part)));
    }
    stream.paint(draw);
  }

  let waiting = null;
  search.addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(searchIndex, SEARCH_MS);
  });
  show.addEventListener("change", () => {
    filter = show.value;
    context.setQuery({ show: filter === "all" ? "" : filter });
    stream.paint(draw);
  });

  function follow(snapshot) {
    context.listen({ merchant: context.merchant, locations: [place], types: ["stock.changed"], snapshot }, {
      reset: () => { if (snapshot) rows.clear(); else readAll(); },
      rows: (some) => some.forEach((row) => take(row, false)),
      ready: () => stream.paint(draw),
      resumed: () => stream.paint(draw),
      event: (event) => take(event.data, true),
      refused: (problem) => {
        // More rows than a stream opens with: hear the changes, and read the rows in pages.
        if (problem.code === "limit_exceeded" && snapshot) follow(false);
        else text(summary, problem.detail);
      },
    });
  }

  async function readAll() {
    await pages(`${context.base}/locations/${encodeURIComponent(place)}/stock`, {}, {
      most: Infinity, each: (some) => some.forEach((row) => take({ low_stock_threshold: 0, ...row }, false)),
    }).catch(() => {});
  }

  async function readTitles() {
    try {
      await pages(`${context.base}/search`, { location: place }, { most: MAX_TITLES, each: (some) => {
        for (const hit of some) if (hit.title) titles.set(hit.sku, hit.title);
        stream.paint(draw);
      } });
    } catch {
      // Without an index the rows go by their SKUs.
    }
  }

  follow(true);
  readTitles();
  if (search.value) searchIndex();
  return { close() { alive = false; grid.close(); clearTimeout(waiting); } };
}
