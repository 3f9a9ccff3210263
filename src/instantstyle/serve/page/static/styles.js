// The style library: look, use, share as files, add, and save what is set as a style.

import { call } from "./api.js";
import { $, chooseFile, dialog, download, field, h, replace } from "./dom.js";
import { showError, toast } from "./notices.js";
import { addStyle, takeFiles } from "./references.js";
import { settings } from "./settings.js";
import { showTab } from "./tabs.js";

let list = null;
let changed = null;

export async function readStyles() {
  return (await call("/v1/styles")).styles;
}

export function buildStyles(onchange) {
  changed = onchange;
  list = h("div", { class: "style-list" });
  replace($("#view-styles"),
    h("div", { class: "page-head" }, h("h2", {}, "Styles"),
      h("div", { class: "row wrap" },
        h("button", { type: "button", class: "primary", onclick: make }, "New style from pictures"),
        h("button", { type: "button", class: "secondary", onclick: () => chooseFile(".safetensors", (files) => takeFiles(files)) }, "Add a style file"))),
    h("p", { class: "hint" }, "A style is a small file that holds what the model saw of its pictures, small copies of them, and their licence. Give the file to others; nothing in it can run."),
    list);
  document.addEventListener("styles", refresh);
}

export async function refresh() {
  const styles = await readStyles();
  changed(styles);
  draw(styles);
}

export function draw(styles) {
  replace(list, styles.map((each) => h("article", { class: "style-card", "aria-label": each.name },
    each.thumbnail ? h("img", { src: each.thumbnail, alt: `The style ${each.name}`, loading: "lazy" }) : h("span", { class: "no-picture" }),
    h("h3", {}, each.name),
    h("p", { class: "hint" }, h("span", { class: "tag" }, each.licence || "no licence said"), " ", each.credit),
    h("div", { class: "row wrap" },
      h("button", { type: "button", class: "secondary", "aria-label": `Use ${each.name}`, onclick: () => { addStyle(each); showTab("draw"); } }, "Use"),
      h("button", { type: "button", class: "quiet", "aria-label": `Download ${each.name}`, onclick: () => download(each.file, `${each.name}.style.safetensors`) }, "File"),
      each.shipped ? null : h("button", { type: "button", class: "quiet danger", "aria-label": `Delete ${each.name}`, onclick: () => remove(each) }, "Delete")))));
}

async function remove(each) {
  try {
    await call(`/v1/styles/${encodeURIComponent(each.name)}`, { method: "DELETE" });
    await refresh();
  } catch (error) {
    toast(error.message);
  }
}

function make() {
  let files = [];
  const chosen = h("p", { class: "hint" }, "No picture chosen yet");
  const text = (name, props = {}) => h("input", { type: "text", name, autocomplete: "off", ...props });
  const name = text("name", { required: true, maxlength: "64" });
  const content = text("content", { maxlength: "200", placeholder: "what the pictures show" });
  const licence = text("licence", { maxlength: "200", placeholder: "CC-BY-4.0" });
  const credit = text("credit", { maxlength: "500", placeholder: "who made them" });
  const problem = h("p", { class: "error-text", role: "alert" });
  const form = h("form", { class: "fields", onsubmit: async (event) => {
    event.preventDefault();
    const body = new FormData();
    for (const file of files) body.append("picture", file);
    for (const input of [name, content, licence, credit]) if (input.value.trim()) body.append(input.name, input.value.trim());
    try {
      const made = await call("/v1/styles", { method: "POST", body });
      box.close();
      await refresh();
      toast(`The style “${made.name}” is in your library.`);
    } catch (error) {
      problem.textContent = error.message;
    }
  } },
    h("div", { class: "row" }, h("button", { type: "button", class: "secondary", onclick: () => chooseFile("image/*", (some) => { files = some; chosen.textContent = `${some.length} chosen: ${some.map((f) => f.name).join(", ").slice(0, 80)}`; }, true) }, "Choose pictures"), chosen),
    field("Name", name), field("What they show, to be left out", content), field("Licence", licence), field("Credit", credit), problem,
    h("div", { class: "row end" }, h("button", { type: "submit", class: "primary" }, "Save the style")));
  const own = settings.references.filter((each) => each.url?.startsWith("/v1/inputs/"));
  if (own.length) {
    Promise.all(own.map(async (each) => new File([await (await fetch(each.url)).blob()], `${each.name}.png`, { type: "image/png" }))).then((some) => {
      if (!files.length) { files = some; chosen.textContent = `${some.length} chosen: your references`; }
    }).catch(showError);
  }
  const box = dialog("New style from pictures", form);
}
