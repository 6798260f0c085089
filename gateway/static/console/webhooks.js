// Webhooks: the endpoints and how they do, their deliveries, and what was given up.

import { call, change, get } from "./api.js";
import { ask, tell } from "./dialogs.js";
import { ago, badge, count, empty, h, replace, table, tile, when } from "./dom.js";

const POLL_MS = 3_000;
const KINDS = { active: "good", paused: "warn", disabled: "bad" };

export async function open(root, context) {
  const all = `${context.base}/webhooks`;
  let alive = true;
  const [id] = context.path;
  const body = h("div", {});
  replace(root, body);

  async function read() {
    if (id === undefined) {
      const page = await get(all);
      drawAll(page.data);
    } else {
      const path = `${all}/${encodeURIComponent(id)}`;
      const [one, attempts, dead] = await Promise.all([
        get(path), get(`${path}/attempts`, { limit: 50 }), get(`${path}/dead-letters`, { limit: 50 })]);
      drawOne(path, one, attempts, dead);
    }
    context.polled(true);
  }

  function drawAll(found) {
    if (!alive) return;
    replace(body, h("div", { class: "title-bar" }, h("h1", {}, "Webhooks"),
      h("button", { type: "button", class: "primary", onclick: create }, "Add an endpoint")),
    h("section", { class: "card" }, found.length === 0 ? empty("No endpoint yet", "Events are then sent to a URL of yours as they happen.")
      : table("Webhooks", ["Endpoint", "Status", ":Waiting", ":Dead letters", ":Failures", "Delivered"], found.map((one) => [
        h("span", {}, h("a", { href: context.address("webhooks", one.id) }, one.url), one.description && h("span", { class: "note" }, ` ${one.description}`)),
        badge(KINDS[one.status], one.status), count(one.waiting), count(one.dead_letters), count(one.failures),
        one.delivered_at ? ago(one.delivered_at) : "never",
      ]))));
  }

  function create() {
    ask({ title: "Add an endpoint", action: "Add",
      fields: [{ name: "url", label: "URL", type: "url", required: true, hint: "An https address in the public internet." }, { name: "description", label: "Description" }],
      submit: async (values) => {
        const made = await change("POST", all, values);
        showSecret(made.secret);
        await read();
        return "Added";
      } });
  }

  function showSecret(secret) {
    ask({ title: "The signing secret", action: "I have kept it", explain: "It is not shown again.",
      fields: [{ name: "secret", label: "Secret", value: secret }], submit: async () => "" });
  }

  function drawOne(path, one, attempts, dead) {
    if (!alive) return;
    replace(body,
      h("p", { class: "crumbs" }, h("a", { href: context.address("webhooks") }, "Webhooks")),
      h("div", { class: "title-bar" }, h("h1", {}, one.url, " ", badge(KINDS[one.status], one.status)),
        h("div", { class: "actions" },
          h("button", { type: "button", onclick: () => test(path) }, "Send a test"),
          h("button", { type: "button", onclick: () => pause(path, one) }, one.status === "active" ? "Pause" : "Resume"))),
      h("section", { class: "card" }, h("dl", { class: "tiles" },
        tile("Waiting", count(one.waiting)), tile("Dead letters", count(one.dead_letters), { id: "dead", kind: one.dead_letters ? "bad" : "" }),
        tile("Dropped", count(one.dropped)), tile("Failures in a row", count(one.failures), { note: one.failing_since ? `since ${ago(one.failing_since)}` : null }),
        tile("Delivered", one.delivered_at ? ago(one.delivered_at) : "never")),
      h("p", { class: "note" }, `Events: ${one.types.join(", ") || "all"}. Locations: ${one.locations.join(", ") || "all"}. SKUs: ${one.skus.join(", ") || "all"}.`)),
      h("section", { class: "card" }, h("h2", {}, "Deliveries"), attempts.data.length === 0 ? empty("Nothing was sent yet")
        : table("Deliveries", ["When", "Event", "Outcome", ":Status", ":Took", ":Attempt", "Next"], attempts.data.map((made) => [
          when(made.at), made.type, badge(made.outcome === "delivered" ? "good" : "bad", made.outcome.replaceAll("_", " ")), made.status ?? "–",
          `${count(made.duration_ms)} ms`, count(made.attempt), made.next_attempt_at ? when(made.next_attempt_at) : "–"]))),
      h("section", { class: "card" },
        h("div", { class: "title-bar" }, h("h2", {}, "Dead letters"), dead.data.length > 0 && h("button", { type: "button", onclick: () => replay(path) }, "Replay all")),
        dead.data.length === 0 ? empty("No event was given up")
          : table("Dead letters", ["Given up", "Event", "About", "Why", ":Attempts", ""], dead.data.map((letter) => [
            when(letter.given_up_at), letter.event.type, letter.event.subject, letter.reason, count(letter.attempts),
            h("button", { type: "button", class: "small", onclick: () => replay(path, letter.id) }, "Replay")]))));
  }

  const done = (words) => async (doing) => {
    try {
      tell(words(await doing));
    } catch (error) {
      tell(error.message, "bad");
    }
    await read();
  };
  const test = (path) => done((made) => (made.delivered ? `Delivered in ${made.duration_ms} ms` : `Not delivered: ${made.outcome}`))(call("POST", `${path}/test`));
  const replay = (path, one) => done((made) => `${count(made.replayed)} on their way`)(call("POST", `${path}/dead-letters/replay`, { body: one ? { ids: [one] } : {} }));
  const pause = (path, one) => done((made) => `Now ${made.status}`)(call("PATCH", path, { body: { status: one.status === "active" ? "paused" : "active" } }));

  await read();
  const timer = setInterval(() => {
    if (!document.hidden && !document.querySelector("dialog[open]")) read().catch(() => context.polled(false));
  }, POLL_MS);
  return { close() { alive = false; clearInterval(timer); } };
}
