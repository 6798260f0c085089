// API keys: who may call, for keys of the whole platform.

import { call, get } from "./api.js";
import { ask } from "./dialogs.js";
import { badge, empty, h, replace, table, when } from "./dom.js";

export async function open(root, context) {
  async function read() {
    const { data } = await get("/v1/keys");
    const live = data.filter((one) => one.revoked_at === null);
    const old = data.filter((one) => one.revoked_at !== null);
    replace(root, h("div", { class: "title-bar" }, h("h1", {}, "Keys"),
      h("button", { type: "button", class: "primary", onclick: create }, "Make a key")),
    h("section", { class: "card" }, h("h2", {}, "In use"), list(live, true)),
    old.length > 0 && h("section", { class: "card" }, h("h2", {}, "Revoked"), list(old, false)));
  }

  function list(found, usable) {
    if (found.length === 0) return empty("None");
    return table(usable ? "Keys in use" : "Revoked keys", ["Key", "Role", "For", "Label", "Made", usable ? "" : "Revoked"], found.map((one) => [
      h("span", { class: "id" }, `key:${one.id}`), badge(one.role === "admin" ? "warn" : "", one.role),
      one.merchant ?? "the whole platform", one.label, when(one.created_at),
      !usable ? when(one.revoked_at) : one.id === context.session.key ? "this session"
        : h("button", { type: "button", class: "small", onclick: () => revoke(one) }, "Revoke"),
    ]));
  }

  function revoke(one) {
    ask({ title: `Revoke key:${one.id}`, danger: true, typed: "revoke", action: "Revoke",
      explain: "Whatever uses it is refused within two seconds, for good.",
      submit: async () => {
        await call("DELETE", `/v1/keys/${encodeURIComponent(one.id)}`);
        await read();
        return "Revoked";
      } });
  }

  function create() {
    ask({ title: "Make a key", action: "Make it",
      fields: [
        { name: "role", label: "Role", value: "read", options: [["read", "read: look at everything"], ["reserve", "reserve: checkouts"], ["feed", "feed: tills, suppliers, shop staff"], ["admin", "admin: everything"]] },
        { name: "merchant", label: "Merchant", value: context.merchant, hint: "Empty: the whole platform." },
        { name: "label", label: "Label", hint: "Whose it is, to know it again." }],
      submit: async (values) => {
        const made = await call("POST", "/v1/keys", { body: { ...values, merchant: values.merchant || null } });
        await read();
        ask({ title: "The new key", action: "I have kept it", explain: "It is not shown again.",
          fields: [{ name: "secret", label: "Key", value: made.secret }], submit: async () => "" });
        return "Made";
      } });
  }

  await read();
  return null;
}
