// Charts in SVG: steps for levels that hold until they change, lines for rates.

import { count, h, replace, svg, text } from "./dom.js";

const MARGIN = { left: 44, right: 12, top: 10, bottom: 24 };

// A round number of at least `value` that divides well.
function ceiling(value) {
  if (value <= 0) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  for (const factor of [1, 2, 2.5, 5, 10]) {
    if (factor * power >= value) return factor * power;
  }
  return 10 * power;
}

const TICK_STEPS_S = [1, 5, 10, 30, 60, 300, 900, 1800, 3600, 10800, 21600, 43200, 86400, 172800, 604800];

function ticks(from, to, most) {
  const step = 1000 * (TICK_STEPS_S.find((seconds) => (to - from) / 1000 / seconds <= most) ?? 2592000);
  const zone = new Date(from).getTimezoneOffset() * 60_000;
  const found = [];
  for (let at = Math.ceil((from - zone) / step) * step + zone; at <= to; at += step) found.push(at);
  return { found, step };
}

function tickLabel(at, step) {
  const options = step >= 86_400_000 ? { day: "numeric", month: "short" }
    : step < 60_000 ? { hour: "2-digit", minute: "2-digit", second: "2-digit" }
      : { hour: "2-digit", minute: "2-digit" };
  return new Intl.DateTimeFormat("en-GB", options).format(at);
}

// `series` are {id, label}; `points` [{at, ...values by id}], the oldest first.
export class Chart {
  constructor({ label, series, steps = false, height = 220, unit = "" }) {
    this.series = series;
    this.steps = steps;
    this.unit = unit;
    this.height = height;
    this.svg = svg("svg", { class: "chart", role: "img", "aria-label": label, height });
    this.readout = h("p", { class: "readout", "aria-hidden": "true" }, "\u00a0");
    this.legend = h("ul", { class: "legend" }, series.map((one) =>
      h("li", { class: `key-${one.id}` }, one.label)));
    this.element = h("div", { class: "chart-box" }, this.legend, this.svg, this.readout);
    this.points = [];
    this.resized = new ResizeObserver(() => this.draw());
    this.resized.observe(this.element);
    this.svg.addEventListener("pointermove", (event) => this.point(event));
    this.svg.addEventListener("pointerleave", () => text(this.readout, "\u00a0"));
  }

  close() {
    this.resized.disconnect();
  }

  show(points, from, to) {
    Object.assign(this, { points, from, to });
    this.draw();
  }

  draw() {
    const width = this.element.clientWidth;
    if (!width || this.to === undefined) return;
    const { left, right, top, bottom } = MARGIN;
    const inner = { width: width - left - right, height: this.height - top - bottom };
    const most = ceiling(Math.max(0, ...this.points.flatMap((point) =>
      this.series.map((one) => point[one.id] ?? 0))));
    this.x = (at) => left + ((at - this.from) / Math.max(1, this.to - this.from)) * inner.width;
    const y = (value) => top + inner.height * (1 - value / most);
    const lines = [0, 0.5, 1].map((share) => [
      svg("line", { class: "rule", x1: left, x2: width - right, y1: y(share * most), y2: y(share * most) }),
      svg("text", { class: "tick", x: left - 6, y: y(share * most) + 4, "text-anchor": "end" },
        most < 4 ? +(share * most).toFixed(2) : count(Math.round(share * most * 10) / 10)),
    ]);
    const { found, step } = ticks(this.from, this.to, Math.max(2, Math.floor(width / 110)));
    const times = found.map((at) => svg("text", {
      class: "tick", x: this.x(at), y: this.height - 6, "text-anchor": "middle",
    }, tickLabel(at, step)));
    const paths = this.series.map((one) =>
      svg("path", { class: `line line-${one.id}`, d: this.path(one.id, y) }));
    this.svg.setAttribute("viewBox", `0 0 ${width} ${this.height}`);
    replace(this.svg, lines, times, paths);
  }

  path(id, y) {
    let d = "";
    let before = null;
    for (const point of this.points) {
      const value = point[id];
      if (value === undefined || value === null) {
        before = null;
        continue;
      }
      const x = Math.max(MARGIN.left, this.x(point.at)).toFixed(1);
      const height = y(value).toFixed(1);
      if (before === null) d += `M${x} ${height}`;
      else d += this.steps ? `H${x}V${height}` : `L${x} ${height}`;
      before = value;
    }
    if (this.steps && d) d += `H${this.x(this.to).toFixed(1)}`;
    return d;
  }

  point(event) {
    if (!this.points.length) return;
    const box = this.svg.getBoundingClientRect();
    const share = (event.clientX - box.left - MARGIN.left) / (box.width - MARGIN.left - MARGIN.right);
    const at = this.from + Math.min(1, Math.max(0, share)) * (this.to - this.from);
    let found = this.points[0];
    for (const point of this.points) {
      if (point.at > at) break;
      found = point;
    }
    const values = this.series.filter((one) => found[one.id] !== undefined && found[one.id] !== null)
      .map((one) => `${one.label} ${count(Math.round(found[one.id] * 10) / 10)}${this.unit}`);
    text(this.readout, `${new Intl.DateTimeFormat("en-GB", { dateStyle: "medium", timeStyle: "medium" }).format(found.at)}: ${values.join(", ")}`);
  }
}

// A row's units as one bar: what is promised, kept back and left, and what is missing beyond it.
export function levelsBar(row) {
  const buffer = row.offline_buffer ?? 0;
  const promised = Math.min(row.reserved, row.on_hand);
  const parts = [
    ["reserved", "Reserved", promised],
    ["shortfall", "Promised, not there", row.shortfall],
    ["safety", "Safety stock", Math.min(row.safety_stock, Math.max(0, row.on_hand - promised))],
    ["buffer", "Held back, tills silent", buffer],
    ["available", "Available", row.available],
  ].filter(([, , units]) => units > 0);
  const total = parts.reduce((sum, [, , units]) => sum + units, 0);
  const said = parts.map(([, label, units]) => `${label} ${count(units)}`).join(", ");
  const bar = h("div", { class: "levels", role: "img", "aria-label": said || "No units" });
  for (const [id, , units] of parts) {
    const part = h("span", { class: `level-${id}` });
    part.style.flexGrow = String(Math.max(units / total, 0.01));
    bar.append(part);
  }
  const key = h("ul", { class: "legend" }, parts.map(([id, label, units]) =>
    h("li", { class: `key-${id}` }, label, " ", h("b", {}, count(units)))));
  return h("div", {}, bar, key);
}
