// The form: in the style of what, of what, how strongly; the rest is folded away.

import { call } from "./api.js";
import { $, debounce, field, h, replace, select, slider } from "./dom.js";
import { canLive, follow } from "./live.js";
import { paintMask } from "./paint.js";
import { addStyle, dropTile, hasStyle, PLACES, referencesPart, removeReference } from "./references.js";
import { change, onSettings, plainSeed, settings } from "./settings.js";

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
  replace($("#panel"), style(), words(), strength(), fold("how", "Where and how", how(), open), fold("follow", "Follow a picture, or begin from one", follows(), open));
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

function number(label, name, { min, max, step = 1, placeholder }) {
  const input = h("input", { type: "number", min: String(min), max: String(max), step: String(step), placeholder: String(placeholder), inputmode: "decimal",
    onchange: () => change({ [name]: input.value === "" ? null : Number(input.value) }, "value") });
  input.value = settings[name] ?? "";
  const node = field(label, input);
  node.dataset.field = name;
  return node;
}

function how() {
  const method = facts.methods.find((each) => each.name === settings.method) ?? facts.methods[0];
  const methods = select(facts.methods.map((each) => [each.name, each.name]), settings.method, (value) => change({ method: value, options: {} }));
  const methodField = field("Method", methods, method.help);
  methodField.dataset.field = "method";
  const plan = facts.plans.includes(settings.plan) ? settings.plan : "blocks";
  const terms = h("input", { type: "text", hidden: plan !== "blocks", "aria-label": "Blocks and how strongly", placeholder: `${facts.blocks.at(-1)}=1`,
    onchange: () => change({ plan: terms.value.trim() || "style" }, "value") });
  terms.value = plan === "blocks" ? settings.plan : "";
  const places = PLACES.slice(1).filter(([key]) => facts.plans.includes(key));
  const planField = field("Where the style enters", select([...places, ["blocks", "Single blocks…"]], plan, (value) => {
    terms.hidden = value !== "blocks";
    if (value !== "blocks") change({ plan: value }, "value");
  }, { disabled: !method.request_fields.includes("plan") }), method.request_fields.includes("plan") ? null : "This method has a place of its own.", terms);
  planField.dataset.field = "plan";
  const negative = h("input", { type: "text", maxlength: "2000", oninput: () => change({ negative: negative.value }, "typing") });
  negative.value = settings.negative;
  const negativeField = field("What it is not to show", negative);
  negativeField.dataset.field = "negative";
  const seed = h("input", { type: "number", min: "0", step: "1", id: "seed", onchange: () => change({ seed: Math.max(0, Math.floor(Number(seed.value) || 0)) }, "value") });
  seed.value = settings.seed;
  parts.seed = seed;
  const seedField = field("Seed", seed, null, h("button", { type: "button", class: "secondary", onclick: () => { change({ seed: plainSeed() }, "value"); seed.value = settings.seed; } }, "Another"));
  seedField.dataset.field = "seed";
  const options = method.options.map((option) => optionField(option));
  return h("div", { class: "fields" }, methodField, planField, options, negativeField,
    h("div", { class: "columns" }, seedField, number("Pictures", "count", { min: 1, max: facts.limits.count, placeholder: 1 })),
    h("div", { class: "columns" },
      number("Width", "width", { min: 8, max: facts.limits.side[0], step: facts.model.multiple, placeholder: facts.model.size[0] }),
      number("Height", "height", { min: 8, max: facts.limits.side[1], step: facts.model.multiple, placeholder: facts.model.size[1] })),
    h("div", { class: "columns" },
      number("Steps", "steps", { min: 1, max: facts.limits.steps, placeholder: facts.steps }),
      number("Guidance", "guidance", { min: 0, max: 50, step: 0.1, placeholder: facts.model.guidance })),
    field("Sampler", select([["", "the model's"], ...facts.samplers.map((name) => [name, name])], settings.sampler ?? "", (value) => change({ sampler: value || null }, "value"))));
}

function optionField(option) {
  const value = settings.options[option.name] ?? option.default;
  const set = (x) => change({ options: { ...settings.options, [option.name]: x } }, "value");
  let control;
  if (typeof option.default === "boolean") control = h("input", { type: "checkbox", checked: Boolean(value), onchange: (event) => set(event.target.checked) });
  else if (option.choices.length) control = select(option.choices.map((x) => [x, x]), value, set);
  else if (typeof option.default === "number") {
    control = h("input", { type: "number", step: "any", min: String(option.low), max: String(option.high), onchange: (event) => set(Number(event.target.value)) });
    control.value = value;
  } else {
    control = h("input", { type: "text", onchange: (event) => set(event.target.value) });
    control.value = value;
  }
  const node = field(option.name, control, option.help);
  node.dataset.field = "options";
  return node;
}

function picked(as, picture, more) {
  return h("div", { class: "picked" }, h("img", { src: picture.thumb || picture.url, alt: as === "init" ? "The picture to begin from" : "The picture to follow", width: "72", height: "72" }),
    h("div", { class: "reference-body" }, more,
      h("button", { type: "button", class: "quiet", onclick: () => change({ [as]: null }) }, "Remove")));
}

function follows() {
  const { control, init } = settings;
  const kinds = [...new Set([...facts.controls, "canny"])].filter((kind) => facts.controls.includes(kind));
  const first = !facts.controls.length ? h("p", { class: "hint" }, "This model has no ControlNet.") : control
    ? picked("control", control, [
      field("What of it", select([...kinds.map((kind) => [kind, kind]), ["image", "as it is"]], control.kind, (value) => change({ control: { ...settings.control, kind: value } }, "value"))),
      slider({ label: "How closely", value: control.weight, min: 0, max: 1.5, step: 0.05, oninput: (x) => change({ control: { ...settings.control, weight: x } }, "value") })])
    : dropTile("A picture whose lines to follow", "control");
  const size = [settings.width ?? facts.model.size[0], settings.height ?? facts.model.size[1]];
  const second = init
    ? picked("init", init, [
      slider({ label: "How much is drawn anew", value: init.strength, min: 0.05, max: 1, step: 0.05, oninput: (x) => change({ init: { ...settings.init, strength: x } }, "value") }),
      h("div", { class: "row" },
        h("button", { type: "button", class: "secondary", id: "paint-init", onclick: () => paintMask({ title: "What is painted anew", size, start: init.mask, under: init.thumb || init.url, ondone: (mask) => change({ init: { ...settings.init, mask } }) }) }, init.mask ? "Change the painted part" : "Paint only a part…"),
        init.mask ? h("button", { type: "button", class: "quiet", onclick: () => change({ init: { ...settings.init, mask: null } }) }, "All of it") : null)])
    : dropTile("A picture to begin from", "init");
  return h("div", { class: "fields" },
    h("div", { class: "field", "data-field": "controls" }, h("h3", {}, "Follow its lines"), first),
    h("div", { class: "field", "data-field": "init" }, h("h3", {}, "Begin from it"), second));
}

export function showSeed() {
  if (parts.seed) parts.seed.value = settings.seed;
}
