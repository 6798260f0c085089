// A table of any number of rows, of which only those in sight are in the document. Rows have one
// height, so where each belongs is a multiplication.

import { h, text } from "./dom.js";

const SPARE_ROWS = 6;

export class Grid {
  // `columns` are {id, label, value(item), numeric, sortable}; `link(item)` is where a row leads.
  constructor({ label, columns, link, key, onSort }) {
    this.columns = columns;
    this.link = link;
    this.key = key;
    this.items = [];
    this.flashed = new Map();
    this.shown = [];
    this.head = h("div", { class: "grid-head", role: "row", "aria-rowindex": "1" });
    this.headers = columns.map((column) => {
      const cell = h("div", {
        class: `cell ${column.id} ${column.numeric ? "number" : ""}`, role: "columnheader",
      });
      if (column.sortable) {
        cell.append(h("button", { type: "button", class: "sort", onclick: () => onSort(column.id) },
          column.label));
      } else cell.append(column.label);
      this.head.append(cell);
      return cell;
    });
    this.spacer = h("div", { class: "grid-spacer", role: "rowgroup" });
    this.scroller = h("div", { class: "grid-scroll", role: "presentation" }, this.spacer);
    this.element = h("div", { class: "grid", role: "table", "aria-label": label },
      h("div", { role: "rowgroup" }, this.head), this.scroller);
    this.scroller.addEventListener("scroll", () => this.draw(), { passive: true });
    this.element.addEventListener("keydown", (event) => this.press(event));
    this.resized = new ResizeObserver(() => this.draw());
    this.resized.observe(this.scroller);
    this.first = 0;
  }

  close() {
    this.resized.disconnect();
  }

  sorted(id, descending) {
    this.columns.forEach((column, i) => {
      const cell = this.headers[i];
      if (column.id === id) cell.setAttribute("aria-sort", descending ? "descending" : "ascending");
      else cell.removeAttribute("aria-sort");
    });
  }

  // Shows these items; `changed` are the keys of those that flash.
  show(items, changed = []) {
    this.items = items;
    const now = performance.now();
    for (const key of changed) this.flashed.set(key, now);
    this.element.setAttribute("aria-rowcount", String(items.length + 1));
    this.draw();
  }

  get rowHeight() {
    // A narrow screen has two lines a row; the style sheet says how high that is.
    return parseFloat(getComputedStyle(this.element).getPropertyValue("--row")) || 44;
  }

  draw() {
    const height = this.rowHeight;
    this.spacer.style.height = `${this.items.length * height}px`;
    const first = Math.max(0, Math.floor(this.scroller.scrollTop / height) - SPARE_ROWS);
    const sight = Math.ceil(this.scroller.clientHeight / height) + 2 * SPARE_ROWS;
    const last = Math.min(this.items.length, first + sight);
    while (this.shown.length < last - first) this.shown.push(this.makeRow());
    while (this.shown.length > last - first) this.shown.pop().row.remove();
    this.first = first;
    for (let i = first; i < last; i++) this.drawRow(this.shown[i - first], i, height);
  }

  makeRow() {
    const cells = this.columns.map((column, i) => h(i === 0 ? "a" : "div", {
      class: `cell ${column.id} ${column.numeric ? "number" : ""}`,
      "data-label": column.label,
    }));
    const row = h("div", { class: "grid-row", role: "row" }, cells.map((cell) =>
      cell.tagName === "A" ? h("div", { role: "cell", class: "cell-link" }, cell) : cell));
    cells.slice(1).forEach((cell) => cell.setAttribute("role", "cell"));
    row.addEventListener("click", (event) => {
      if (!event.target.closest("a") && !getSelection().toString()) cells[0].click();
    });
    this.spacer.append(row);
    return { row, cells, flashedAt: 0 };
  }

  drawRow(shown, index, height) {
    const item = this.items[index];
    const { row, cells } = shown;
    row.style.transform = `translateY(${index * height}px)`;
    row.setAttribute("aria-rowindex", String(index + 2));
    cells[0].setAttribute("href", this.link(item));
    this.columns.forEach((column, i) => {
      const value = column.value(item);
      if (value instanceof Node) cells[i].replaceChildren(value);
      else text(cells[i], value);
      if (column.kind) cells[i].dataset.kind = column.kind(item);
    });
    const flashedAt = this.flashed.get(this.key(item)) ?? 0;
    if (flashedAt !== shown.flashedAt) {
      shown.flashedAt = flashedAt;
      row.classList.remove("flash-a", "flash-b");
      if (flashedAt && performance.now() - flashedAt < 1000) {
        shown.odd = !shown.odd;
        row.classList.add(shown.odd ? "flash-a" : "flash-b");
      }
    }
  }

  press(event) {
    const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: 10, PageUp: -10, Home: -Infinity, End: Infinity };
    const step = steps[event.key];
    const at = this.shown.findIndex(({ row }) => row.contains(document.activeElement));
    if (step === undefined || at < 0) return;
    event.preventDefault();
    const wanted = Math.min(this.items.length - 1, Math.max(0, this.first + at + step));
    const height = this.rowHeight;
    const top = wanted * height;
    if (top < this.scroller.scrollTop) this.scroller.scrollTop = top;
    else if (top + height > this.scroller.scrollTop + this.scroller.clientHeight) {
      this.scroller.scrollTop = top + height - this.scroller.clientHeight;
    }
    this.draw();
    this.shown[wanted - this.first]?.cells[0].focus({ preventScroll: true });
  }
}
