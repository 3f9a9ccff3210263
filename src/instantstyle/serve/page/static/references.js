// References: pictures and styles of the library that the next picture follows, and what is said of each.

import { call, recall, sendPicture } from "./api.js";
import { chooseFile, field, h, newId, replace, select, slider } from "./dom.js";
import { showError, toast } from "./notices.js";
import { paintMask } from "./paint.js";
import { change, fromRequest, newControl, newReference, settings } from "./settings.js";

export const PLACES = [
  ["", "As set for all"],
  ["style", "Style only"],
  ["layout", "Layout only"],
  ["style+layout", "Style and layout"],
  ["all", "Everywhere"],
  ["precise", "Style, precisely (its layout is pushed away)"],
];

const MOST = 16; // references of a request

export const isPicture = (file) => file.type.startsWith("image/") || /\.(png|jpe?g|webp|gif|bmp|tiff?|avif)$/i.test(file.name);

// What dropped, pasted and chosen files become: a style card is saved, a picture with settings offers them.
export async function takeFiles(files, as = "reference") {
  for (const file of files) {
    if (file.name.endsWith(".safetensors")) {
      await takeCard(file);
      continue;
    }
    if (!isPicture(file)) {
      toast(`${file.name || "This"} is no picture: drop PNG, JPEG, WebP, GIF, BMP, TIFF or AVIF, or a style card.`);
      continue;
    }
    try {
      const sent = await sendPicture(file);
      place(as, { url: sent.url, thumb: sent.url, name: file.name.replace(/\.\w+$/, "").slice(0, 40) || "picture" });
      offerSettings(file);
    } catch (error) {
      showError(error);
    }
  }
}

export function place(as, picture) {
  if (as === "control") change({ controls: [...settings.controls, newControl(picture)] });
  else if (as === "init") change({ init: { strength: 0.6, mask: null, ...picture } });
  else addReference(picture);
}

export function addReference(fields) {
  const added = newReference(fields);
  const kept = settings.references.filter((each) => each.url !== added.url || !added.url);
  const others = kept.length === 1 && kept[0].style && added.style ? [] : kept; // a style of the library takes the other's place
  if (others.length >= MOST) {
    toast(`A picture follows at most ${MOST} references: remove one first.`);
    return;
  }
  change({ references: [...others, added], method: settings.method === "none" ? "instantstyle" : settings.method });
  if (!added.style) guess(added.key);
}

async function takeCard(file) {
  const body = new FormData();
  body.append("card", file);
  try {
    const style = await call("/v1/styles", { method: "POST", body });
    toast(`The style “${style.name}” is in your library${style.licence ? `, under ${style.licence}` : ""}.`);
    addStyle(style);
    document.dispatchEvent(new CustomEvent("styles"));
  } catch (error) {
    showError(error);
  }
}

export function addStyle(style) {
  addReference({
    url: `/v1/styles/${encodeURIComponent(style.name)}`, thumb: style.thumbnail, name: style.name, style: style.name,
    licence: style.licence,
  });
}

export const hasStyle = (name) => settings.references.some((each) => each.style === name);
export const removeReference = (key) => change({ references: settings.references.filter((each) => each.key !== key) });

function update(key, fields, what = "value") {
  change({ references: settings.references.map((each) => (each.key === key ? { ...each, ...fields } : each)) }, what);
}

async function offerSettings(file) {
  if (file.type && file.type !== "image/png") return;
  try {
    const found = await recall(file);
    if (!found.program) return;
    toast(`This picture says how it was made (${found.program}).`, {
      action: "Use its settings", onaction: () => useRecalled(found),
    });
  } catch { /* it carries none */ }
}

export function useRecalled(found) {
  change(fromRequest(found.request));
  const left = found.left_out.length ? ` Left out, for it has no counterpart here: ${found.left_out.join(", ")}.` : "";
  toast(`These are its settings.${left}`, { lasting: Boolean(left) });
}

const guesses = new Map();

// The model's own guess of what a picture shows, offered and never set by itself.
async function guess(key) {
  const reference = settings.references.find((each) => each.key === key);
  if (!reference?.url || guesses.has(reference.url)) return;
  try {
    const { words } = await call("/v1/guess", { method: "POST", json: { image: reference.url } });
    guesses.set(reference.url, words);
    change({}, "note");
  } catch { /* no guess, no harm */ }
}

export function referencesPart(facts) {
  const box = h("div", { class: "references", "data-field": "references" });
  const draw = () => replace(box, settings.references.map((each) => card(each, facts)));
  draw();
  return { box, draw };
}

function card(reference, facts) {
  const name = reference.name || "picture";
  const details = h("details", { class: "reference-more" }, h("summary", {}, `About ${name}`), about(reference, facts));
  details.open = openCards.has(reference.key);
  details.addEventListener("toggle", () => (details.open ? openCards.add(reference.key) : openCards.delete(reference.key)));
  return h("article", { class: "reference", "aria-label": `Reference ${name}` },
    h("img", { src: reference.thumb || reference.url, alt: `Reference: ${name}`, width: "72", height: "72" }),
    h("div", { class: "reference-body" },
      h("div", { class: "reference-head" },
        h("strong", {}, name),
        reference.licence ? h("span", { class: "tag" }, reference.licence) : null,
        h("button", {
          type: "button", class: "quiet icon", "aria-label": `Remove ${name}`, onclick: () => removeReference(reference.key),
        }, "×")),
      details));
}

const openCards = new Set();

function about(reference, facts) {
  const parts = [];
  if (settings.references.length > 1) {
    parts.push(slider({
      label: "Its share", value: reference.weight, min: 0, max: 2, step: 0.05,
      oninput: (x) => update(reference.key, { weight: x }),
    }));
  }
  const shows = h("input", {
    type: "text", maxlength: "200", placeholder: "a dog", autocomplete: "off",
    oninput: (event) => update(reference.key, { content: event.target.value }),
  });
  shows.value = reference.content;
  const offered = (guesses.get(reference.url) ?? []).slice(0, 3).map((word) =>
    h("button", {
      type: "button", class: "chip",
      onclick: () => { shows.value = word; update(reference.key, { content: word }); },
    }, word));
  parts.push(field("What it shows, to be left out", shows,
    "Named here, it is taken out of the style and does not come along.",
    offered.length ? h("div", { class: "chips" }, h("span", { class: "hint" }, "It may be:"), offered) : null));
  parts.push(slider({
    label: "How much of that", value: reference.contentWeight, min: 0, max: 2, step: 0.05,
    oninput: (x) => update(reference.key, { contentWeight: x }),
  }));
  const known = PLACES.some(([key]) => key === reference.plan);
  const blocks = h("input", {
    type: "text", placeholder: facts ? `${facts.blocks.at(-1)}=1, ${facts.blocks[0]}=0.5` : "", autocomplete: "off", hidden: known,
    "aria-label": "Blocks and how strongly", onchange: (event) => update(reference.key, { plan: event.target.value.trim() }),
  });
  blocks.value = known ? "" : reference.plan;
  parts.push(field("Where it speaks", select([...PLACES, ["blocks", "Single blocks…"]], known ? reference.plan : "blocks", (value) => {
    blocks.hidden = value !== "blocks";
    if (value === "blocks") blocks.focus();
    else update(reference.key, { plan: value });
  }), null, blocks));
  const mask = h("div", { class: "row" },
    h("button", {
      type: "button", class: "secondary",
      onclick: () => paintMask({
        title: "Where this reference speaks", size: [settings.width ?? facts?.model.size[0] ?? 512, settings.height ?? facts?.model.size[1] ?? 512],
        start: reference.mask, ondone: (painted) => update(reference.key, { mask: painted }, "references"),
      }),
    }, reference.mask ? "Change where" : "Paint where…"),
    reference.mask ? h("button", { type: "button", class: "quiet", onclick: () => update(reference.key, { mask: null }, "references") }, "Everywhere again") : null);
  parts.push(h("div", { class: "field" }, mask, h("p", { class: "hint" }, "A part of the picture that alone follows this reference.")));
  return h("div", { class: "reference-fields" }, parts);
}

// The tile that takes files by drop, click and key.
export function dropTile(text, as = "reference") {
  const id = newId("drop");
  const tile = h("button", {
    type: "button", class: "drop-tile", id,
    onclick: () => chooseFile("image/*,.safetensors", (files) => takeFiles(files, as), as !== "init"),
    ondragover: (event) => { event.preventDefault(); tile.classList.add("over"); },
    ondragleave: () => tile.classList.remove("over"),
    ondrop: (event) => {
      event.preventDefault();
      event.stopPropagation();
      tile.classList.remove("over");
      document.dispatchEvent(new CustomEvent("dropped"));
      takeFiles([...event.dataTransfer.files], as);
    },
  }, h("span", { class: "plus", "aria-hidden": "true" }, "+"), text);
  return tile;
}
