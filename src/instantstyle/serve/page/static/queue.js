// The queue: what waits and runs, with previews; cancel and retry.

import { cancel, retry } from "./api.js";
import { $, dialog, h, replace } from "./dom.js";
import { jobs, note, onJobs } from "./jobs.js";
import { showError, toast } from "./notices.js";

let box = null;
let list = null;

const active = () => [...jobs.values()].filter((each) => ["queued", "running"].includes(each.state) && !each.draft);
const recent = () => [...jobs.values()].filter((each) => ["failed", "cancelled", "done"].includes(each.state) && !each.draft)
  .sort((a, b) => (b.created ?? 0) - (a.created ?? 0)).slice(0, 12);

export function buildQueue() {
  $("#queue-button").addEventListener("click", open);
  onJobs(() => { count(); if (box) draw(); });
  count();
}

function count() {
  const many = active().length;
  const node = $("#queue-count");
  node.textContent = many;
  node.hidden = !many;
  $("#queue-button").setAttribute("aria-label", many ? `Queue, ${many} at work or waiting` : "Queue, empty");
}

function open() {
  list = h("div", { class: "queue-list" });
  box = dialog("Queue", list, { onclose: () => { box = null; } });
  draw();
}

export function progressText(each) {
  if (each.state === "queued") return each.position ? `waits, ${each.position} before it` : "waits";
  if (each.state === "running") return each.progress ? `step ${each.progress.step} of ${each.progress.steps}` : "begins";
  return { done: "done", failed: "failed", cancelled: "cancelled" }[each.state];
}

function row(each) {
  const prompt = each.request?.prompt || "…";
  const picture = each.images?.[0]?.url ?? each.preview;
  const running = ["queued", "running"].includes(each.state);
  const bar = each.state === "running" && each.progress ? h("progress", { max: String(each.progress.steps), value: String(each.progress.step), "aria-label": `Steps of ${prompt}` }) : null;
  const act = (what, text) => h("button", { type: "button", class: "secondary", onclick: () => what(each.id).then(note).catch(showError) }, text);
  return h("article", { class: `queue-row ${each.state}`, "aria-label": prompt },
    picture ? h("img", { src: picture, alt: "", width: "56", height: "56" }) : h("span", { class: "no-picture" }),
    h("div", { class: "queue-body" }, h("strong", {}, prompt), h("span", { class: "hint" }, progressText(each)), bar,
      each.error ? h("p", { class: "error-text" }, each.error) : null),
    running ? act(cancel, "Cancel") : each.state === "done" ? null : act((id) => retry(id).then((view) => { toast("It is in the queue again."); return view; }), "Retry"));
}

function draw() {
  const waiting = active().sort((a, b) => (a.created ?? 0) - (b.created ?? 0));
  const over = recent();
  replace(list,
    waiting.length ? waiting.map(row) : h("p", { class: "hint" }, "Nothing waits. What you draw goes on here when the page is closed, and after a restart."),
    over.length ? [h("h3", {}, "Lately"), over.map(row)] : null);
}
