// A painted mask: white where something holds, black elsewhere; by brush, by finger, or by the buttons for a side.

import { sendPicture } from "./api.js";
import { dialog, h, slider } from "./dom.js";
import { showError } from "./notices.js";

const SIDE = 512;

export function paintMask({ title, size, start = null, under = null, ondone }) {
  const scale = SIDE / Math.max(...size);
  const width = Math.round(size[0] * scale);
  const height = Math.round(size[1] * scale);
  const canvas = h("canvas", { width, height, class: "paint", role: "img", "aria-label": "The painted part, white" });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.fillStyle = "#000";
  context.fillRect(0, 0, width, height);
  const history = [];
  let brush = 48;
  let colour = "#fff";
  let from = null;

  const remember = () => { history.push(context.getImageData(0, 0, width, height)); if (history.length > 20) history.shift(); };
  const load = (address) => {
    const picture = new Image();
    picture.onload = () => context.drawImage(picture, 0, 0, width, height);
    picture.src = address;
  };
  if (start?.url || start?.thumb) load(start.thumb ?? start.url);

  const at = (event) => {
    const box = canvas.getBoundingClientRect();
    return [((event.clientX - box.left) * width) / box.width, ((event.clientY - box.top) * height) / box.height];
  };
  const stroke = (to) => {
    context.strokeStyle = colour;
    context.lineWidth = brush;
    context.lineCap = context.lineJoin = "round";
    context.beginPath();
    context.moveTo(...from);
    context.lineTo(...to);
    context.stroke();
    from = to;
  };
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    remember();
    from = at(event);
    stroke([from[0] + 0.01, from[1]]);
  });
  canvas.addEventListener("pointermove", (event) => { if (from) stroke(at(event)); });
  for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, () => { from = null; });

  const fill = (x, y, w, h2) => {
    remember();
    context.fillStyle = "#000";
    context.fillRect(0, 0, width, height);
    context.fillStyle = "#fff";
    context.fillRect(x * width, y * height, w * width, h2 * height);
  };
  const button = (text, onclick, props = {}) => h("button", { type: "button", class: "secondary", onclick, ...props }, text);
  const eraser = button("Erase", () => {
    colour = colour === "#fff" ? "#000" : "#fff";
    eraser.setAttribute("aria-pressed", String(colour === "#000"));
  }, { "aria-pressed": "false" });

  const box = dialog(title, h("div", { class: "painter" },
    h("p", { class: "hint" }, "Paint with mouse, pen or finger; white is the part."),
    h("div", { class: "paint-frame" }, under ? h("img", { src: under, alt: "", class: "paint-under" }) : null, canvas),
    slider({ label: "Brush", value: brush, min: 8, max: 160, step: 4, show: (x) => `${x}`, oninput: (x) => { brush = x; } }),
    h("div", { class: "row wrap" },
      eraser,
      button("Undo", () => { const last = history.pop(); if (last) context.putImageData(last, 0, 0); }),
      button("Left half", () => fill(0, 0, 0.5, 1)),
      button("Right half", () => fill(0.5, 0, 0.5, 1)),
      button("Top half", () => fill(0, 0, 1, 0.5)),
      button("Bottom half", () => fill(0, 0.5, 1, 0.5)),
      button("Middle", () => fill(0.25, 0.25, 0.5, 0.5)),
      button("Invert", () => {
        remember();
        const pixels = context.getImageData(0, 0, width, height);
        for (let i = 0; i < pixels.data.length; i += 4) for (let c = 0; c < 3; c++) pixels.data[i + c] = 255 - pixels.data[i + c];
        context.putImageData(pixels, 0, 0);
      }),
      button("Clear", () => fill(0, 0, 0, 0))),
    h("div", { class: "row end" },
      button("Done", () => {
        canvas.toBlob(async (blob) => {
          try {
            const sent = await sendPicture(blob);
            ondone({ url: sent.url, thumb: sent.url, value: null });
            box.close();
          } catch (error) {
            box.close();
            showError(error);
          }
        }, "image/png");
      }, { class: "primary" }))), { wide: true });
}
