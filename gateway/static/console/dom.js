// Elements, text and times. Everything that comes from the API becomes text nodes and attributes,
// never markup: a SKU may be called anything.

const SVG = "http://www.w3.org/2000/svg";

// h("p", {class: "note"}, "text", element, null): properties that begin with "on" are listeners.
export function h(tag, props, ...children) {
  return fill(document.createElement(tag), props, children);
}

export function svg(tag, props, ...children) {
  return fill(document.createElementNS(SVG, tag), props, children);
}

function fill(element, props, children) {
  for (const [name, value] of Object.entries(props ?? {})) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "value") element.value = value;
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  add(element, children);
  return element;
}

function add(element, children) {
  for (const child of children) {
    if (child === null || child === undefined || child === false) continue;
    if (Array.isArray(child)) add(element, child);
    else element.append(child instanceof Node ? child : String(child));
  }
}

export function replace(element, ...children) {
  element.replaceChildren();
  add(element, children);
  return element;
}

// Sets text only where it differs, so that nothing is laid out anew for nothing.
export function text(element, value) {
  const wanted = String(value);
  if (element.textContent !== wanted) element.textContent = wanted;
}

const NUMBER = new Intl.NumberFormat("en");

export const count = (value) => NUMBER.format(value);

export const signed = (value) => (value > 0 ? `+${count(value)}` : value < 0 ? `−${count(-value)}` : "0");

export function duration(ms) {
  const seconds = Math.max(0, Math.round(ms / 1000));
  if (seconds < 60) return `${seconds} s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return `${minutes} min ${String(seconds % 60).padStart(2, "0")} s`;
  const hours = Math.floor(minutes / 60);
  if (hours < 48) return `${hours} h ${String(minutes % 60).padStart(2, "0")} min`;
  return `${Math.floor(hours / 24)} days`;
}

export function ago(time) {
  const ms = Date.now() - Date.parse(time);
  return ms < 1500 ? "now" : `${duration(ms)} ago`;
}

const CLOCK = new Intl.DateTimeFormat("en-GB", { dateStyle: "medium", timeStyle: "medium" });
const TODAY = new Intl.DateTimeFormat("en-GB", { timeStyle: "medium" });

export function clock(time) {
  const date = new Date(time);
  return (date.toDateString() === new Date().toDateString() ? TODAY : CLOCK).format(date);
}

export function when(time) {
  return h("time", { datetime: time, title: time }, clock(time));
}

export function badge(kind, label) {
  return h("span", { class: `badge ${kind}` }, label);
}

export function empty(title, hint) {
  return h("div", { class: "empty" }, h("p", { class: "empty-title" }, title), hint && h("p", {}, hint));
}

export function tile(label, value, { note, kind, id } = {}) {
  return h("div", { class: `tile ${kind ?? ""}`, "data-tile": id },
    h("dt", {}, label), h("dd", {}, value), note && h("dd", { class: "note" }, note));
}

// A plain table; a cell is text or an element, and a column that begins with ":" is of numbers.
export function table(caption, columns, rows) {
  const numeric = columns.map((name) => name.startsWith(":"));
  const names = columns.map((name) => name.replace(/^:/, ""));
  return h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": caption },
    h("table", {},
      h("caption", { class: "hidden" }, caption),
      h("thead", {}, h("tr", {}, names.map((name, i) =>
        name ? h("th", { scope: "col", class: numeric[i] ? "number" : null }, name) : h("td", {})))),
      h("tbody", {}, rows.map((cells) => h("tr", {}, cells.map((cell, i) =>
        h("td", { class: numeric[i] ? "number" : null, "data-label": names[i] }, cell)))))));
}
