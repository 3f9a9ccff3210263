// Pictures to follow by their lines, one or several, and a picture to begin from, all of it or a painted part.

import { field, h, select, slider, windowField } from "./dom.js";
import { paintMask } from "./paint.js";
import { dropTile } from "./references.js";
import { change, settings } from "./settings.js";

const MOST = 16; // controls of a request

export function follows(facts) {
  return h("div", { class: "fields" },
    h("div", { class: "field", "data-field": "controls" }, h("h3", {}, "Follow their lines"),
      !facts.controls.length ? h("p", { class: "hint" }, "This model has no ControlNet.")
        : [settings.controls.map((each, i) => controlCard(each, i, facts)),
          settings.controls.length < MOST ? dropTile(settings.controls.length ? "Another picture whose lines to follow" : "A picture whose lines to follow", "control") : null]),
    h("div", { class: "field", "data-field": "init" }, h("h3", {}, "Begin from it"), settings.init ? initCard(facts) : dropTile("A picture to begin from", "init")));
}

function picked(picture, alt, remove, ...parts) {
  return h("article", { class: "picked", "aria-label": alt }, h("img", { src: picture.thumb || picture.url, alt, width: "72", height: "72" }),
    h("div", { class: "reference-body" }, parts, h("button", { type: "button", class: "quiet", onclick: remove }, "Remove")));
}

function controlCard(control, i, facts) {
  const update = (fields) => change({ controls: settings.controls.map((each) => (each.key === control.key ? { ...each, ...fields } : each)) }, "value");
  return picked(control, `Followed picture ${i + 1}`, () => change({ controls: settings.controls.filter((each) => each.key !== control.key) }),
    field("What of it", select([...facts.controls.map((kind) => [kind, kind]), ["image", "as it is"]], control.kind, (kind) => update({ kind }))),
    slider({ label: "How closely", value: control.weight, min: 0, max: 1.5, step: 0.05, oninput: (weight) => update({ weight }) }),
    windowField("When it holds", control.window, (window) => update({ window })));
}

function initCard(facts) {
  const { init } = settings;
  const size = [settings.width ?? facts.model.size[0], settings.height ?? facts.model.size[1]];
  const paint = () => paintMask({
    title: "What is painted anew", size, start: init.mask, under: init.thumb || init.url, ondone: (mask) => change({ init: { ...settings.init, mask } }),
  });
  return picked(init, "The picture to begin from", () => change({ init: null }),
    slider({ label: "How much is drawn anew", value: init.strength, min: 0.05, max: 1, step: 0.05, oninput: (x) => change({ init: { ...settings.init, strength: x } }, "value") }),
    h("div", { class: "row" },
      h("button", { type: "button", class: "secondary", id: "paint-init", onclick: paint }, init.mask ? "Change the painted part" : "Paint only a part…"),
      init.mask ? h("button", { type: "button", class: "quiet", onclick: () => change({ init: { ...settings.init, mask: null } }) }, "All of it") : null));
}
