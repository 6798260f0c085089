// Tills and suppliers of a location: how each is, what is missing, what was set aside.

import { call, get, pages } from "./api.js";
import { ask, tell } from "./dialogs.js";
import { ago, badge, count, duration, empty, h, replace, table, tile, when } from "./dom.js";
import { locationTabs, locationsOf } from "./stock.js";
import * as stream from "./stream.js";

const POLL_MS = 3_000;
const OFFLINE_ENTRIES = 200;
const KINDS = { live: "good", degraded: "bad", catching_up: "warn" };
const DEFAULTS = { late_hours: 72, heartbeat_seconds: 300, gap_grace_seconds: 600, on_shortfall: "flag", when_offline: "buffer", confidence_percent: 99 };
const NAMES = { late_hours: "Events may be late by", heartbeat_seconds: "Silent after", gap_grace_seconds: "A gap alarms after", on_shortfall: "On a shortfall", when_offline: "While tills are silent", confidence_percent: "Buffer covers" };
const UNITS = { late_hours: " hours", heartbeat_seconds: " s", gap_grace_seconds: " s", confidence_percent: " % of cases" };

export async function open(root, context) {
  const locations = await locationsOf(context);
  const place = context.path[0] ?? locations[0];
  if (place === undefined) {
    replace(root, h("h1", {}, "Feeds"), empty("No location yet"));
    return null;
  }
  const shelf = `${context.base}/locations/${encodeURIComponent(place)}`;
  let alive = true;
  const sources = h("section", { class: "card" });
  const offline = h("section", { class: "card" });
  const aside = h("section", { class: "card" });
  const policy = h("section", { class: "card" });
  replace(root, h("div", { class: "title-bar" }, h("h1", {}, "Feeds")), locationTabs(context, "feeds", locations, place),
    sources, aside, h("div", { class: "pair" }, offline, policy));

  async function read() {
    const [feeds, quarantine, own, merchants, told] = await Promise.all([
      get(`${shelf}/feeds`), get(`${shelf}/quarantine`, { limit: 100 }), get(`${shelf}/feed-policy`),
      get(`${context.base}/feed-policy`), get(`${context.base}/ledger`, { location: place, kind: "offline", limit: OFFLINE_ENTRIES }),
    ]);
    if (!alive) return;
    context.polled(true);
    stream.paint(() => {
      if (!alive) return;
      drawSources(feeds);
      drawAside(quarantine, feeds.quarantined);
      drawPolicy(own, merchants);
      drawOffline(told.data);
    });
  }

  function drawSources(feeds) {
    replace(sources, h("h2", {}, "Sources"), feeds.data.length === 0
      ? empty("No till or supplier has sent anything here", "Whoever sends an event or a heartbeat is listed.")
      : table("Sources", ["Source", "State", "Heard", ":Lag", ":Up to", ":Missing", "Gaps"], feeds.data.map((one) => [
        one.source, badge(KINDS[one.state], one.state.replace("_", " ")), ago(one.heard_at),
        one.lag_seconds === null ? "–" : duration(one.lag_seconds * 1000),
        one.counts ? count(one.watermark) : "–", count(one.missing),
        one.gaps.length === 0 ? "none" : h("span", {}, one.gaps.slice(0, 5).map((gap) =>
          h("span", { class: "note" }, gap.first === gap.last ? `${gap.first}` : `${gap.first}–${gap.last}`, " since ", when(gap.since), " ")),
        context.can("feed") && h("button", { type: "button", class: "small", onclick: () => giveUp(one) }, "Give up")),
      ])));
  }

  function giveUp(one) {
    ask({ title: `Give up on what ${one.source} did not send`, danger: true, typed: "give up", action: "Give up",
      explain: "Events up to this number that have not come are taken for lost. One that comes after all is then set aside.",
      fields: [{ name: "through", label: "Up to number", type: "number", required: true, min: 1, value: String(one.gaps.at(-1).last) }],
      submit: async (values) => {
        await call("POST", `${shelf}/feeds/${encodeURIComponent(one.source)}/skip`, { body: values });
        await read();
        return "Given up";
      } });
  }

  function drawAside(page, total) {
    replace(aside, h("h2", {}, "Quarantine ", total > 0 && badge("warn", count(total))), page.data.length === 0 ? empty("Nothing is set aside")
      : table("Quarantine", ["Event", "Why", "From", "About", "Set aside", ""], page.data.map((one) => [
        h("span", { class: "id" }, one.event_id), one.why, one.source,
        one.raw ? h("code", {}, one.raw.slice(0, 200)) : `${one.type} ${one.quantity ?? ""} × ${one.sku ?? ""}`,
        when(one.at),
        context.can("feed") && h("span", { class: "actions" },
          h("button", { type: "button", class: "small", onclick: () => decide(one, "retry") }, "Retry"),
          h("button", { type: "button", class: "small", onclick: () => ask({ title: "Drop the event", danger: true, action: "Drop",
            explain: `${one.event_id} of ${one.source} is given up and never booked.`, submit: () => decide(one, "drop") }) }, "Drop")),
      ])));
  }

  async function decide(one, verb) {
    try {
      const made = await call("POST", `${shelf}/quarantine/${one.id}/${verb}`);
      tell(made.why ? `${one.event_id}: ${made.verdict}, ${made.why}` : `${one.event_id}: ${made.verdict}`);
    } catch (error) {
      tell(error.message, "bad");
    }
    await read();
  }

  function drawPolicy(own, merchants) {
    replace(policy, h("h2", {}, "Policy"), h("dl", { class: "facts" }, Object.keys(DEFAULTS).map((name) => {
      const by = name in own ? "this location" : name in merchants ? "the merchant" : "default";
      return [h("dt", {}, NAMES[name]), h("dd", {}, `${own[name] ?? merchants[name] ?? DEFAULTS[name]}${UNITS[name] ?? ""} `, h("span", { class: "note" }, `(${by})`))];
    })));
  }

  // Each entry, the newest first, has the rows that it changed; together they say what is held back.
  function drawOffline(entries) {
    const entry = entries[0];
    const state = entry?.details.state ?? "live";
    const units = new Map();
    for (const { details } of entries) {
      if (details.state === "live") break;
      for (const one of details.held_back) if (!units.has(one.sku)) units.set(one.sku, one.quantity);
    }
    const held = [...units].map(([sku, quantity]) => ({ sku, quantity })).filter((one) => one.quantity > 0)
      .sort((a, b) => b.quantity - a.quantity);
    replace(offline, h("h2", {}, "Tills ", badge(KINDS[state], state.replace("_", " "))),
      state === "live" ? h("p", {}, "All that send heartbeats are heard of; nothing is held back.")
        : [h("p", {}, `Last heard of ${ago(entry.details.since)}. What they have probably sold is not promised.`),
          h("dl", { class: "tiles" }, tile("Units held back", count(held.reduce((sum, one) => sum + one.quantity, 0))), tile("Rows", count(held.length))),
          held.length > 0 && table("Held back", ["SKU", ":Units"], held.slice(0, 50).map((one) => [
            h("a", { href: context.address("stock", place, one.sku) }, one.sku), count(one.quantity)]))]);
  }

  await read();
  const timer = setInterval(() => {
    if (!document.hidden && !document.querySelector("dialog[open]")) read().catch(() => context.polled(false));
  }, POLL_MS);
  return { close() { alive = false; clearInterval(timer); } };
}
