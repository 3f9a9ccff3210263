// The page begins here: log in where a token is asked for, wait for the model, then draw something at once.

import { call, newKey, onUnauthorized, submit } from "./api.js";
import { $, dialog, field, h, replace, select } from "./dom.js";
import { buildGallery, load as loadGallery, open as openImage } from "./gallery.js";
import { buildGrid, describe } from "./grid.js";
import { connect, connection, jobs, note, onJobs } from "./jobs.js";
import { drawWithout, follow, alt, live, startLive } from "./live.js";
import { showMeter } from "./meter.js";
import { banner, clearErrors, showError, toast } from "./notices.js";
import { buildPanel, setLibrary, showSeed } from "./panel.js";
import { buildQueue, progressText } from "./queue.js";
import { addStyle, isPicture, takeFiles } from "./references.js";
import { change, fromRequest, isFirstVisit, knowMethods, onSettings, plainSeed, settings, toRequest } from "./settings.js";
import { buildStage, onView, paint, setBusy, showPicture, showWithout, stage } from "./stage.js";
import { buildStyles, draw as drawStyles, readStyles } from "./styles.js";
import { buildTabs, onShow } from "./tabs.js";

let current = null; // the job that the stage shows or waits for
const pause = (ms) => new Promise((done) => { setTimeout(done, ms); });

async function login() {
  const { token, known } = await call("/v1/session");
  if (!token || known) return;
  await new Promise((done) => {
    const input = h("input", { type: "password", autocomplete: "current-password", required: true });
    const problem = h("p", { class: "error-text", role: "alert" });
    const box = dialog("This studio asks for its token", h("form", { class: "fields", onsubmit: async (event) => {
      event.preventDefault();
      try {
        await call("/v1/login", { method: "POST", json: { token: input.value } });
        done();
        box.close();
      } catch (error) { problem.textContent = error.message; }
    } }, field("Token", input, "The text that the server was started with, after --token."), problem,
      h("div", { class: "row end" }, h("button", { type: "submit", class: "primary" }, "Log in"))));
    box.addEventListener("cancel", (event) => event.preventDefault());
  });
}

async function facts() {
  for (;;) {
    try {
      const { ready, failure } = await call("/v1/session");
      if (failure) throw new Error(`There is no model: ${failure}`);
      if (ready) {
        banner(null);
        return await call("/v1/studio");
      }
      banner("The model is being loaded. It takes a few seconds.");
    } catch (error) {
      if (error.status !== 0) throw error;
      banner(error.message);
    }
    await pause(300);
  }
}

function buildTheme() {
  const button = $("#theme");
  const set = (name) => {
    document.documentElement.dataset.theme = name;
    button.textContent = name === "dark" ? "☀" : "☾";
  };
  const saved = localStorage.getItem("theme");
  set(saved ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light"));
  button.addEventListener("click", () => {
    const name = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
    localStorage.setItem("theme", name);
    set(name);
  });
}

const BEST_OF = [2, 4, 8, 16];

function buildActions(limit) {
  const button = (text, onclick, props = {}) => h("button", { type: "button", class: "secondary", onclick, ...props }, text);
  replace($("#actions"),
    button("Draw", () => draw(), { class: "primary", id: "draw", title: "Ctrl + Enter" }),
    h("span", { class: "joined" },
      button("Best of", () => draw({ count: Math.min(settings.bestOf, limit) }), { id: "best", title: "So many pictures of this seed's noise, the one that the meter likes best first" }),
      select(BEST_OF.filter((n) => n <= limit), settings.bestOf, (n) => change({ bestOf: Number(n) }, "note"), { id: "best-of", "aria-label": "Best of how many" })),
    button("Another seed", () => { change({ seed: plainSeed() }, "value"); showSeed(); }, { id: "another" }),
    button("Cancel", () => { if (current) call(`/v1/jobs/${current}/cancel`, { method: "POST" }).then(note).catch(showError); }, { id: "cancel", class: "quiet", hidden: true }));
}

// A picture to keep, at full quality: it goes through the queue and into the gallery.
async function draw(given = {}) {
  if (!settings.prompt.trim()) {
    showError({ message: "Say what to draw first", param: "prompt" });
    $("#prompt").focus();
    return;
  }
  clearErrors();
  try {
    const view = await submit(toRequest({ ...given }), { meter: settings.references.length > 0, key: newKey() });
    current = view.id;
    localStorage.setItem("current", current);
    note(view);
  } catch (error) {
    showError(error);
  }
}

function watchJobs() {
  onJobs((each, kind) => {
    if (each?.id !== current || !each) return;
    const running = ["queued", "running"].includes(each.state);
    $("#cancel").hidden = !running;
    if (running) {
      stage.label = progressText(each);
      setBusy(true, each.progress ? each.progress.step / each.progress.steps : 0);
      if (kind === "preview" && each.preview) showPicture(each.preview, { label: progressText(each), progress: each.progress ? each.progress.step / each.progress.steps : 0 });
      return;
    }
    setBusy(false);
    stage.label = "";
    paint();
    if (each.state === "done") finished(each);
    else if (each.state === "failed") showError({ message: each.error ?? "It failed" });
    else toast("Cancelled; the others go on.");
    current = null;
    localStorage.removeItem("current");
  });
}

const byMeter = (images) => [...images].sort((a, b) => b.meter.score - a.meter.score);

async function finished(each) {
  const measured = each.images.length > 1 && each.images.every((image) => image.meter);
  const ranked = measured ? byMeter(each.images) : each.images;
  const best = ranked[0];
  if (!best) return;
  await showPicture(best.url, { alt: alt(each.request), label: measured ? `best of ${ranked.length} by the meter` : "" });
  showMeter($("#meter"), best.meter);
  if (each.warnings?.length) toast(each.warnings.join(". "), { lasting: true });
  for (const image of [...ranked].reverse()) recent(image, each);
}

function recent(image, each) {
  const box = $("#recent");
  if (box.querySelector(`[data-image="${image.id}"]`)) return;
  const node = h("button", { type: "button", class: "thumb", "data-image": image.id, "aria-label": `Show ${each.request.prompt}`, ondblclick: () => openImage(image),
    onclick: async () => { await showPicture(image.url, { alt: alt(each.request) }); showMeter($("#meter"), image.meter); } }, h("img", { src: image.url, alt: "" }));
  box.prepend(node);
  while (box.children.length > 12) box.lastChild.remove();
}

// A picture that is dropped anywhere is taken, and never shown by the browser in place of the page.
function takeDropsAndPastes() {
  const veil = $("#drop-veil");
  const hide = () => { veil.hidden = true; };
  addEventListener("dragover", (event) => { event.preventDefault(); if ([...event.dataTransfer.types].includes("Files")) veil.hidden = false; });
  addEventListener("dragleave", (event) => { if (!event.relatedTarget) hide(); });
  document.addEventListener("dropped", hide);
  addEventListener("drop", (event) => {
    event.preventDefault();
    hide();
    const files = [...event.dataTransfer.files];
    if (files.length) takeFiles(files);
    else toast("Only files are taken: save the picture first, then drop it.");
  });
  addEventListener("paste", (event) => {
    const files = [...event.clipboardData.files].filter(isPicture);
    if (!files.length) return;
    event.preventDefault();
    takeFiles(files);
  });
}

function keys() {
  addEventListener("keydown", (event) => {
    if ((event.ctrlKey || event.metaKey) && event.key === "Enter") {
      event.preventDefault();
      draw();
    }
  });
}

async function begin() {
  buildTheme();
  buildTabs();
  buildStage();
  takeDropsAndPastes();
  keys();
  onUnauthorized.handle = () => location.reload();
  await login();
  buildQueue();
  watchJobs();
  connection.onchange = (ok) => banner(ok ? null : "The studio does not answer. It is tried again; nothing that was queued is lost.");
  connect();
  let [given, styles] = await Promise.all([facts(), readStyles().catch(() => [])]);
  knowMethods(given.methods);
  startLive(given);
  buildActions(given.limits.count);
  if (isFirstVisit && !settings.references.length) {
    const first = styles.find((each) => each.name === "watercolour") ?? styles[0];
    change({ prompt: given.things.length && !given.things.includes("fox") ? `a ${given.things[0]}` : "a fox" }, "value");
    if (first) addStyle(first);
  }
  buildPanel(given, styles);
  buildGallery();
  buildGrid(given, styles);
  buildStyles((list) => { styles = list; setLibrary(list); buildGrid(given, list); });
  drawStyles(styles);
  onShow.gallery = () => loadGallery();
  onShow.grid = describe;
  onSettings((what) => {
    if (what === "note") return;
    if (stage.view === "before") showWithout(null);
    if (!current) showMeter($("#meter"), null);
    paint();
    follow();
  });
  onView.handle = (view) => { if (view === "before" && !stage.without) drawWithout(); };
  live.onmove = () => { if (!current) showMeter($("#meter"), null); };
  await resume();
  paint();
  follow();
  document.documentElement.dataset.ready = "true";
}

// After a reload: the job that the stage waited for, and the newest pictures.
async function resume() {
  const { images } = await call("/v1/images?limit=12").catch(() => ({ images: [] }));
  for (const image of images.reverse()) recent(image, { request: { prompt: image.prompt } });
  const waited = localStorage.getItem("current");
  if (!waited) return;
  try {
    const view = await call(`/v1/jobs/${waited}`);
    current = view.id;
    jobs.set(view.id, view);
    note(view);
  } catch {
    localStorage.removeItem("current");
  }
}

begin().catch((error) => banner(error.message));
export { fromRequest };
