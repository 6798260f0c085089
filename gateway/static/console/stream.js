// The live stream of what is on screen: one at a time, resumed where it broke off, paused while
// nobody looks. Read with fetch and not with EventSource, which hides the heartbeats that tell a
// dead connection from a quiet one, and cannot go on from a position after a pause.

import { signedOut } from "./api.js";

const SILENCE_MS = 35_000; // The service sends a sign of life every 15 s.
const FIRST_RETRY_MS = 500;
const MAX_RETRY_MS = 8_000;

let current = null;
const watchers = new Set();

export const state = { phase: "off", heardAt: 0 };

// `listener` is told of every change of `state`, whose phase is off, connecting, live, lost or paused.
export function watch(listener) {
  watchers.add(listener);
  listener(state);
}

function enter(phase) {
  state.phase = phase;
  for (const listener of watchers) listener(state);
}

// A page that asks again and again instead of listening says here how it went.
export function polled(well) {
  if (well) state.heardAt = Date.now();
  enter(well ? "live" : "lost");
}

// Begins to listen, in place of whatever was listened to before. `on` may have reset, rows, ready,
// resumed, event and refused.
export function listen(wanted, on) {
  close();
  current = new Stream(wanted, on);
  if (document.hidden) enter("paused");
  else current.open();
  return current;
}

export function close() {
  current?.close();
  current = null;
  enter("off");
}

document.addEventListener("visibilitychange", () => {
  if (current === null) return;
  if (document.hidden) {
    current.close();
    enter("paused");
  } else {
    current.open();
  }
});
addEventListener("online", () => current?.hurry());

class Stream {
  constructor(wanted, on) {
    this.wanted = wanted;
    this.on = on;
    this.position = null;
    this.retryMs = FIRST_RETRY_MS;
    this.abort = null;
  }

  close() {
    this.abort?.abort();
    this.abort = null;
    clearTimeout(this.timer);
    clearTimeout(this.silence);
  }

  hurry() {
    if (this.abort === null && !document.hidden) {
      clearTimeout(this.timer);
      this.open();
    }
  }

  async open() {
    this.close();
    const abort = new AbortController();
    this.abort = abort;
    enter(this.position === null ? "connecting" : "lost");
    try {
      await this.read(abort);
    } catch (error) {
      if (this.abort !== abort) return;
      if (error.refused) {
        this.abort = null;
        enter("off");
        this.on.refused?.(error.refused);
        return;
      }
    }
    if (this.abort !== abort) return;
    this.abort = null;
    clearTimeout(this.silence);
    enter("lost");
    // Drawn anew each time, so that not all come back at once.
    this.timer = setTimeout(() => this.open(), this.retryMs * (0.5 + Math.random()));
    this.retryMs = Math.min(MAX_RETRY_MS, 2 * this.retryMs);
  }

  async read(abort) {
    const { merchant, locations = [], skus = [], types = [], snapshot = true } = this.wanted;
    const url = new URL(`/v1/merchants/${encodeURIComponent(merchant)}/stream`, location.origin);
    for (const [name, values] of Object.entries({ location: locations, sku: skus, type: types })) {
      for (const value of values) url.searchParams.append(name, value);
    }
    url.searchParams.set("snapshot", String(snapshot));
    this.expect(abort);
    const answer = await fetch(url, {
      signal: abort.signal,
      credentials: "same-origin",
      headers: this.position === null ? {} : { "last-event-id": this.position },
    });
    if (answer.status === 401) {
      signedOut();
    }
    if (answer.status >= 400 && answer.status < 500 && answer.status !== 429) {
      const error = new Error("refused");
      error.refused = await answer.json().catch(() => ({ detail: `answered ${answer.status}` }));
      throw error;
    }
    if (!answer.ok) throw new Error(`answered ${answer.status}`);
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      this.expect(abort);
      const blocks = (rest + value).split("\n\n");
      rest = blocks.pop();
      for (const block of blocks) this.take(block);
    }
  }

  // Gives a connection up that has been silent for longer than two signs of life may take.
  expect(abort) {
    state.heardAt = Date.now();
    clearTimeout(this.silence);
    this.silence = setTimeout(() => abort.abort(), SILENCE_MS);
  }

  take(block) {
    let name = "message";
    let data = null;
    for (const line of block.split("\n")) {
      if (line.startsWith("id: ")) this.position = line.slice(4);
      else if (line.startsWith("event: ")) name = line.slice(7);
      else if (line.startsWith("data: ")) data = line.slice(6);
    }
    if (data === null) return;
    const told = JSON.parse(data);
    if (name === "reset") this.on.reset?.(told);
    else if (name === "snapshot") this.on.rows?.(told.rows);
    else if (name === "ready" || name === "resumed") {
      this.retryMs = FIRST_RETRY_MS;
      enter("live");
      this.on[name]?.(told);
    } else if (name === "closed") {
      if (told.reason === "unauthenticated") signedOut();
    } else this.on.event?.(told);
  }
}

// Paints are gathered: whatever the traffic, each is drawn at most ten times a second, and none
// while the page is hidden.
export const PAINT_MS = 100;
const dirty = new Set();
let painting = null;
let paintedAt = 0;

export function paint(draw) {
  dirty.add(draw);
  if (painting !== null || document.hidden) return;
  const wait = Math.max(0, PAINT_MS - (performance.now() - paintedAt));
  painting = setTimeout(() => requestAnimationFrame(flush), wait);
}

export function forgetPaints() {
  dirty.clear();
}

function flush() {
  painting = null;
  paintedAt = performance.now();
  const draws = [...dirty];
  dirty.clear();
  for (const draw of draws) draw();
}

document.addEventListener("visibilitychange", () => {
  if (!document.hidden) for (const draw of [...dirty]) paint(draw);
});
