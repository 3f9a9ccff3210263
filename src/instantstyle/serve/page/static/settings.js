// The settings of the next picture: one object, kept over a reload, told to whoever listens.

const KEY = "settings-2";

export const fresh = () => ({
  prompt: "", negative: "", references: [], strength: 1, method: "instantstyle", plan: "style", seed: 7,
  width: null, height: null, count: 1, steps: null, guidance: null, sampler: null, options: {},
  window: [0, 1], subtraction: "paper", combine: "concat", fit: "squash",
  controls: [], init: null, live: true, bestOf: 4, rest: {},
});

let numbers = 0;
export const newControl = (fields) => ({
  key: `c${Date.now().toString(36)}${numbers++}`, url: "", value: null, thumb: "", name: "picture", kind: "canny", weight: 0.6, window: [0, 1], ...fields,
});

function restored() {
  try {
    const { control, ...kept } = JSON.parse(localStorage.getItem(KEY) ?? "{}");
    const controls = control ? [newControl(control)] : []; // as pages kept it that knew of one alone
    return { ...fresh(), controls, ...kept };
  } catch {
    return fresh();
  }
}

export const settings = restored();
export const isFirstVisit = localStorage.getItem(KEY) === null;
const listeners = new Set();

export const onSettings = (f) => listeners.add(f);

// `what` says what changed, so that forms draw themselves anew only where they must.
export function change(fields, what = "all") {
  Object.assign(settings, fields);
  try {
    localStorage.setItem(KEY, JSON.stringify(settings));
  } catch { /* full or forbidden: the page works without memory */ }
  for (const f of listeners) f(what);
}

export const plainSeed = () => crypto.getRandomValues(new Uint32Array(1))[0] % 1_000_000;

let references = 0;
export const newReference = (fields) => ({
  key: `r${Date.now().toString(36)}${references++}`, url: "", value: null, thumb: "", name: "", style: null,
  content: "", contentWeight: 0.5, weight: 1, plan: "", mask: null, licence: "", adapter: null, ...fields,
});

// Fields that each method uses, as the server's table says: what a method does not use is not sent.
const methods = new Map();
export const knowMethods = (list) => list.forEach((each) => methods.set(each.name, each));
const uses = (method, kind, name) => methods.get(method)?.[kind]?.includes(name) ?? true;

// What is said of the style as a whole, and what it is where nothing is said.
const STYLE_DEFAULTS = { window: [0, 1], subtraction: "paper", combine: "concat", fit: "squash" };
const says = (name, s) => ({
  window: true,
  subtraction: s.references.some((each) => each.content),
  combine: s.references.length > 1,
  fit: s.references.some((each) => !each.style),
})[name];

// Fields that have no form here and stay as they came with a request that was used again.
export const REST = ["reading", "clip_skip", "guidance_rescale"];
const PLAIN_REST = { reading: "plain", clip_skip: null, guidance_rescale: null };

const maskValue = (mask) => (mask ? mask.value ?? mask.url : undefined);

// A Request as JSON.  `given` overrides fields, as grids do.
export function toRequest(given = {}, source = settings) {
  const s = { ...source, ...given };
  const request = { prompt: s.prompt, method: s.method, seed: s.seed, count: s.count };
  if (s.negative) request.negative = s.negative;
  if (uses(s.method, "request_fields", "plan") && s.plan !== "style") request.plan = s.plan;
  if (s.width && s.height) request.size = [s.width, s.height];
  for (const name of ["steps", "guidance", "sampler"]) if (s[name] !== null && s[name] !== "") request[name] = s[name];
  if (Object.keys(s.options ?? {}).length) request.options = s.options;
  for (const name of REST) if (s.rest?.[name] !== undefined) request[name] = s.rest[name];
  if (s.references.length && s.method !== "none") {
    for (const [name, plain] of Object.entries(STYLE_DEFAULTS)) {
      if (says(name, s) && uses(s.method, "request_fields", name) && String(s[name]) !== String(plain)) request[name] = s[name];
    }
    request.references = s.references.map((each) => {
      const reference = { image: each.value ?? each.url, weight: Math.round(1000 * each.weight * s.strength) / 1000 };
      if (each.content && uses(s.method, "reference_fields", "content")) {
        reference.content = each.content;
        reference.content_weight = each.contentWeight;
      }
      if (each.plan && uses(s.method, "reference_fields", "plan")) reference.plan = each.plan;
      if (each.adapter && uses(s.method, "reference_fields", "adapter")) reference.adapter = each.adapter;
      if (each.mask && uses(s.method, "reference_fields", "mask")) reference.mask = maskValue(each.mask);
      return reference;
    });
  } else {
    request.method = "none";
    delete request.plan;
    delete request.options;
  }
  if (s.controls.length) request.controls = s.controls.map(({ kind, value, url, weight, window }) => ({ kind, image: value ?? url, weight, window }));
  if (s.init) {
    request.init = { image: s.init.value ?? s.init.url, strength: s.init.strength };
    if (s.init.mask) request.init.mask = maskValue(s.init.mask);
  }
  return request;
}

// Settings of a request as the server shows it: of a job, or of a picture that was dropped.
export function fromRequest(request) {
  const reach = (picture) => (picture ? { url: picture.url, thumb: picture.url, value: picture.value ?? null } : null);
  return {
    ...fresh(),
    prompt: request.prompt ?? "",
    negative: request.negative ?? "",
    method: request.references?.length ? request.method : "instantstyle",
    plan: typeof request.plan === "string" ? request.plan : "style",
    seed: request.seed ?? plainSeed(),
    width: request.size?.[0] ?? null,
    height: request.size?.[1] ?? null,
    count: request.count ?? 1,
    steps: request.steps ?? null,
    guidance: request.guidance ?? null,
    sampler: request.sampler ?? null,
    options: request.options ?? {},
    strength: 1,
    live: settings.live,
    references: (request.references ?? []).map((each) => newReference({
      ...reach(each.image),
      style: each.image?.style ?? null,
      name: each.image?.style ?? "picture",
      licence: each.image?.licence ?? "",
      content: Array.isArray(each.content) ? each.content.join(", ") : each.content ?? "",
      contentWeight: each.content_weight ?? 0.5,
      weight: each.weight ?? 1,
      plan: each.plan ?? "",
      adapter: each.adapter ?? null,
      mask: reach(each.mask),
    })),
    window: request.window ?? [0, 1],
    subtraction: request.subtraction ?? "paper",
    combine: request.combine ?? "concat",
    fit: request.fit ?? "squash",
    bestOf: settings.bestOf,
    rest: Object.fromEntries(REST.filter((name) => (request[name] ?? PLAIN_REST[name]) !== PLAIN_REST[name]).map((name) => [name, request[name]])),
    controls: (request.controls ?? []).map((each) => newControl({ ...reach(each.image), kind: each.kind, weight: each.weight ?? 0.6, window: each.window ?? [0, 1] })),
    init: request.init ? { ...reach(request.init.image), strength: request.init.strength, mask: reach(request.init.mask) } : null,
  };
}
