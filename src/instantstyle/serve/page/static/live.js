// Live: a draft of few steps follows the settings; while one is drawn only the newest change waits.

import { call, Refused, submit } from "./api.js";
import { clearErrors, showError } from "./notices.js";
import { settings, toRequest } from "./settings.js";
import { setBusy, showPicture, showWithout, stage } from "./stage.js";

const PATIENCE = 400; // milliseconds after which a draft that is overtaken is cancelled and not waited for

let facts = null;
let flight = null; // {began, controller}
let again = false;
let shown = 0;
let wanted = 0;
export const live = { onmove: null, latency: [] };

export const canLive = () => Boolean(facts?.live) && (facts.methods.find((each) => each.name === settings.method)?.live ?? true);

export function startLive(given) {
  facts = given;
}

export function draftRequest(given = {}) {
  const few = Object.fromEntries(Object.entries(facts.live).filter(([, value]) => value !== null));
  return toRequest({ ...few, steps: facts.live.steps, guidance: settings.guidance ?? facts.live.guidance, count: 1, ...given });
}

// Called for every change; cheap.
export function follow() {
  wanted += 1;
  if (!settings.live || !canLive() || !settings.prompt.trim()) return;
  again = true;
  if (!flight) draw();
  else if (performance.now() - flight.began > PATIENCE) {
    flight.controller.abort();
  }
}

async function draw() {
  let overtaken = null;
  while (again) {
    again = false;
    const mine = wanted;
    const began = performance.now();
    flight = { began, controller: new AbortController() };
    setBusy(true);
    try {
      const request = draftRequest();
      const accepted = await submit(request, { draft: true, preview: false, replaces: overtaken });
      overtaken = accepted.id; // its id is known before it is waited for, so that the next one can cancel it
      const job = await call(`/v1/jobs/${accepted.id}?wait=30`, { signal: flight.controller.signal });
      if (["done", "failed", "cancelled"].includes(job.state)) overtaken = null;
      if (job.state === "done" && mine >= shown) {
        shown = mine;
        live.onmove?.(job);
        await showPicture(job.images[0].url, { alt: alt(request), label: "live" });
        live.latency.push(performance.now() - began);
        clearErrors();
        if (stage.view === "before") await drawWithout();
      } else if (job.state === "failed") {
        showError(new Refused(400, { message: job.error }));
      }
    } catch (error) {
      if (error.name !== "AbortError") {
        if (error.status !== 0) showError(error);
        if (error.code !== "loading") again = false;
        await new Promise((done) => { setTimeout(done, 400); });
      }
    }
  }
  flight = null;
  setBusy(false);
}

// The same seed without its references, for before and after.
export async function drawWithout() {
  if (!settings.references.length || !facts?.live) return;
  try {
    const job = await submit(draftRequest({ references: [], method: "none" }), { draft: true, preview: false, wait: 30 });
    if (job.state === "done") showWithout(job.images[0].url);
  } catch { /* the comparison is not worth an error */ }
}

export const alt = (request) => {
  const styles = settings.references.map((each) => each.name).join(" and ");
  return styles ? `“${request.prompt}” in the style of ${styles}` : `“${request.prompt}”`;
};
