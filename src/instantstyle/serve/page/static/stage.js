// The picture: live or finished, alone, beside its reference, or before and after the style.

import { $, h, replace } from "./dom.js";
import { settings } from "./settings.js";

const state = { url: null, without: null, label: "", busy: false, view: "picture", alt: "", progress: null };
let nodes = null;
export const stage = state;
export const onView = { handle: null };

export function buildStage() {
  const picture = h("img", { class: "picture", alt: "", hidden: true });
  const under = h("img", { class: "picture under", alt: "", hidden: true });
  const reference = h("img", { class: "picture beside", alt: "", hidden: true });
  const divider = h("input", {
    type: "range", min: "0", max: "100", value: "50", class: "divider", "aria-label": "Before and after", hidden: true,
    oninput: () => frame.style.setProperty("--cut", `${divider.value}%`),
  });
  const empty = h("div", { class: "stage-empty" }, h("p", {}, "The first picture is being drawn…"));
  const label = h("span", { class: "stage-label" });
  const bar = h("progress", { class: "stage-progress", max: "1", value: "0", "aria-label": "Steps drawn", hidden: true });
  const frame = h("div", { class: "frame" }, reference, h("div", { class: "canvas" }, under, picture, divider, empty, bar, label));
  const views = h("div", { class: "segments", role: "group", "aria-label": "How to look at it" },
    [["picture", "Picture"], ["beside", "Beside the reference"], ["before", "Before and after"]].map(([key, text]) =>
      h("button", { type: "button", "aria-pressed": String(key === "picture"), "data-view": key, onclick: () => setView(key) }, text)));
  nodes = { picture, under, reference, divider, empty, label, bar, frame, views };
  replace($("#stage"), frame, views, h("div", { id: "stage-error", "data-field": "none" }));
}

export function setView(view) {
  state.view = view;
  for (const button of nodes.views.children) button.setAttribute("aria-pressed", String(button.dataset.view === view));
  paint();
  onView.handle?.(view);
}

// Show a picture once it is decoded, so that nothing flickers between two of them.
export async function showPicture(url, { alt, label = "", progress = null } = {}) {
  const next = new Image();
  next.src = url;
  try {
    await next.decode();
  } catch {
    return false;
  }
  Object.assign(state, { url, alt: alt ?? state.alt, label, progress });
  paint();
  return true;
}

export function showWithout(url) {
  state.without = url;
  paint();
}

export function setBusy(busy, progress = null) {
  Object.assign(state, { busy, progress });
  if (nodes) paintLabel();
}

function paintLabel() {
  nodes.label.textContent = state.label;
  nodes.label.hidden = !state.label;
  nodes.frame.classList.toggle("busy", state.busy);
  nodes.bar.hidden = state.progress === null;
  if (state.progress !== null) nodes.bar.value = state.progress;
}

export function paint() {
  if (!nodes) return;
  const { picture, under, reference, divider, empty, frame } = nodes;
  const before = state.view === "before" && Boolean(state.without);
  empty.hidden = Boolean(state.url);
  picture.hidden = !state.url;
  if (state.url && picture.getAttribute("src") !== state.url) picture.src = state.url;
  picture.alt = state.alt;
  under.hidden = divider.hidden = !before;
  if (before && under.getAttribute("src") !== state.without) under.src = state.without;
  under.alt = before ? `The same without the style` : "";
  frame.classList.toggle("comparing", before);
  const shown = settings.references[0];
  const beside = state.view === "beside" && Boolean(shown);
  reference.hidden = !beside;
  frame.classList.toggle("pair", beside);
  if (beside) {
    reference.src = shown.thumb || shown.url;
    reference.alt = `Reference: ${shown.name}`;
  }
  for (const button of nodes.views.children) button.disabled = button.dataset.view !== "picture" && !settings.references.length;
  paintLabel();
}
