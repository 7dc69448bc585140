// Questions to the server. Addresses are relative, so that the page works below any prefix of a proxy.

const TRIES = 4; // of a request that a busy server refuses

let token = null;
let asked = null; // the dialog for the token, while it is open

/** A refusal of the server, or no answer at all. message: one line to show. status: 0 without an answer. */
export class Refusal extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

/** Return all models of the server, as in GET v1/models. */
export async function models() {
  return (await ask("v1/models", {})).models;
}

/** Return the result for a picture, as in POST v1/predict. threshold: 0 to 1, or null for the model's own. */
export function predict(model, file, threshold, signal) {
  return post("v1/predict", { model, ...(threshold === null ? {} : { threshold }) }, file, signal);
}

/** Return the attention of one place in all layers and heads. place: {query}, {x, y} or {token}. */
export function attention(model, file, place, signal) {
  return post("v1/attention", { model, ...place }, file, signal);
}

/** Return maps of one kind, such as rollout. */
export function explain(model, file, what, options, signal) {
  return post("v1/explain", { model, what, ...options }, file, signal);
}

function post(path, options, file, signal) {
  const address = `${path}?${new URLSearchParams(options)}`;
  return ask(address, { method: "POST", body: file, headers: { "Content-Type": "application/octet-stream" }, signal });
}

async function ask(address, request) {
  for (let tries = 1; ; tries++) {
    const response = await send(address, request);
    if (response.ok) return response.json();
    if (response.status === 401) {
      await askForToken();
    } else if (response.status === 503 && tries < TRIES) {
      await pause(Number(response.headers.get("Retry-After")) || 1, request.signal);
    } else {
      throw new Refusal(await reason(response), response.status);
    }
  }
}

async function send(address, request) {
  const headers = { ...request.headers, ...(token === null ? {} : { Authorization: `Bearer ${token}` }) };
  try {
    return await fetch(address, { ...request, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refusal("The server does not answer. Is it still running?", 0);
  }
}

async function reason(response) {
  try {
    return (await response.json()).error.message;
  } catch {
    return `The server answered with status ${response.status}.`;
  }
}

function pause(seconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, 1000 * seconds);
    signal?.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(new DOMException("aborted", "AbortError"));
    });
  });
}

/** Ask for the token once, however many requests wait for it. */
function askForToken() {
  asked ??= new Promise((resolve) => {
    const dialog = document.getElementById("token-dialog");
    const field = dialog.querySelector("input");
    dialog.addEventListener("cancel", (event) => event.preventDefault());
    dialog.addEventListener("close", () => {
      // A header holds one byte a character; others would make the request itself fail.
      token = field.value.trim().replace(/[^\x21-\x7e]/g, "");
      field.value = "";
      asked = null;
      resolve();
    }, { once: true });
    dialog.showModal();
  });
  return asked;
}
