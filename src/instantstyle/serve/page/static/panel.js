// The form: in the style of what, of what, how strongly; the rest is folded away.

import { call } from "./api.js";
import { $, debounce, h, replace, slider } from "./dom.js";
import { follows } from "./follows.js";
import { how, seedInput } from "./how.js";
import { canLive, follow } from "./live.js";
import { addStyle, dropTile, hasStyle, referencesPart, removeReference } from "./references.js";
import { change, onSettings, settings } from "./settings.js";

let facts = null;
let styles = [];
let parts = {};

export function buildPanel(given, library) {
  facts = given;
  styles = library;
  draw();
  onSettings((what) => { 
    if (what === "references" || what === "note") redrawReferences();
    else if (what !== "value" && what !== "typing") draw();
  });
  $("#panel").addEventListener("submit", (event) => event.preventDefault());
}

export function setLibrary(library) {
  styles = library;
  redrawReferences();
}

function redrawReferences() {
  parts.references?.draw();
  drawLibrary();
}

function draw() {
  const focus = document.activeElement?.id;
  const open = new Set([...$("#panel").querySelectorAll("details[data-part][open]")].map((each) => each.dataset.part));
  replace($("#panel"), style(), words(), strength(), fold("how", "Where and how", how(facts), open), fold("follow", "Follow a picture, or begin from one", follows(facts), open));
  redrawReferences();
  if (focus) document.getElementById(focus)?.focus();
}

function fold(name, title, content, open) {
  const node = h("details", { class: "card fold", "data-part": name }, h("summary", {}, title), content);
  node.open = open.has(name);
  return node;
}

function style() {
  parts.references = referencesPart(facts);
  parts.library = h("div", { class: "library", role: "group", "aria-label": "Style library" });
  return h("section", { class: "card", "aria-labelledby": "style-title" },
    h("h2", { id: "style-title" }, "In the style of"),
    parts.references.box,
    dropTile("Drop, paste or choose a picture"),
    parts.library);
}

function drawLibrary() {
  replace(parts.library, styles.map((each) => h("button", {
    type: "button", class: "swatch", "aria-pressed": String(hasStyle(each.name)),
    onclick: () => {
      if (hasStyle(each.name)) removeReference(settings.references.find((one) => one.style === each.name).key);
      else addStyle(each);
    },
  }, each.thumbnail ? h("img", { src: each.thumbnail, alt: "", loading: "lazy", width: "64", height: "64" }) : h("span", { class: "no-picture" }), h("span", {}, each.name))));
}

const IDEAS = ["a fox", "a castle", "a cactus", "a rocket", "an octopus", "a sailboat", "a mushroom", "a lion"];

function words() {
  const note = h("p", { class: "hint", id: "words-note" });
  const check = debounce(250, async () => {
    try {
      const said = await call(`/v1/words?${new URLSearchParams({ prompt: settings.prompt.slice(0, 2000) })}`);
      note.textContent = said.warnings.join(". ");
    } catch { note.textContent = ""; }
  });
  const prompt = h("textarea", {
    id: "prompt", rows: "2", maxlength: "2000", placeholder: "a fox, on blue", "aria-describedby": "words-note", spellcheck: "true",
    oninput: () => { change({ prompt: prompt.value }, "typing"); check(); },
  });
  prompt.value = settings.prompt;
  if (settings.prompt) check();
  const known = facts.things.length ? IDEAS.filter((idea) => facts.things.includes(idea.replace(/^an? /, ""))) : IDEAS;
  return h("section", { class: "card", "data-field": "prompt" },
    h("h2", {}, h("label", { for: "prompt" }, "Of what")),
    prompt,
    h("div", { class: "chips", role: "group", "aria-label": "Ideas" }, known.slice(0, 6).map((idea) =>
      h("button", { type: "button", class: "chip", onclick: () => { prompt.value = idea; change({ prompt: idea }, "typing"); check(); } }, idea.replace(/^an? /, "")))),
    note);
}

function strength() {
  parts.strength = slider({
    label: "Style strength", value: settings.strength, min: 0, max: 2, step: 0.05, big: true,
    oninput: (x) => change({ strength: x }, "value"),
  });
  const live = h("input", { type: "checkbox", role: "switch", id: "live", checked: settings.live && canLive(), disabled: !canLive(),
    onchange: () => { change({ live: live.checked }, "value"); follow(); } });
  const why = canLive() ? "The picture follows as you move" : facts.live ? "This method is too slow to follow: press Draw" : "This model is too slow here to follow: press Draw";
  return h("section", { class: "card", "data-field": "strength" }, parts.strength,
    h("div", { class: "live-row" }, h("label", { class: "switch", for: "live" }, live, "Live"), h("span", { class: "hint" }, why)));
}

export function showSeed() {
  if (seedInput.node) seedInput.node.value = settings.seed;
}
