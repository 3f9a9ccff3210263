// What is asked of the server.  Every refusal is an Error whose message is the server's sentence.

export class Refused extends Error {
  constructor(status, detail) {
    super(detail.message);
    this.status = status;
    this.param = detail.param;
    this.code = detail.code;
  }
}

function clientId() {
  let id = localStorage.getItem("client");
  if (!id) {
    id = `page-${Array.from(crypto.getRandomValues(new Uint8Array(9)), (x) => x.toString(36)).join("")}`.slice(0, 24);
    localStorage.setItem("client", id);
  }
  return id;
}

const client = clientId();
export const onUnauthorized = { handle: null };

export async function call(path, { method = "GET", json, body, headers = {}, signal } = {}) {
  const sent = { method, signal, headers: { "X-Client-Id": client, ...headers } };
  if (json !== undefined) {
    sent.body = JSON.stringify(json);
    sent.headers["Content-Type"] = "application/json";
  } else if (body !== undefined) {
    sent.body = body;
  }
  let answer;
  try {
    answer = await fetch(path, sent);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused(0, { message: "The studio does not answer. It is tried again; nothing that was queued is lost." });
  }
  if (answer.status === 204) return null;
  const text = await answer.text();
  let data = null;
  try { data = JSON.parse(text); } catch { /* told below */ }
  if (!answer.ok) {
    if (answer.status === 401 && path !== "/v1/login") onUnauthorized.handle?.();
    throw new Refused(answer.status, data?.error ?? { message: `The server answered ${answer.status}.` });
  }
  return data;
}

export const submit = (request, { draft = false, meter = false, preview = true, replaces = null, wait = 0, key = null, signal } = {}) => {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries({ draft, meter, replaces, wait })) if (value) query.set(name, value);
  if (!preview) query.set("preview", "false");
  return call(`/v1/jobs?${query}`, { method: "POST", json: request, signal, headers: key ? { "Idempotency-Key": key } : {} });
};

export const job = (id) => call(`/v1/jobs/${id}`);
export const cancel = (id) => call(`/v1/jobs/${id}/cancel`, { method: "POST" });
export const retry = (id) => call(`/v1/jobs/${id}/retry`, { method: "POST" });
export const sendPicture = (file) => call("/v1/inputs", { method: "POST", body: file, headers: { "Content-Type": file.type || "application/octet-stream" } });
export const recall = (file) => call("/v1/recall", { method: "POST", body: file, headers: { "Content-Type": "application/octet-stream" } });

export const newKey = () => `${client}-${Date.now().toString(36)}-${crypto.getRandomValues(new Uint32Array(1))[0].toString(36)}`;
