// How the service is, for a key of the whole platform, and how a merchant's locations are.

import { Problem, get } from "./api.js";
import { Chart } from "./charts.js";
import { ago, badge, count, duration, empty, h, replace, table, text, tile } from "./dom.js";
import * as stream from "./stream.js";

const POLL_MS = 2_000;
const KEPT_MS = 5 * 60_000;

// The upper bound below which a share of what was counted between two answers lies, in ms.
function percentile(before, after, share) {
  const earlier = new Map(before.map((one) => [one.seconds, one.count]));
  const counts = after.map((one) => ({ seconds: one.seconds, count: one.count - (earlier.get(one.seconds) ?? 0) }));
  const total = counts.at(-1)?.count ?? 0;
  if (total <= 0) return null;
  let lower = { seconds: 0, count: 0 };
  for (const bucket of counts) {
    if (bucket.count >= share * total) {
      if (bucket.seconds === null) return lower.seconds * 1000;
      const part = (share * total - lower.count) / Math.max(1, bucket.count - lower.count);
      return (lower.seconds + part * (bucket.seconds - lower.seconds)) * 1000;
    }
    lower = bucket;
  }
  return null;
}

const STATES = { live: "good", degraded: "bad", catching_up: "warn" };

export async function open(root, context) {
  const platform = context.session.merchant === null;
  let alive = true;
  let before = null;
  let rates = null;
  let failures = 0;
  const points = [];

  const alerts = h("div", {});
  const traffic = h("dl", { class: "tiles" });
  const health = h("dl", { class: "tiles" });
  const places = h("section", { class: "card" });
  const consumers = h("section", { class: "card" });
  const rate = new Chart({ label: "Reserves and refusals a second", height: 180, unit: "/s",
    series: [{ id: "reserves", label: "Reserves" }, { id: "refusals", label: "Sold-out refusals" }] });
  const latency = new Chart({ label: "Reserve latency, 95th percentile", height: 180, unit: " ms",
    series: [{ id: "p95", label: "Reserve p95, ms" }] });

  replace(root,
    h("div", { class: "title-bar" }, h("h1", {}, "Overview")), alerts,
    platform && [
      h("section", { class: "card", "aria-label": "Traffic" }, h("h2", {}, "Traffic"), traffic,
        h("div", { class: "pair" }, rate.element, latency.element)),
      h("section", { class: "card", "aria-label": "Health" }, h("h2", {}, "Health"), health),
    ],
    places, platform && consumers);

  function drawPlatform(now) {
    const at = Date.parse(now.at);
    if (before !== null) {
      const seconds = (at - Date.parse(before.at)) / 1000;
      const { traffic: then } = before;
      if (seconds > 0 && now.traffic.requests >= then.requests) {
        rates = {
          at, reserves: (now.traffic.reserves - then.reserves) / seconds,
          refusals: (now.traffic.sold_out - then.sold_out) / seconds,
          failed: (now.traffic.failed - then.failed) / seconds,
          p95: percentile(then.reserve_seconds, now.traffic.reserve_seconds, 0.95),
        };
        points.push(rates);
        while (points.length && points[0].at < at - KEPT_MS) points.shift();
      }
    }
    before = now;
    const { holds, archive, store, sources, webhooks } = now;
    const unsafe = store.unsafe.map((words) => h("div", { class: "alert bad", role: "alert" },
      badge("bad", "Unsafe durability"), h("p", {}, words)));
    const others = now.warnings.filter((words) => !store.unsafe.includes(words));
    replace(alerts, unsafe, others.map((words) => h("div", { class: "alert" }, h("p", {}, words))));
    const shown = (value, digits = 1) => (value === null || value === undefined ? "–" : value.toFixed(digits));
    replace(traffic,
      tile("Reserves a second", shown(rates?.reserves), { id: "reserves" }),
      tile("Reserve p95", rates?.p95 == null ? "–" : `${shown(rates.p95)} ms`, { id: "p95" }),
      tile("Sold-out refusals a second", shown(rates?.refusals), { id: "refusals" }),
      tile("Failed a second", shown(rates?.failed), { kind: rates?.failed > 0 ? "bad" : "" }),
      tile("Live holds", count(holds.live), { id: "holds", note: holds.live ? `oldest ${duration(holds.oldest_ms)}` : null }),
      tile("Open streams", count(now.subscribers)));
    const findings = Object.values(now.findings).reduce((sum, one) => sum + one, 0);
    const behind = now.consumers.reduce((most, one) => Math.max(most, one.behind_ms), 0);
    replace(health,
      tile("Store", store.server ?? "away", { note: store.unsafe.length ? "may lose acknowledged writes" : "writes are on disk before the answer", kind: store.unsafe.length || store.aof_failing ? "bad" : "" }),
      tile("Store memory", bytes(store.memory_used_bytes), { note: store.memory_limit_bytes ? `of ${bytes(store.memory_limit_bytes)}` : null }),
      tile("Archive", archive.state, { id: "archive", kind: archive.state === "failing" ? "bad" : "", note: archive.state === "off" ? "the ledger is not trimmed" : `${count(archive.archived)} of ${count(archive.sequence)} operations, ${duration(archive.behind_ms)} behind` }),
      tile("Shortfalls", count(now.shortfalls), { id: "shortfalls", kind: now.shortfalls ? "bad" : "" }),
      tile("Feeds", `${count(sources.live)} live`, { kind: sources.degraded ? "warn" : "", note: `${count(sources.degraded)} silent, ${count(sources.catching_up)} catching up, ${count(sources.missing)} events missing` }),
      tile("Event lag", duration(behind), { id: "lag", note: `${count(now.consumers.length)} consumers` }),
      tile("Webhooks", `${count(webhooks.active)} active`, { kind: webhooks.failing || webhooks.disabled ? "warn" : "", note: `${count(webhooks.waiting)} waiting, ${count(webhooks.dead)} dead letters` }),
      tile("Audit", findings ? `${count(findings)} findings` : "No findings", { kind: findings ? "bad" : "", note: now.audited_at ? `last ${ago(now.audited_at)}` : "not yet done" }),
      tile("Holds swept", now.sweeper, { kind: now.sweeper === "running" ? "" : "bad", note: holds.overdue ? `${count(holds.overdue)} due` : null }));
    rate.show(points, at - KEPT_MS, at);
    latency.show(points, at - KEPT_MS, at);
    replace(consumers, h("h2", {}, "Readers of the ledger"), now.consumers.length === 0 ? empty("Nobody reads the ledger")
      : table("Readers of the ledger", ["Reader", ":Operations behind", ":Oldest"], now.consumers.map((one) => [one.name, count(one.behind_operations), one.behind_operations ? duration(one.behind_ms) : "–"])));
  }

  function drawPlaces(now) {
    replace(places, h("h2", {}, `Locations of ${context.merchant}`), now.data.length === 0 ? empty("No location yet")
      : table("Locations", ["Location", "Tills", ":Open reservations", ":Oldest", ":Quarantined"], now.data.map((one) => [
        h("a", { href: context.address("stock", one.location) }, one.location),
        badge(STATES[one.state] ?? "", one.state.replace("_", " ")),
        count(one.open_reservations),
        one.oldest_at ? duration(Date.parse(now.at) - Date.parse(one.oldest_at)) : "–",
        one.quarantined ? h("a", { href: context.address("feeds", one.location) }, count(one.quarantined)) : "0",
      ])),
    now.has_more && h("p", { class: "note" }, "The first 100 by name."));
  }

  async function poll() {
    if (!alive || document.hidden) return;
    try {
      const [service, merchant] = await Promise.all([
        platform ? get("/v1/overview") : null, get(`${context.base}/overview`)]);
      if (!alive) return;
      failures = 0;
      context.polled(true);
      stream.paint(() => {
        if (!alive) return;
        if (service) drawPlatform(service);
        drawPlaces(merchant);
      });
    } catch (error) {
      if (!alive) return;
      if (failures++ === 0 && before === null && error instanceof Problem) throw error;
      context.polled(false);
    }
  }

  await poll();
  const timer = setInterval(() => poll().catch(() => {}), POLL_MS);
  const seen = () => { if (!document.hidden) poll().catch(() => {}); };
  document.addEventListener("visibilitychange", seen);
  return { close() {
    alive = false;
    clearInterval(timer);
    document.removeEventListener("visibilitychange", seen);
    rate.close();
    latency.close();
  } };
}

function bytes(value) {
  if (!value) return "–";
  const units = ["B", "kB", "MB", "GB", "TB"];
  const power = Math.min(units.length - 1, Math.floor(Math.log10(value) / 3));
  return `${(value / 1000 ** power).toFixed(power ? 1 : 0)} ${units[power]}`;
}
