// "Did it work?": three bars from the model's own CLIP, each against the same seed without the reference.

import { h, replace } from "./dom.js";

const ROWS = [
  ["prompt", "Words", "How near the picture is to your words"],
  ["look", "Look", "How near it is to the reference's look"],
  ["content", "Leaked content", "How much of what the reference shows is in it"],
];

export function verdict(m) {
  if (!m) return "";
  const look = m.look - m.look_without;
  const words = m.prompt - m.prompt_without;
  const leaked = m.content === null ? 0 : m.content - m.content_without;
  const style = look > 0.15 ? "The style arrived" : look > 0.04 ? "Some of the style arrived" : "Hardly any of the style arrived";
  const lost = words < -0.08 ? "; your words came out weaker for it" : "";
  const came = leaked > 0.1 ? `; something of “${m.content_words}” came along` : m.content === null ? "" : "; nothing of what the reference shows came along";
  return `${style}${lost}${came}.`;
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
      h("p", { class: "hint" }, "The model's own CLIP compares your words, the reference and the picture; the mark on each bar is the same seed without the reference. It does not see what CLIP does not see: the exact hand of a brush, fine texture, beauty. It can be wrong about a single picture; it is best at ranking many.")));
}
