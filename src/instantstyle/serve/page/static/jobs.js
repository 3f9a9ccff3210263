// Jobs of this server as events tell of them: one stream for the page, closed while nobody looks.

import { call } from "./api.js";

export const jobs = new Map(); // id -> {view fields, progress, preview}
const listeners = new Set();
export const connection = { ok: true, onchange: null };
export const onJobs = (f) => listeners.add(f);

let source = null;
let last = null;
let timer = 0;

function tell(id, kind) {
  for (const f of listeners) f(jobs.get(id), kind);
}

function merge(id, fields) {
  jobs.set(id, { ...(jobs.get(id) ?? { id }), ...fields });
}

export async function refresh(id) {
  try {
    const view = await call(`/v1/jobs/${id}`);
    merge(id, view);
    return view;
  } catch (error) {
    if (error.status === 404) jobs.delete(id);
    return null;
  }
}

export function note(view) {
  const known = jobs.get(view.id);
  const later = known && ["done", "failed", "cancelled"].includes(known.state) && !["done", "failed", "cancelled"].includes(view.state);
  if (!later) merge(view.id, view); // an event may have overtaken the answer
  tell(view.id, view.state);
}

// Everything that waits or runs, and the newest that are over: after a reload and after a lost connection.
export async function sync() {
  const { jobs: views } = await call("/v1/jobs?limit=30");
  for (const view of views.reverse()) {
    merge(view.id, view);
    tell(view.id, view.state);
  }
}

function listen(kind, handle) {
  source.addEventListener(kind, (event) => {
    if (event.lastEventId) last = event.lastEventId;
    const data = JSON.parse(event.data);
    handle(data.job, data);
  });
}

function setConnection(ok) {
  if (connection.ok !== ok) {
    connection.ok = ok;
    connection.onchange?.(ok);
  }
}

export function connect() {
  clearTimeout(timer);
  source?.close();
  source = new EventSource(last === null ? "/v1/events" : `/v1/events?after=${last}`);
  source.onopen = () => {
    setConnection(true);
    sync().catch(() => {});
  };
  source.onerror = () => {
    setConnection(false);
    if (source.readyState === EventSource.CLOSED) timer = setTimeout(connect, 1500);
  };
  listen("progress", (id, data) => { merge(id, { progress: data, state: "running" }); tell(id, "progress"); });
  listen("preview", (id, data) => { merge(id, { preview: data.image }); tell(id, "preview"); });
  for (const kind of ["queued", "running"]) listen(kind, async (id) => { await refresh(id); tell(id, kind); });
  for (const kind of ["done", "failed", "cancelled"]) {
    listen(kind, async (id) => { await refresh(id); if (jobs.has(id)) tell(id, kind); });
  }
}

document.addEventListener("visibilitychange", () => {
  if (document.hidden) {
    timer = setTimeout(() => { source?.close(); source = null; }, 60_000);
  } else {
    clearTimeout(timer);
    if (!source) connect();
  }
});
