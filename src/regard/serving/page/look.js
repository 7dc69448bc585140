// What a model looks at: which question is asked, its answer in layers and heads, and the sliders that choose from it.

import { attention, explain } from "./api.js";
import { paintMap, readAttention, readExplanation } from "./maps.js";

const KEPT = 40; // answers for one picture, so that a box or pixel that is pointed at again is shown at once
const PATIENCE = 250; // milliseconds that a map stays while another is computed, so that fast answers do not flicker
const HOVER_BYTES = 2_000_000; // a larger picture is not sent again with each movement of the mouse
const HOVER_SECONDS = 0.6; // a slower answer is asked for with a click alone

/** Return the questions that a model can answer: {label, source, what, token}. */
export function viewsOf(model) {
  const { query, point, token } = model.attention;
  const views = [];
  if (query) views.push({ label: model.task === "segmentation" ? "Segment" : "Object", source: "query", what: "decoder" });
  if (token) {
    const names = model.tokens.length > 1 ? model.tokens.map((name) => `${name} token`) : ["Class token"];
    names.forEach((name, number) => views.push({ label: capital(name), source: "token", what: "heads", token: number }));
  }
  if (point) {
    const what = ["encoder", "patch", "layers"].find((kind) => model.explanations.some((one) => one.what === kind));
    views.push({ label: "Pixel", source: "point", what });
  }
  for (const { what } of model.explanations.filter((one) => one.what === "rollout" || one.what === "relevance")) {
    views.push({ label: capital(what), source: query ? "query" : "picture", what, isExplained: true });
  }
  return views;
}

export class Look {
  /**
   * root: the element with the controls. hooks: `changed()` when another map is to be drawn, `failed(error)`,
   * `viewed()` when another question is chosen.
   */
  constructor(root, hooks) {
    this.root = root;
    this.hooks = hooks;
    this.file = null;
    this.pinned = null; // {query} or {x, y}
    this.hovered = null;
    this.layers = null; // the answer that is shown
    this.place = null; // what it is the answer to
    this.grid = null; // the map with the smallest cells, of pixels
    this.seconds = 0; // that the last answer took
    this.answers = new Map();
    this.layer = root.querySelector(".layer");
    this.head = root.querySelector(".head");
    this.thumbs = root.querySelector(".thumbs");
    this.layer.querySelector("input").addEventListener("input", () => this.choose());
    this.head.querySelector("input").addEventListener("input", () => this.choose());
  }

  /** Show the questions of another model. number: of the question to begin with. */
  setModel(model, number = 0) {
    this.model = model;
    this.views = viewsOf(model);
    this.root.hidden = this.views.length === 0;
    this.wanted = { layer: null, head: null }; // of the sliders; null: the last layer, the mean of heads
    const group = this.root.querySelector(".views");
    group.replaceChildren(...this.views.map((view, i) => this.viewButton(view, i === number)));
    this.view = this.views[number] ?? null;
    this.thumbs.replaceChildren();
    this.setFile(this.file);
  }

  viewButton(view, isChosen) {
    const label = document.createElement("label"), input = document.createElement("input"), text = document.createElement("span");
    Object.assign(input, { type: "radio", name: `view-${this.root.id}`, checked: isChosen });
    input.addEventListener("change", () => this.setView(view));
    text.textContent = view.label;
    label.append(input, text);
    return label;
  }

  setView(view) {
    const before = this.view;
    this.view = view;
    if (view.source !== before?.source) this.pinned = null;
    this.wanted = { layer: null, head: null };
    this.hovered = this.layers = this.place = null;
    this.hooks.viewed();
    this.showControls();
    this.update();
  }

  /** Begin with another picture. */
  setFile(file) {
    this.stop?.abort();
    this.asking = null;
    this.file = file;
    this.pinned = this.hovered = this.layers = this.place = this.grid = null;
    this.answers.clear();
    this.showControls();
  }

  /** Whether pointing without a click may ask. */
  get isFast() {
    return this.file !== null && this.file.size <= HOVER_BYTES && this.seconds <= HOVER_SECONDS;
  }

  /** Look from a place until another is chosen; null: from none. */
  pin(place) {
    this.pinned = place;
    this.hovered = null;
    this.update();
  }

  /** Look from a place as long as it is pointed at. */
  hover(place) {
    if (JSON.stringify(place) === JSON.stringify(this.hovered)) return;
    if (place !== null && !this.isFast && !this.answers.has(this.key(place))) return;
    this.hovered = place;
    this.update();
  }

  /** The place that is asked about: null if there is none to ask about. */
  get current() {
    if (this.view === null) return null;
    if (this.view.source === "token") return { token: this.view.token };
    if (this.view.source === "picture") return {};
    return this.hovered ?? this.pinned;
  }

  /** By what an answer is kept: all pixels of a cell have the same. */
  key(place) {
    if (place.x === undefined || this.grid === null) return JSON.stringify([this.view.what, place]);
    const { extent: [x0, y0, x1, y1], width, height } = this.grid;
    const column = Math.floor((place.x - x0) / (x1 - x0) * width), row = Math.floor((place.y - y0) / (y1 - y0) * height);
    return JSON.stringify([this.view.what, "cell", column, row]);
  }

  /** Ask about the current place, or show what is known of it. */
  async update() {
    const place = this.current;
    if (place === null || this.file === null) {
      this.stop?.abort();
      this.asking = null;
      this.show(null, null);
      return;
    }
    const key = this.key(place);
    if (this.answers.has(key)) {
      this.stop?.abort();
      this.asking = null;
      this.show(this.answers.get(key), place);
      return;
    }
    if (this.asking === key) return;
    this.stop?.abort();
    this.stop = new AbortController();
    this.asking = key;
    const isHovered = this.hovered !== null;
    setTimeout(() => this.asking === key && this.show(null, null), PATIENCE); // the map of another place says nothing
    try {
      const layers = await this.ask(place, this.stop.signal);
      if (this.asking !== key) return;
      this.asking = null;
      this.show(layers, place);
    } catch (error) {
      if (error.name === "AbortError" || this.asking !== key) return;
      this.asking = null;
      if (isHovered && error.status === 503) return; // pointing at it again asks again
      this.show(null, null);
      this.hooks.failed(error);
    }
  }

  async ask(place, signal) {
    const { answers, view } = this, began = performance.now();
    const layers = view.isExplained
      ? readExplanation(await explain(this.model.name, this.file, view.what, place, signal))
      : readAttention(await attention(this.model.name, this.file, place, signal));
    this.seconds = (performance.now() - began) / 1000;
    if (place.x !== undefined) this.grid ??= finest(layers);
    answers.set(this.key(place), layers);
    if (answers.size > KEPT) answers.delete(answers.keys().next().value);
    return layers;
  }

  show(layers, place) {
    this.layers = layers;
    this.place = place;
    this.showControls();
    this.hooks.changed();
  }

  /** The map to draw, or null. */
  get map() {
    if (this.layers === null) return null;
    const { maps } = this.layers[this.layerNumber];
    return maps[this.mapNumber];
  }

  get layerNumber() {
    const last = this.layers.length - 1;
    return Math.min(this.wanted.layer ?? last, last);
  }

  get mapNumber() {
    return Math.min(this.wanted.head ?? 0, this.layers[this.layerNumber].maps.length - 1);
  }

  choose() {
    this.wanted = { layer: Number(this.layer.querySelector("input").value), head: Number(this.head.querySelector("input").value) };
    this.showControls();
    this.hooks.changed();
  }

  /** The layers with names and labels of maps: those of the answer, or what the model is known to have. */
  get outline() {
    if (this.layers !== null) return this.layers;
    if (!this.view || this.view.isExplained) return null;
    return this.model.attention[this.view.source].map(({ name, heads }) => ({
      name, maps: Array.from({ length: heads > 1 ? heads + 1 : 1 }, (_, i) => ({ label: i === 0 ? "All heads" : `Head ${i - 1}` })),
    }));
  }

  /** Show the sliders and small maps; before there is an answer too, so that nothing moves when it comes. */
  showControls() {
    const layers = this.outline, isOne = layers === null || layers.length < 2;
    const number = layers === null ? 0 : Math.min(this.wanted.layer ?? layers.length - 1, layers.length - 1);
    const { name, maps } = layers === null ? { name: "", maps: [] } : layers[number];
    this.layer.hidden = isOne;
    this.head.hidden = maps.length < 2 || this.view.isExplained;
    this.thumbs.hidden = maps.length < 2;
    if (layers === null) return;
    const chosen = Math.min(this.wanted.head ?? 0, maps.length - 1);
    setSlider(this.layer, layers.length, number, capital(name));
    setSlider(this.head, maps.length, chosen, maps[chosen].label);
    if (!this.thumbs.hidden) this.showThumbs(maps, chosen);
  }

  showThumbs(maps, chosen) {
    if (this.thumbs.children.length !== maps.length) {
      this.thumbs.replaceChildren(...maps.map((_, i) => this.thumb(i)));
    }
    maps.forEach((map, i) => {
      const button = this.thumbs.children[i], canvas = button.querySelector("canvas");
      const painted = map.values ? paintMap(map) : null, { width, height } = painted ?? canvas;
      Object.assign(canvas, { width, height });
      const context = canvas.getContext("2d");
      context.fillStyle = "rgb(12 10 30)";
      context.fillRect(0, 0, width, height);
      if (painted) context.drawImage(painted, 0, 0);
      button.querySelector("span").textContent = map.label;
      button.setAttribute("aria-pressed", String(i === chosen));
    });
  }

  thumb(number) {
    const button = document.createElement("button");
    button.type = "button";
    const canvas = Object.assign(document.createElement("canvas"), { width: 64, height: 64 });
    button.append(canvas, document.createElement("span"));
    button.addEventListener("click", () => {
      this.head.querySelector("input").value = number;
      this.wanted.head = number;
      this.showControls();
      this.hooks.changed();
    });
    return button;
  }

  /** What is looked at as options of `regard.explain`, or null. */
  get shown() {
    if (this.layers === null) return null;
    const { what, source } = this.view, { x, y, query = null } = this.place;
    const point = x === undefined ? null : [x, y];
    const layer = this.view.isExplained ? null : this.layerNumber, head = this.map.head;
    // Attention-augmented networks: all layers of one head, or all heads of one layer.
    const kind = what === "layers" && head === null && this.layers.length > 1 ? "heads" : what;
    return { what: source === "token" && head !== null ? "tokens" : kind, options: { query, point, layer, head } };
  }
}

/** Return the map with the most cells. */
function finest(layers) {
  const maps = layers.map(({ maps: [first] }) => first);
  return maps.reduce((most, map) => (map.width * map.height > most.width * most.height ? map : most));
}

function setSlider(slider, count, number, text) {
  const input = slider.querySelector("input");
  input.max = count - 1;
  input.value = number;
  input.setAttribute("aria-valuetext", text);
  slider.querySelector("output").textContent = text;
}

/** Return a text with a capital letter in front. */
export function capital(text) {
  return text[0].toUpperCase() + text.slice(1);
}
