// The four parts of the page, as tabs that arrow keys move between.

import { $ } from "./dom.js";

const NAMES = ["draw", "grid", "gallery", "styles"];
const shown = new Set();
export const onShow = {};

export function buildTabs() {
  for (const name of NAMES) {
    const tab = $(`#tab-${name}`);
    tab.addEventListener("click", () => showTab(name));
    tab.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      const target = event.key === "Home" ? NAMES[0] : event.key === "End" ? NAMES.at(-1) : step ? NAMES.at((NAMES.indexOf(name) + step) % NAMES.length) : null;
      if (target) {
        event.preventDefault();
        showTab(target);
        $(`#tab-${target}`).focus();
      }
    });
  }
  addEventListener("hashchange", () => showTab(location.hash.slice(1)));
  if (NAMES.includes(location.hash.slice(1))) showTab(location.hash.slice(1));
}

export function showTab(name) {
  if (!NAMES.includes(name)) return;
  for (const each of NAMES) {
    $(`#view-${each}`).hidden = each !== name;
    $(`#tab-${each}`).setAttribute("aria-selected", String(each === name));
    $(`#tab-${each}`).tabIndex = each === name ? 0 : -1;
  }
  if (location.hash.slice(1) !== name) history.replaceState(null, "", name === "draw" ? location.pathname : `#${name}`);
  onShow[name]?.(!shown.has(name));
  shown.add(name);
}
