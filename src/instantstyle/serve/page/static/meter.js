// "Did it work?": three bars from the model's own CLIP, each against the same seed without the reference.

import { h, replace } from "./dom.js";

const ROWS = [
  ["prompt", "Words", "How near the picture is to your words"],
  ["look", "Look", "How near it is to the reference's look"],
  ["content", "Leaked content", "How much of what the reference shows is in it"],
];

// Thresholds from trained cells of the built-in model: benchmarks/results/meter.md.
const SHOWS = 0.35;
const CAME_ALONG = 0.21;

// What the numbers can tell. That a style arrived is not among it: the look does not tell it, so the eye has to.
export function verdict(m) {
  if (!m) return "";
  const shows = m.prompt > SHOWS ? "It shows what you asked for" : "It may not show what you asked for";
  const came = m.content !== null && m.content - m.content_without > CAME_ALONG ? `, and something of “${m.content_words}” may have come along` : "";
  return `${shows}${came}. Whether the style arrived is for your eye: lay it beside the reference.`;
}

const share = (x) => `${Math.round(100 * Math.min(1, Math.max(0, x)))}%`;

export function showMeter(node, m) {
  if (!m) {
    replace(node);
    return;
  }
  const rows = ROWS.filter(([name]) => m[name] !== null).map(([name, label, help]) => {
    const gain = m[name] - m[`${name}_without`];
    const bar = h("div", { class: `bar ${name}`, role: "img", "aria-label": `${label}: ${m[name].toFixed(2)}, without the reference ${m[`${name}_without`].toFixed(2)}` },
      h("span", { class: "fill" }), h("span", { class: "mark" }));
    bar.querySelector(".fill").style.width = share(m[name]);
    bar.querySelector(".mark").style.left = share(m[`${name}_without`]);
    return h("div", { class: "meter-row", title: help },
      h("span", { class: "meter-label" }, label), bar,
      h("span", { class: "meter-gain" }, `${gain >= 0 ? "+" : "−"}${Math.abs(gain).toFixed(2)}`));
  });
  replace(node,
    h("p", { class: "verdict" }, h("strong", {}, "Did it work? "), verdict(m)),
    h("div", { class: "meter-rows" }, rows),
    h("details", { class: "meter-about" }, h("summary", {}, "What this is, and what it cannot tell"),
      h("p", { class: "hint" }, "The model's own CLIP compares your words, the reference and the picture; the mark on each bar is the same seed without the reference. Against pictures that are known to be right, the words’ number was right nine times in ten on drawings the model knew and seven in ten on others; the look’s number was hardly better than a coin, which is why no sentence is made of it. It does not see the exact hand of a brush, fine texture, or beauty.")));
}
