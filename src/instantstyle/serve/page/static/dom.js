// Elements without a framework: h("button", {class: "quiet", onclick: f}, "Draw").

export function h(tag, props = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "class") node.className = value;
    else if (name in node && typeof value !== "string" && name !== "list") node[name] = value;
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat(3).filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

export const $ = (selector, root = document) => root.querySelector(selector);

let numbers = 0;
export const newId = (what) => `${what}-${++numbers}`;

export function replace(node, ...children) {
  node.replaceChildren(...children.flat(3).filter((child) => child !== null && child !== undefined && child !== false));
}

// A labelled control: the label is bound to it, a hint is read with it.
export function field(label, control, hint = null, extra = null) {
  control.id ||= newId("field");
  const parts = [h("label", { for: control.id }, label), control];
  if (hint) {
    const note = h("p", { class: "hint", id: newId("hint") }, hint);
    control.setAttribute("aria-describedby", note.id);
    parts.push(note);
  }
  return h("div", { class: "field" }, parts, extra);
}

export function select(options, value, onchange, props = {}) {
  const node = h("select", { ...props, onchange: (event) => onchange(event.target.value) },
    options.map((option) => {
      const [key, text] = Array.isArray(option) ? option : [option, option];
      return h("option", { value: key, selected: key === value }, text);
    }));
  node.value = value;
  return node;
}

// A slider with its value beside it; `oninput` while it moves.
export function slider({ label, value, min, max, step, oninput, show = (x) => x.toFixed(2), hint = null, big = false }) {
  const output = h("output", {}, show(value));
  const input = h("input", {
    type: "range", min: String(min), max: String(max), step: String(step), id: newId("slider"),
    oninput: () => { output.textContent = show(Number(input.value)); paint(); oninput(Number(input.value)); },
  });
  input.value = String(value);
  output.htmlFor = input.id;
  const paint = () => input.style.setProperty("--at", `${(100 * (input.value - min)) / (max - min)}%`);
  paint();
  const row = h("div", { class: "slider-head" }, h("label", { for: input.id }, label), output);
  const box = h("div", { class: big ? "slider big" : "slider" }, row, input);
  if (hint) {
    const note = h("p", { class: "hint", id: newId("hint") }, hint);
    input.setAttribute("aria-describedby", note.id);
    box.append(note);
  }
  box.set = (x) => { input.value = String(x); output.textContent = show(Number(x)); paint(); };
  box.input = input;
  return box;
}

// A part of the run, as begin and end in percent; what is typed holds, and the other end gives way.
export function windowField(label, value, onchange, name = null, { disabled = false } = {}) {
  const inputs = value.map((x, i) => {
    const input = h("input", { type: "number", min: "0", max: "100", step: "1", inputmode: "numeric", disabled, "aria-label": `${label}: ${i ? "until" : "from"}, percent of the steps`,
      onchange: () => {
        const at = inputs.map((each) => Math.min(100, Math.max(0, Math.round(Number(each.value) || 0))));
        at[i] = i ? Math.max(1, at[1]) : Math.min(99, at[0]);
        at[1 - i] = i ? Math.min(at[0], at[1] - 1) : Math.max(at[1], at[0] + 1);
        inputs.forEach((each, j) => { each.value = at[j]; });
        onchange(at.map((each) => each / 100));
      } });
    input.value = Math.round(100 * x);
    return input;
  });
  return h("div", { class: "field window", role: "group", "aria-label": label, "data-field": name },
    h("span", { class: "label" }, label), h("div", { class: "row" }, h("span", {}, "from"), inputs[0], h("span", {}, "% to"), inputs[1], h("span", {}, "% of the steps")));
}

export function download(url, name) {
  const link = h("a", { href: url, download: name });
  document.body.append(link);
  link.click();
  link.remove();
}

export function debounce(wait, f) {
  let timer = 0;
  return (...given) => {
    clearTimeout(timer);
    timer = setTimeout(() => f(...given), wait);
  };
}

export function chooseFile(accept, take, multiple = false) {
  const input = h("input", { type: "file", accept, multiple, class: "visually-hidden", "aria-hidden": "true", tabindex: "-1" });
  input.addEventListener("change", () => { take([...input.files]); input.remove(); });
  document.body.append(input);
  input.click();
}

// A modal dialog that says its name, closes by Escape or its button, and gives the focus back.
export function dialog(title, content, { wide = false, onclose = null } = {}) {
  const heading = h("h2", { id: newId("title") }, title);
  const box = h("dialog", { "aria-labelledby": heading.id, class: wide ? "wide" : "" },
    h("header", {}, heading,
      h("button", { type: "button", class: "quiet icon close", "aria-label": "Close", onclick: () => box.close() }, "×")),
    content);
  box.addEventListener("click", (event) => { if (event.target === box) box.close(); });
  box.addEventListener("close", () => { box.remove(); onclose?.(); });
  document.body.append(box);
  box.showModal();
  return box;
}
