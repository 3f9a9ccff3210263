// Grids: strength by seed, methods side by side, one prompt in many styles.  Each cell is a job of its own.

import { cancel, submit } from "./api.js";
import { $, download, h, replace, select } from "./dom.js";
import { open } from "./gallery.js";
import { jobs, note, onJobs } from "./jobs.js";
import { verdict } from "./meter.js";
import { showError, toast } from "./notices.js";
import { settings, toRequest } from "./settings.js";

let facts = null;
let styles = [];
let kind = "strength";
let cells = []; // {row, column, request, job, node}
let head = null;
let sheet = null;
let start = null;

const STRENGTHS = [0, 0.5, 1, 1.5];

function plan() {
  const seeds = [0, 1, 2].map((i) => settings.seed + i);
  if (kind === "strength") {
    return { rows: seeds.map((seed) => `seed ${seed}`), columns: STRENGTHS.map((x) => `strength ${x}`),
      of: (i, j) => toRequest({ seed: seeds[i], strength: STRENGTHS[j], count: 1 }) };
  }
  if (kind === "methods") {
    const names = facts.methods.filter((each) => each.live || each.name !== "b-lora").map((each) => each.name);
    return { rows: [`seed ${settings.seed}`], columns: names, of: (_, j) => toRequest({ method: names[j], options: {}, plan: "style", count: 1,
      references: settings.references.map((each) => ({ ...each, plan: "", mask: null, content: names[j] === "ip-adapter" ? "" : each.content })) }) };
  }
  const chosen = styles.slice(0, 16);
  return { rows: [settings.prompt || "…"], columns: chosen.map((each) => each.name), of: (_, j) => toRequest({ count: 1, method: settings.method === "none" ? "instantstyle" : settings.method,
    references: [{ url: `/v1/styles/${encodeURIComponent(chosen[j].name)}`, weight: 1, content: "", contentWeight: 0.5, plan: "", mask: null, style: chosen[j].name }] }) };
}

export function buildGrid(given, library) {
  facts = given;
  styles = library;
  head = h("p", { class: "hint" });
  sheet = h("div", { class: "sheet-box" });
  start = h("button", { type: "button", class: "primary", onclick: run }, "Draw the grid");
  const kinds = [["strength", "Strength by seed"], ["methods", "Methods side by side"], ["styles", "One prompt, many styles"]];
  replace($("#view-grid"),
    h("div", { class: "page-head" }, h("h2", {}, "Grids"),
      h("div", { class: "row wrap" },
        h("div", { class: "field inline" }, h("label", { for: "grid-kind" }, "Compare"), select(kinds, kind, (value) => { kind = value; describe(); }, { id: "grid-kind" })),
        start,
        h("button", { type: "button", class: "secondary", onclick: stop }, "Stop"),
        h("button", { type: "button", class: "secondary", onclick: save }, "Save as one picture"))),
    head, h("div", { id: "grid-error", "data-field": "grid" }), sheet);
  onJobs((each) => { const cell = each && cells.find((one) => one.job === each.id); if (cell) paint(cell); });
  describe();
}

export function describe() {
  if (!head) return;
  const styled = settings.references.map((each) => each.name).join(" and ");
  head.textContent = kind === "styles" ? `“${settings.prompt}” in each style of the library, seed ${settings.seed}.`
    : styled ? `“${settings.prompt}” in the style of ${styled}: as set under Draw.` : "Choose a reference under Draw first.";
  start.disabled = (kind !== "styles" && !settings.references.length) || !settings.prompt.trim();
}

async function run() {
  const { rows, columns, of } = plan();
  cells = [];
  const table = h("table", { class: "sheet" },
    h("caption", { class: "visually-hidden" }, head.textContent),
    h("thead", {}, h("tr", {}, h("td", {}), columns.map((text) => h("th", { scope: "col" }, text)))),
    h("tbody", {}, rows.map((text, i) => h("tr", {}, h("th", { scope: "row" }, text), columns.map((name, j) => {
      const node = h("td", {}, h("div", { class: "cell waiting" }));
      cells.push({ row: text, column: name, request: of(i, j), job: null, node });
      return node;
    })))));
  replace(sheet, table);
  table.classList.toggle("long", rows.length === 1);
  for (const cell of cells) {
    try {
      const view = await submit(cell.request, { meter: true });
      cell.job = view.id;
      note(view);
      paint(cell);
    } catch (error) {
      replace(cell.node, h("div", { class: "cell failed" }, h("p", {}, error.message)));
      if (error.status === 429) { toast(error.message); break; }
    }
  }
}

function stop() {
  for (const cell of cells) if (["queued", "running"].includes(jobs.get(cell.job)?.state)) cancel(cell.job).then(note).catch(showError);
}

function paint(cell) {
  const each = jobs.get(cell.job);
  if (!each) return;
  const image = each.images?.[0];
  if (each.state === "done" && image) {
    replace(cell.node, h("button", { type: "button", class: "cell", title: verdict(image.meter), "aria-label": `${cell.column}, ${cell.row}`, onclick: () => open(image) }, h("img", { src: image.url, alt: "" })));
  } else if (each.state === "failed" || each.state === "cancelled") {
    replace(cell.node, h("div", { class: "cell failed" }, h("p", {}, each.error ?? "cancelled")));
  } else if (each.preview) {
    replace(cell.node, h("div", { class: "cell waiting" }, h("img", { src: each.preview, alt: "" })));
  }
}

async function save() {
  const done = cells.filter((cell) => jobs.get(cell.job)?.images?.[0]);
  if (!done.length) { toast("Draw a grid first."); return; }
  const columns = [...new Set(cells.map((cell) => cell.column))];
  const rows = [...new Set(cells.map((cell) => cell.row))];
  const side = 160;
  const canvas = h("canvas", { width: 120 + columns.length * (side + 8), height: 36 + rows.length * (side + 8) });
  const paper = canvas.getContext("2d");
  paper.fillStyle = "#fff";
  paper.fillRect(0, 0, canvas.width, canvas.height);
  paper.fillStyle = "#222";
  paper.font = "13px sans-serif";
  columns.forEach((name, j) => paper.fillText(name, 120 + j * (side + 8), 24, side));
  rows.forEach((name, i) => paper.fillText(name, 8, 36 + i * (side + 8) + side / 2, 108));
  for (const cell of done) {
    const picture = new Image();
    picture.src = jobs.get(cell.job).images[0].url;
    await picture.decode();
    paper.drawImage(picture, 120 + columns.indexOf(cell.column) * (side + 8), 36 + rows.indexOf(cell.row) * (side + 8), side, side);
  }
  canvas.toBlob((blob) => download(URL.createObjectURL(blob), "grid.png"));
}
