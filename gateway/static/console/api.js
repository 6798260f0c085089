// The public HTTP API, as any client calls it. The session is a cookie that no script can read.

export class Problem extends Error {
  constructor(status, body) {
    super(body?.detail ?? `The service answered ${status}`);
    this.status = status;
    this.code = body?.code ?? "";
    this.errors = body?.errors ?? [];
    this.requestId = body?.request_id ?? "";
  }

  // What a person should read: the detail, and each error that says more.
  get lines() {
    const more = this.errors.map((error) => {
      const place = (error.pointer ?? error.parameter ?? error.header ?? "").replace(/^#\//, "");
      return place ? `${place}: ${error.detail}` : error.detail;
    });
    return [this.message, ...more.filter((line) => line !== this.message)];
  }
}

export class Unreachable extends Error {
  constructor() {
    super("The service does not answer");
  }
}

const onSignedOut = new Set();

export function whenSignedOut(listener) {
  onSignedOut.add(listener);
}

export function signedOut() {
  for (const listener of onSignedOut) listener();
}

export const segment = (id) => encodeURIComponent(id);

export async function call(method, path, { body, headers, query, signal } = {}) {
  const url = new URL(path, location.origin);
  for (const [name, value] of Object.entries(query ?? {})) {
    if (value !== undefined && value !== null && value !== "") url.searchParams.append(name, value);
  }
  let answer;
  try {
    answer = await fetch(url, {
      method,
      signal,
      credentials: "same-origin",
      headers: { ...(body === undefined ? {} : { "content-type": "application/json" }), ...headers },
      body: body === undefined ? undefined : JSON.stringify(body),
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Unreachable();
  }
  const told = answer.status === 204 ? null : await answer.json().catch(() => null);
  if (answer.ok) return told;
  if (answer.status === 401 && path !== "/v1/session") signedOut();
  throw new Problem(answer.status, told);
}

export const get = (path, query, signal) => call("GET", path, { query, signal });

// What changes something carries a key of its own, which a retry after a lost answer keeps.
export async function change(method, path, body, { key = newKey(), headers } = {}) {
  const sent = { body, headers: { "idempotency-key": key, ...headers } };
  try {
    return await call(method, path, sent);
  } catch (error) {
    if (!(error instanceof Unreachable)) throw error;
    await new Promise((resolve) => setTimeout(resolve, 500));
    return call(method, path, sent);
  }
}

export function newKey() {
  // Not randomUUID(): over plain HTTP a browser has it on the machine's own address alone.
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return `console-${Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("")}`;
}

// All pages of a listing, up to `most` items; `more` says whether there were others.
export async function pages(path, query, { most = 2000, signal, each } = {}) {
  const items = [];
  let cursor = null;
  for (;;) {
    const page = await get(path, { limit: 500, ...query, cursor }, signal);
    items.push(...page.data);
    each?.(page.data, page);
    cursor = page.next_cursor;
    if (!page.has_more || items.length >= most) return { items, more: page.has_more, page };
  }
}
