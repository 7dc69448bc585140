// The page: opens pictures, and shows them to one model or to two side by side.

import { models as listModels, predict } from "./api.js";
import { hasCamera, takePicture } from "./dialogs.js";
import { EXAMPLES } from "./examples.js";
import { viewsOf } from "./look.js";
import { Pane } from "./pane.js";

const byId = (id) => document.getElementById(id);
const panes = [];
let models = [], picture = null, opening = 0;

const hooks = {
  failed: (error) => complain(error.message),
  done: () => complain(null),
  say: (text) => (byId("news").textContent = text),
  placed: (from, place, isPinned) => panes.filter((pane) => pane !== from && shares(pane, from)).forEach((pane) => pane.take(place, isPinned)),
};

/** Whether a place that is pointed at in one pane means the same in another. */
function shares(pane, from) {
  const a = pane.look.view, b = from.look.view;
  return a?.source === b?.source && (a?.source === "point" || pane.model === from.model);
}

/** Show a line that says what went wrong; null: nothing did. */
function complain(message) {
  byId("problem").hidden = message === null;
  byId("problem-text").textContent = message ?? "";
}

/** Open a picture. What was open before stays if this one cannot be read. */
async function open(file, name) {
  const number = ++opening;
  let bitmap;
  try {
    bitmap = await createImageBitmap(file);
  } catch {
    await complainOf(file);
    return;
  }
  if (number !== opening) return; // another one was opened meanwhile
  complain(null);
  picture = { bitmap, file, name };
  for (const button of byId("examples").children) button.setAttribute("aria-pressed", String(button.title === name));
  await Promise.all(panes.map((pane) => pane.setPicture(picture)));
}

/** Say what is wrong with a file that the browser cannot read, in the server's words if it cannot either. */
async function complainOf(file) {
  try {
    await predict(panes[0].model.name, file, null);
    complain("This browser cannot show this kind of picture. Save it as JPEG or PNG.");
  } catch (error) {
    complain(error.message);
  }
}

function openFirst(files) {
  const file = [...(files ?? [])][0];
  if (file) open(file, file.name || "picture.png");
}

async function openExample({ file }) {
  try {
    const response = await fetch(`examples/${file}`);
    if (response.ok) await open(await response.blob(), file);
  } catch {
    complain("The server does not answer. Is it still running?");
  }
}

function addPane(model, view) {
  const pane = new Pane(models, hooks);
  panes.push(pane);
  byId("panes").append(pane.root);
  byId("panes").classList.toggle("two", panes.length === 2);
  pane.part(".close").addEventListener("click", toggleSecond);
  pane.setModel(model, view);
  return pane;
}

/** Show a second model beside the first; the same one, with its next question, if there is no other. */
function toggleSecond() {
  if (panes.length === 2) {
    panes.pop().root.remove();
    byId("panes").classList.remove("two");
    byId("compare").focus();
  } else {
    const [{ model, look }] = panes, other = models.find((one) => one !== model);
    const same = viewsOf(other ?? model).findIndex(({ label }) => label === look.view?.label);
    const next = other ? Math.max(0, same) : (same + 1) % Math.max(1, look.views.length);
    const pane = addPane(other ?? model, next);
    pane.part(".close").hidden = false;
    if (picture) pane.setPicture(picture);
  }
  byId("compare").setAttribute("aria-pressed", String(panes.length === 2));
}

function listenForPictures() {
  const input = byId("file");
  byId("open").addEventListener("click", () => {
    input.removeAttribute("capture");
    input.click();
  });
  input.addEventListener("change", () => {
    openFirst(input.files);
    input.value = "";
  });
  byId("camera").addEventListener("click", async () => {
    if (!hasCamera()) { // a phone opens its own camera
      input.setAttribute("capture", "environment");
      input.click();
      return;
    }
    try {
      const file = await takePicture();
      if (file) open(file, file.name);
    } catch (error) {
      complain(error.message);
    }
  });
  document.addEventListener("paste", (event) => openFirst(event.clipboardData?.files));
  const isFile = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
  document.addEventListener("dragover", (event) => {
    if (!isFile(event)) return;
    event.preventDefault();
    byId("drop").hidden = false;
  });
  document.addEventListener("dragleave", (event) => (byId("drop").hidden = byId("drop").hidden || event.relatedTarget === null));
  document.addEventListener("drop", (event) => {
    byId("drop").hidden = true;
    if (!isFile(event)) return;
    event.preventDefault();
    openFirst(event.dataTransfer.files);
  });
}

/** Show the examples, those that the first model knows before the others. */
function listExamples() {
  const known = new Set(models[0].classes.map(({ label }) => label));
  const knows = ({ classes }) => classes.some((label) => known.has(label));
  const examples = [...EXAMPLES].sort((a, b) => knows(b) - knows(a));
  byId("examples").replaceChildren(...examples.map((example) => {
    const button = Object.assign(document.createElement("button"), { type: "button", title: example.file, ariaLabel: example.name });
    button.append(Object.assign(document.createElement("img"), { src: `examples/${example.file}`, alt: "" }));
    button.addEventListener("click", () => openExample(example));
    return button;
  }));
  return examples;
}

async function start() {
  byId("problem-close").addEventListener("click", () => complain(null));
  byId("compare").addEventListener("click", toggleSecond);
  listenForPictures();
  try {
    models = await listModels();
  } catch (error) {
    complain(error.message);
    return;
  }
  addPane(models[0]);
  const [first] = listExamples();
  if (opening === 0) await openExample(first);
}

start();
