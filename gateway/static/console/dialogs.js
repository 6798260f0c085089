// Dialogs: a form, and a confirmation that is typed. Both say what became of it where it was asked.

import { Problem } from "./api.js";
import { h, replace } from "./dom.js";

const live = h("div", { class: "toasts", role: "status", "aria-live": "polite" });

export function toasts() {
  return live;
}

export function tell(message, kind = "good") {
  const toast = h("p", { class: `toast ${kind}` }, message);
  live.append(toast);
  setTimeout(() => toast.remove(), 6000);
}

export function problemBox(error) {
  const lines = error instanceof Problem ? error.lines : [error.message];
  return h("div", { class: "problem", role: "alert" }, lines.map((line) => h("p", {}, line)),
    error.requestId && h("p", { class: "note" }, `Request ${error.requestId}`));
}

// Fields are {name, label, type, required, min, value, hint, options}, or {name, element, read} of an
// element of one's own. `read()` and `submit(values)` may throw.
export function ask({ title, explain, fields = [], action, danger = false, typed, submit }) {
  const faults = h("div", {});
  const inputs = fields.map((field) => ({ field, input: field.element ?? input(field) }));
  const word = typed && h("input", {
    id: "typed", name: "typed", autocomplete: "off", autocapitalize: "off", spellcheck: "false",
    required: true,
  });
  const send = h("button", { type: "submit", class: danger ? "danger" : "primary", disabled: Boolean(typed) }, action);
  word?.addEventListener("input", () => { send.disabled = word.value.trim().toLowerCase() !== typed; });
  const form = h("form", { method: "dialog" },
    h("h2", { id: "dialog-title" }, title),
    explain && h("p", {}, explain),
    inputs.map(({ field, input: element }) => field.element ?? h("div", { class: "field" },
      h("label", { for: element.id }, field.label), element,
      field.hint && h("p", { class: "note" }, field.hint))),
    typed && h("div", { class: "field" },
      h("label", { for: "typed" }, "Type ", h("b", {}, typed), " to go ahead"), word),
    faults,
    h("div", { class: "buttons" },
      h("button", { type: "button", onclick: () => dialog.close() }, "Cancel"), send));
  const dialog = h("dialog", { "aria-labelledby": "dialog-title" }, form);
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    send.disabled = true;
    try {
      const values = Object.fromEntries(inputs.map(({ field, input: element }) => [field.name, value(field, element)]));
      const said = await submit(values);
      dialog.close();
      if (said) tell(said);
    } catch (error) {
      replace(faults, problemBox(error));
      send.disabled = false;
    }
  });
  const opener = document.activeElement;
  dialog.addEventListener("close", () => {
    dialog.remove();
    // The browser goes back to where it was opened, unless that was drawn anew meanwhile.
    if (!opener.isConnected) document.getElementById("main")?.focus({ preventScroll: true });
  });
  document.body.append(dialog);
  dialog.showModal();
  return dialog;
}

function value(field, element) {
  if (field.read) return field.read();
  return field.type === "number" ? (element.value === "" ? null : Number(element.value)) : element.value.trim();
}

function input({ name, type = "text", required, min, max, value, options }) {
  const id = `field-${name}`;
  if (options) {
    return h("select", { id, name }, options.map(([key, label]) =>
      h("option", { value: key, selected: key === value }, label)));
  }
  return h("input", {
    id, name, type, required, min, max, value: value ?? "", autocomplete: "off",
    step: type === "number" ? "1" : null, inputmode: type === "number" ? "numeric" : null,
  });
}
