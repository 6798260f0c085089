// The shell: who is signed in, which merchant, which page; the pages do the rest.

import { Problem, Unreachable, call, get, pages, signedOut, whenSignedOut } from "./api.js";
import { problemBox, toasts } from "./dialogs.js";
import { duration, h, replace, text } from "./dom.js";
import * as stream from "./stream.js";
import * as audit from "./audit.js";
import * as feeds from "./feeds.js";
import * as keys from "./keys.js";
import * as overview from "./overview.js";
import * as reservations from "./reservations.js";
import * as row from "./row.js";
import * as stock from "./stock.js";
import * as webhooks from "./webhooks.js";

const isPlatform = (who) => who.merchant === null;

const PAGES = [
  { id: "overview", label: "Overview", open: overview.open },
  { id: "stock", label: "Stock", open: (root, context) =>
    (context.path.length > 1 ? row : stock).open(root, context) },
  { id: "reservations", label: "Reservations", open: reservations.open },
  { id: "feeds", label: "Feeds", open: feeds.open },
  { id: "webhooks", label: "Webhooks", needs: (who) => who.role === "admin", open: webhooks.open },
  { id: "audit", label: "Audit", needs: isPlatform, open: audit.open },
  { id: "keys", label: "Keys", needs: (who) => isPlatform(who) && who.role === "admin", open: keys.open },
];

const RANK = { read: ["read"], reserve: ["read", "reserve"], feed: ["read", "feed"],
  admin: ["read", "reserve", "feed", "admin"] };

const app = document.getElementById("app");
const main = h("main", { id: "main", tabindex: "-1" });
const banner = h("div", { id: "banner", role: "status", "aria-live": "polite", hidden: true });
const nav = h("nav", { "aria-label": "Pages", id: "nav" });
const menu = h("button", { type: "button", class: "menu", "aria-controls": "nav", "aria-expanded": "false",
  onclick: () => openMenu(!nav.classList.contains("open")) }, "Menu");
const where = h("div", { class: "where" });
const who = h("div", { class: "who" });

let session = null;
let merchants = [];
let page = { close() {} };
let turn = 0;

// Themes

const THEMES = { system: "Auto", light: "Light", dark: "Dark" };

function theme(wanted) {
  if (wanted === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = wanted;
  localStorage.setItem("holdfast.theme", wanted);
}
const kept = localStorage.getItem("holdfast.theme") ?? "system";
theme(kept in THEMES ? kept : "system");

function themePicker() {
  return h("select", { "aria-label": "Colours", onchange: (event) => theme(event.target.value) },
    Object.entries(THEMES).map(([id, label]) =>
      h("option", { value: id, selected: id === (localStorage.getItem("holdfast.theme") ?? "system") }, label)));
}

// Addresses: #/<merchant>/<page>/<more>?<query>

export function address(...parts) {
  return `#/${parts.map((part) => encodeURIComponent(part)).join("/")}`;
}

function here() {
  const [path, query = ""] = location.hash.replace(/^#\/?/, "").split("?");
  let parts;
  try {
    parts = path.split("/").filter(Boolean).map(decodeURIComponent);
  } catch {
    parts = [];
  }
  return { parts, query: new URLSearchParams(query) };
}

// The shell

function openMenu(open) {
  nav.classList.toggle("open", open);
  menu.setAttribute("aria-expanded", String(open));
}

function shell() {
  replace(app,
    h("header", { class: "top" },
      h("a", { class: "brand", href: address(merchantHere() ?? "", PAGES[0].id) },
        h("img", { src: "/console/assets/icon.svg", alt: "", width: "24", height: "24" }), "Holdfast"),
      where, menu, who),
    h("div", { class: "frame" }, nav, h("div", { class: "content" }, banner, main)),
    toasts());
  replace(who, themePicker(),
    h("span", { class: "role", title: session.label || session.actor }, session.role),
    h("button", { type: "button", class: "quiet", onclick: signOut }, "Sign out"));
}

function merchantHere() {
  return here().parts[0] ?? session?.merchant ?? merchants[0];
}

function drawNav(merchant, active) {
  replace(nav, PAGES.filter((one) => !one.needs || one.needs(session)).map((one) => h("a", {
    href: address(merchant, one.id), "aria-current": one.id === active ? "page" : null,
    onclick: () => openMenu(false),
  }, one.label)));
  if (session.merchant !== null || merchants.length < 2) {
    replace(where, h("span", { class: "merchant" }, merchant));
    return;
  }
  const names = merchants.includes(merchant) ? merchants : [merchant, ...merchants];
  replace(where, h("select", {
    "aria-label": "Merchant", onchange: (event) => { location.hash = address(event.target.value, active); },
  }, names.map((name) => h("option", { value: name, selected: name === merchant }, name))));
}

async function show() {
  if (session === null) return;
  const mine = ++turn;
  page.close?.();
  page = { close() {} };
  stream.close();
  stream.forgetPaints();
  const { parts, query } = here();
  const merchant = session.merchant ?? parts[0] ?? merchants[0];
  if (merchant === undefined) {
    replace(main, h("div", { class: "empty" }, h("p", { class: "empty-title" }, "No stock yet"),
      h("p", {}, "As soon as a merchant has booked a movement it is here.")));
    return;
  }
  const found = PAGES.find((one) => one.id === parts[1] && (!one.needs || one.needs(session)));
  if (parts[0] !== merchant || found === undefined) {
    location.replace(address(merchant, PAGES[0].id));
    return;
  }
  drawNav(merchant, found.id);
  document.title = `${found.label} · ${merchant} · Holdfast`;
  const context = {
    merchant, session, query, path: parts.slice(2),
    base: `/v1/merchants/${encodeURIComponent(merchant)}`,
    can: (role) => RANK[session.role].includes(role),
    address: (...more) => address(merchant, ...more),
    // A page that was left while it still opened must not take the stream of the one that is shown.
    listen: (wanted, on) => { if (mine === turn) stream.listen(wanted, on); },
    polled: (well) => { if (mine === turn) stream.polled(well); },
    // Changes the query without another entry in the history, and without opening the page anew.
    setQuery: (values) => {
      for (const [name, value] of Object.entries(values)) {
        if (value) query.set(name, value);
        else query.delete(name);
      }
      const said = query.toString();
      history.replaceState(null, "", location.hash.split("?")[0] + (said ? `?${said}` : ""));
    },
  };
  const root = h("div", { class: `page page-${found.id}` });
  replace(main, root);
  try {
    const opened = await found.open(root, context);
    if (mine === turn) page = opened ?? page;
    else opened?.close?.();
  } catch (error) {
    if (mine !== turn || error.name === "AbortError") return;
    replace(root, h("h1", {}, found.label), problemBox(error),
      h("button", { type: "button", class: "primary", onclick: show }, "Try again"));
    if (error instanceof Unreachable) retrySoon(mine);
  }
}

function retrySoon(mine) {
  setTimeout(async () => {
    if (mine !== turn) return;
    const alive = await fetch("/livez").then((answer) => answer.ok, () => false);
    if (mine !== turn) return;
    if (alive) show();
    else retrySoon(mine);
  }, 2000);
}

addEventListener("hashchange", () => {
  show();
  main.focus({ preventScroll: true });
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "/" || event.target.closest?.("input, select, textarea, dialog")) return;
  const box = main.querySelector("input[type=search]");
  if (box) {
    event.preventDefault();
    box.focus();
  }
});

// How fresh what is on screen is

const PHASES = {
  connecting: "Connecting to the live stream",
  lost: "Disconnected: trying again by itself",
  paused: "Paused while hidden",
};

function drawBanner() {
  const silent = Date.now() - stream.state.heardAt;
  const stale = stream.state.phase === "live" && silent > 20_000;
  const phase = stale ? "stale" : stream.state.phase;
  document.body.dataset.live = phase;
  const shown = phase === "lost" || stale || (phase === "connecting" && stream.state.heardAt && silent > 3000);
  banner.hidden = !shown;
  if (!shown) return;
  banner.className = stale ? "warn" : "bad";
  const age = stream.state.heardAt ? ` What is here is ${duration(silent)} old.` : "";
  text(banner, (stale ? "Nothing heard for a while: this may be stale." : `${PHASES[phase]}.`) + age);
}
stream.watch(drawBanner);
setInterval(drawBanner, 1000);

// Signing in and out. The browser remembers that somebody did, and nothing of whom or by what.

const SIGNED_IN = "holdfast.signed-in";

async function signOut() {
  await call("DELETE", "/v1/session").catch(() => {});
  signedOut();
}

whenSignedOut(() => {
  session = null;
  localStorage.removeItem(SIGNED_IN);
  turn++;
  page.close?.();
  stream.close();
  signInPage("Your session is over. Sign in again to go on.");
});

function signInPage(note) {
  document.title = "Sign in · Holdfast";
  const faults = h("div", {});
  const key = h("input", { id: "key", name: "key", type: "password", required: true, autocomplete: "off",
    spellcheck: "false", placeholder: "hfk_…" });
  const form = h("form", { class: "card sign-in" },
    h("img", { src: "/console/assets/icon.svg", alt: "", width: "48", height: "48" }),
    h("h1", {}, "Holdfast console"),
    note && h("p", { class: "note" }, note),
    h("div", { class: "field" }, h("label", { for: "key" }, "API key"), key,
      h("p", { class: "note" }, "The first one is in data/admin.key where the service was started. It is ",
        "handed in once and not kept in the browser.")),
    faults, h("button", { type: "submit", class: "primary" }, "Sign in"));
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    try {
      await begin(await call("POST", "/v1/session", { body: { key: key.value.trim() } }));
    } catch (error) {
      replace(faults, problemBox(error instanceof Problem && error.status === 401
        ? new Error("This is no valid key. Look for missing characters, or ask who made it whether it was revoked.")
        : error));
      key.focus();
    }
  });
  replace(app, h("main", { id: "main", class: "centre" }, form));
  key.focus();
}

async function begin(opened) {
  session = opened;
  localStorage.setItem(SIGNED_IN, "yes");
  if (session.merchant === null) {
    const { items } = await pages("/v1/merchants", {}, { most: 500 });
    merchants = items.map((one) => one.merchant);
  } else merchants = [session.merchant];
  shell();
  await show();
}

async function start() {
  if (!localStorage.getItem(SIGNED_IN)) {
    signInPage("");
    return;
  }
  try {
    await begin(await get("/v1/session"));
  } catch (error) {
    if (error instanceof Problem && error.status === 401) {
      signInPage("");
      return;
    }
    replace(app, h("main", { id: "main", class: "centre" }, h("div", { class: "card" },
      h("h1", {}, "Holdfast console"), problemBox(error), h("p", { class: "note" }, "Trying again by itself."))));
    setTimeout(start, 2000);
  }
}

start();
