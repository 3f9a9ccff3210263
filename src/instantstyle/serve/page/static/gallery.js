// The gallery: every finished picture, found by words, opened, used again, drawn again, taken away.

import { call } from "./api.js";
import { $, debounce, dialog, download, h, replace } from "./dom.js";
import { jobs, note, onJobs } from "./jobs.js";
import { showMeter } from "./meter.js";
import { showError, toast } from "./notices.js";
import { place, takeFiles } from "./references.js";
import { change, fromRequest } from "./settings.js";
import { showTab } from "./tabs.js";

let grid = null;
let more = null;
let next = null;
let query = "";

export function buildGallery() {
  grid = h("div", { class: "gallery" });
  more = h("button", { type: "button", class: "secondary", hidden: true, onclick: () => load(true) }, "Older pictures");
  const search = h("input", { type: "search", id: "gallery-search", placeholder: "words, a style, a method, a seed",
    oninput: debounce(200, () => { query = search.value; load(); }) });
  replace($("#view-gallery"),
    h("div", { class: "page-head" }, h("h2", {}, "Gallery"), h("div", { class: "field inline" }, h("label", { for: "gallery-search" }, "Search"), search)),
    grid, more);
  onJobs((each, kind) => { if (kind === "done" && each && !each.draft && !$("#view-gallery").hidden) load(); });
}

export async function load(onward = false) {
  try {
    const params = new URLSearchParams({ query, limit: 60 });
    if (onward && next) params.set("before", next);
    const found = await call(`/v1/images?${params}`);
    next = found.more;
    more.hidden = next === null;
    const tiles = found.images.map(tile);
    if (onward) grid.append(...tiles);
    else if (tiles.length) replace(grid, tiles);
    else replace(grid, h("p", { class: "hint empty" }, query ? `No picture has the words “${query}”.` : "Pictures that you draw are kept here."));
  } catch (error) {
    showError(error);
  }
}

function tile(image) {
  const styles = image.styles?.length ? ` in the style of ${image.styles.join(" and ")}` : "";
  return h("button", { type: "button", class: "tile", onclick: () => open(image), "aria-label": `${image.prompt}${styles}` },
    h("img", { src: image.url, alt: "", loading: "lazy" }), h("span", {}, image.prompt));
}

export async function useSettings(jobId) {
  const view = await call(`/v1/jobs/${jobId}`);
  change(fromRequest(view.request));
  showTab("draw");
  toast("These are its settings.");
}

export function open(image) {
  const meter = h("div", { class: "meter" });
  showMeter(meter, image.meter);
  const verdict = h("p", { class: "hint", role: "status" });
  const act = (text, onclick, cls = "secondary") => h("button", { type: "button", class: cls, onclick: () => Promise.resolve(onclick()).catch((error) => { box.close(); showError(error); }) }, text);
  const facts = [["Words", image.prompt], ["Style", image.styles?.join(", ")], ["Method", image.method], ["Seed", image.seed], ["Size", `${image.width} × ${image.height}`]]
    .filter(([, value]) => value !== undefined && value !== "" && value !== null);
  const box = dialog(image.prompt || "Picture", h("div", { class: "detail" },
    h("img", { src: image.url, alt: image.prompt, class: "detail-picture" }),
    h("div", { class: "detail-side" },
      h("dl", {}, facts.map(([name, value]) => [h("dt", {}, name), h("dd", {}, String(value))])),
      meter,
      h("div", { class: "row wrap" },
        act("Use these settings", async () => { await useSettings(image.job); box.close(); }, "primary"),
        act("Download", () => download(`${image.url}?download=true`, `${image.id}.png`)),
        act("Download without its settings", () => download(`${image.url}?download=true&metadata=false`, `${image.id}.png`)),
        act("Draw again", async () => {
          verdict.textContent = "It is drawn again…";
          const view = await call(`/v1/images/${image.id}/again`, { method: "POST" });
          note(view);
          waitFor(view.id, (ended) => { verdict.textContent = tellVerdict(ended); });
        }),
        act("Use as a reference", () => { place("reference", { url: image.url, thumb: image.url, name: image.prompt.slice(0, 40) || "picture" }); box.close(); showTab("draw"); }),
        act("Begin from it", () => { place("init", { url: image.url, thumb: image.url, name: "picture" }); box.close(); showTab("draw"); }),
        act("Delete", async () => { await call(`/v1/images/${image.id}`, { method: "DELETE" }); box.close(); load(); }, "quiet danger")),
      verdict)), { wide: true });
}

function tellVerdict(ended) {
  if (ended.state !== "done") return ended.error ?? "It was not drawn.";
  const v = ended.verdict ?? {};
  if (v.identical) return `Identical, all ${v.pixels.toLocaleString("en")} pixels.`;
  if (v.largest <= 2) return `The same but for rounding: ${v.differing.toLocaleString("en")} of ${v.pixels.toLocaleString("en")} pixels differ, by ${v.largest} of 255, as in another batch.`;
  return v.error ?? `It differs in ${v.differing.toLocaleString("en")} of ${v.pixels.toLocaleString("en")} pixels, by at most ${v.largest} of 255.`;
}

function waitFor(id, f) {
  const timer = setInterval(() => {
    const each = jobs.get(id);
    if (each && ["done", "failed", "cancelled"].includes(each.state)) { clearInterval(timer); f(each); }
  }, 100);
}

export { takeFiles };
