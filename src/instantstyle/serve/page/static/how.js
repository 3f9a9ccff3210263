// Where and how the style enters, and the numbers of a run.

import { field, h, select, windowField } from "./dom.js";
import { PLACES } from "./references.js";
import { change, plainSeed, settings } from "./settings.js";

export const seedInput = { node: null };

function number(label, name, { min, max, step = 1, placeholder }) {
  const input = h("input", { type: "number", min: String(min), max: String(max), step: String(step), placeholder: String(placeholder), inputmode: "decimal",
    onchange: () => change({ [name]: input.value === "" ? null : Number(input.value) }, "value") });
  input.value = settings[name] ?? "";
  const node = field(label, input);
  node.dataset.field = name;
  return node;
}

export function how(facts) {
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
  seedInput.node = seed;
  const seedField = field("Seed", seed, null, h("button", { type: "button", class: "secondary", onclick: () => { change({ seed: plainSeed() }, "value"); seed.value = settings.seed; } }, "Another"));
  seedField.dataset.field = "seed";
  const options = method.options.map((option) => optionField(option));
  return h("div", { class: "fields" }, methodField, planField, styleFields(method), options, negativeField,
    h("div", { class: "columns" }, seedField, number("Pictures", "count", { min: 1, max: facts.limits.count, placeholder: 1 })),
    h("div", { class: "columns" },
      number("Width", "width", { min: 8, max: facts.limits.side[0], step: facts.model.multiple, placeholder: facts.model.size[0] }),
      number("Height", "height", { min: 8, max: facts.limits.side[1], step: facts.model.multiple, placeholder: facts.model.size[1] })),
    h("div", { class: "columns" },
      number("Steps", "steps", { min: 1, max: facts.limits.steps, placeholder: facts.steps }),
      number("Guidance", "guidance", { min: 0, max: 50, step: 0.1, placeholder: facts.model.guidance })),
    field("Sampler", select([["", "the model's"], ...facts.samplers.map((name) => [name, name])], settings.sampler ?? "", (value) => change({ sampler: value || null }, "value"))),
    kept());
}

const SUBTRACTIONS = [
  ["paper", "As published: picture minus words"],
  ["normalised", "By direction: a share means the same in every model"],
  ["projected", "Only what the words span"],
  ["masked", "Only where picture and words agree"],
];
const COMBINES = [["concat", "Side by side, each speaks for itself"], ["average", "Melted into one, by their shares"]];
const FITS = [["squash", "Squeezed into a square"], ["crop", "Cut to a square"], ["pad", "With white bars"]];

// When in the run, and how several references, their content and their shape are taken; what the method cannot do is said.
function styleFields(method) {
  const can = (name) => method.request_fields.includes(name);
  const choice = (label, name, options, there, otherwise) => {
    const node = field(label, select(options, settings[name], (value) => change({ [name]: value }, "value"), { disabled: !can(name) || !there }),
      can(name) ? (there ? null : otherwise) : "This method has no such choice.");
    node.dataset.field = name;
    return node;
  };
  const { references } = settings;
  return [
    windowField("When the style holds", settings.window, (window) => change({ window }, "value"), "window", { disabled: !can("window") }),
    choice("Several references", "combine", COMBINES, references.length > 1, "With two references or more."),
    choice("How content is taken out", "subtraction", SUBTRACTIONS, references.length > 0, "With a reference that says what it shows."),
    choice("References that are not square", "fit", FITS, references.some((each) => !each.style), "With a picture of your own."),
  ];
}

const REST_WORDS = { reading: "prompt read", clip_skip: "clip skip", guidance_rescale: "guidance rescale" };

// Settings that came with a picture and have no form here: shown, and let go by a button.
function kept() {
  const there = Object.entries(settings.rest);
  if (!there.length) return null;
  return h("div", { class: "row wrap" }, h("p", { class: "hint" }, `Kept from the picture: ${there.map(([name, value]) => `${REST_WORDS[name]} ${value}`).join(", ")}.`),
    h("button", { type: "button", class: "quiet", onclick: () => change({ rest: {} }) }, "Let go"));
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
