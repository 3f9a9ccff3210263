// Sentences to the person: short notes that go, and errors where they belong.

import { $, h } from "./dom.js";

export function toast(text, { action = null, onaction = null, lasting = false } = {}) {
  const box = h("div", { class: "toast" }, h("p", {}, text));
  if (action) box.append(h("button", { type: "button", class: "quiet", onclick: () => { box.remove(); onaction(); } }, action));
  box.append(h("button", { type: "button", class: "quiet icon", "aria-label": "Dismiss", onclick: () => box.remove() }, "×"));
  $("#toasts").append(box);
  while ($("#toasts").children.length > 4) $("#toasts").firstChild.remove();
  if (!lasting) setTimeout(() => box.remove(), action ? 12000 : 6000);
  return box;
}

export function banner(text) {
  const node = $("#banner");
  node.hidden = !text;
  node.textContent = text ?? "";
}

// An error sentence under the part of the form it is about; without such a part under the picture.
export function showError(error) {
  clearErrors();
  const root = (error.param ?? "").split(".")[0];
  const place = document.querySelector(`[data-field="${CSS.escape(root || "none")}"]`) ?? $("#stage-error");
  const sentence = error.message.charAt(0).toUpperCase() + error.message.slice(1);
  const note = h("p", { class: "error", role: "alert" }, sentence.endsWith(".") ? sentence : `${sentence}.`);
  place.closest("details")?.setAttribute("open", "");
  place.append(note);
  if (place.id !== "stage-error") note.scrollIntoView({ block: "nearest" });
}

export function clearErrors() {
  for (const node of document.querySelectorAll(".error")) node.remove();
}
