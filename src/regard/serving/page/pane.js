// One model with the picture: what it finds, and where it looks.

import { predict } from "./api.js";
import { pythonCode } from "./code.js";
import { classColour, css, warmth } from "./colours.js";
import { showCode } from "./dialogs.js";
import { copy, download } from "./give.js";
import { Look, capital } from "./look.js";
import { highest } from "./maps.js";
import { isInside, readMask } from "./masks.js";
import { Stage } from "./stage.js";

const MAX_ROWS = 100; // of the list
const SETTLED = 120; // milliseconds that a slider rests before the server is asked
let count = 0;

export class Pane {
  /**
   * models: all that can be chosen. hooks: `failed(error)`, `done()`, `say(text)` for a screen reader,
   * `placed(pane, place, isPinned)` when a place is pointed at, `closed()`.
   */
  constructor(models, hooks) {
    this.models = models;
    this.hooks = hooks;
    this.picture = this.result = null;
    this.rows = []; // of the result, each with `score` and what `draw` takes
    this.over = null; // the row that is pointed at in the list
    const template = document.getElementById("pane").content.cloneNode(true);
    this.root = template.querySelector(".pane");
    this.part = (name) => this.root.querySelector(name);
    this.part(".look").id = `look-${++count}`;
    this.look = new Look(this.part(".look"), {
      changed: () => this.draw(),
      failed: (error) => hooks.failed(error),
      viewed: () => this.beginView(),
    });
    this.stage = new Stage(this.part(".stage"), () => this.scene(), {
      point: (place) => this.point(place),
      click: (place) => this.click(place),
      move: (dx, dy) => this.move(dx, dy),
      clear: () => this.choose(null, true),
    });
    this.slider = this.part(".threshold input");
    this.slider.addEventListener("input", () => this.thresholdMoved());
    this.part(".model").addEventListener("change", (event) => this.setModel(models[event.target.selectedIndex]));
    this.part(".json").addEventListener("click", (event) => copy(JSON.stringify(this.json(), null, 2), event.target));
    this.part(".save").addEventListener("click", () => this.save());
    this.part(".code").addEventListener("click", () => showCode(this.code()));
    this.part(".model").replaceChildren(...models.map(({ name }) => new Option(name, name)));
    paintBar(this.part(".bar"));
  }

  /** Show another model. view: the number of the question to begin with. */
  setModel(model, view = 0) {
    this.model = model;
    this.part(".model").selectedIndex = this.models.indexOf(model);
    this.part(".pane-title").textContent = `Model ${model.name}`;
    this.root.setAttribute("aria-label", `Model ${model.name}`);
    this.part(".facts").textContent = facts(model);
    const titles = { detection: "Objects", segmentation: "Segments", classification: "Classes" };
    this.part(".found-title").textContent = titles[model.task];
    this.part(".threshold").hidden = model.threshold === null;
    this.slider.value = model.threshold ?? 0;
    this.showThreshold();
    this.look.setModel(model, view);
    if (this.picture !== null) this.setPicture(this.picture);
  }

  get threshold() {
    return this.model.threshold === null ? null : Number(this.slider.value);
  }

  /** Show another picture {bitmap, file, name}, and ask what is in it. */
  setPicture(picture) {
    this.picture = picture;
    this.result = null;
    this.rows = [];
    this.look.setFile(picture.file);
    this.showRows();
    this.draw();
    return this.ask();
  }

  /** Ask for the result. Boxes come with all scores, so that the slider needs no other answer. */
  async ask() {
    this.stop?.abort();
    const stop = this.stop = new AbortController(), { model, picture } = this;
    this.root.classList.add("busy");
    try {
      const asked = model.task === "segmentation" ? this.threshold : model.task === "detection" ? 0 : null;
      const answer = await predict(model.name, picture.file, asked, stop.signal);
      if (stop.signal.aborted) return;
      this.answer = answer;
      this.result = answer.results[0];
      this.readRows();
      this.hooks.done();
      this.hooks.say(`${model.name}: ${this.summary()}`);
      this.beginView();
      this.look.update();
    } catch (error) {
      if (error.name !== "AbortError") this.hooks.failed(error);
    } finally {
      if (this.stop === stop) this.root.classList.remove("busy");
    }
  }

  readRows() {
    const { size, detections, segments, classes } = this.result;
    const byX = this.picture.bitmap.width / size.width, byY = this.picture.bitmap.height / size.height;
    this.rows = (detections ?? segments ?? classes).map((one, i) => {
      const box = detections ? [one.box.xmin * byX, one.box.ymin * byY, one.box.xmax * byX, one.box.ymax * byY] : null;
      const score = one.score ?? null;
      return {
        label: one.label, score, query: one.query ?? null, colour: segments ? i : one.label_id, box, encoded: one.mask ?? null,
        text: score === null ? one.label : `${one.label} ${score.toFixed(2)}`, mask: null,
        share: segments ? one.area / (size.width * size.height) : null,
      };
    });
    this.rows.sort((a, b) => (b.score ?? 0) - (a.score ?? 0));
    this.showRows();
    this.draw();
  }

  /** The rows at or above the threshold. */
  get shown() {
    const rows = this.model.task === "detection" ? this.rows.filter((row) => row.score >= this.threshold) : this.rows;
    for (const row of rows) if (row.encoded) row.mask ??= readMask(row.encoded);
    return rows;
  }

  thresholdMoved() {
    this.showThreshold();
    if (this.model.task === "segmentation") {
      clearTimeout(this.timer);
      this.timer = setTimeout(() => this.picture && this.ask(), SETTLED);
      return;
    }
    const { pinned } = this.look;
    if (pinned?.query !== undefined && !this.shown.some((row) => row.query === pinned.query)) this.look.pin(null);
    this.showRows();
    this.draw();
  }

  showThreshold() {
    const text = Number(this.slider.value).toFixed(2);
    this.part(".threshold output").textContent = text;
    this.slider.setAttribute("aria-valuetext", text);
  }

  /** Say what was found, in one line. */
  summary() {
    if (this.result === null) return "";
    if (this.model.task === "classification") return `${this.rows[0].label}, ${percent(this.rows[0].score)}`;
    const shown = this.shown, noun = this.model.task === "segmentation" ? "segment" : "object";
    if (shown.length) return `${shown.length} ${noun}${shown.length > 1 ? "s" : ""}`;
    const best = this.rows[0] ?? this.result.rejected;
    return best ? `Nothing above ${this.threshold.toFixed(2)}. The best is ${best.label}, ${best.score.toFixed(2)}.` : "Nothing found.";
  }

  showRows() {
    const list = this.part(".rows"), rows = this.result === null ? [] : this.shown;
    const items = rows.slice(0, MAX_ROWS).map((row) => this.listItem(row));
    if (this.result !== null && rows.length === 0) items.push(note(this.summary()));
    if (rows.length > MAX_ROWS) items.push(note(`and ${rows.length - MAX_ROWS} more`));
    list.replaceChildren(...items);
  }

  listItem(row) {
    const isButton = row.query !== null && this.look.views.some(({ source }) => source === "query");
    const item = document.createElement("li"), inner = document.createElement(isButton ? "button" : "div");
    inner.className = "row";
    if (this.model.task === "classification") {
      inner.classList.add("share");
      inner.append(span("name", row.label), span("score", percent(row.score)));
      inner.append(Object.assign(document.createElement("progress"), { max: 1, value: row.score, ariaHidden: "true" }));
    } else {
      const swatch = span("swatch", "");
      swatch.style.background = css(classColour(row.colour));
      const number = row.share === null ? row.score.toFixed(2) : `${percent(row.share)} of the picture`;
      inner.append(swatch, span("name", row.label), span("score", number));
    }
    row.item = inner;
    if (isButton) {
      inner.type = "button";
      const over = (is) => () => this.hoverRow(is ? row : null);
      inner.addEventListener("pointerenter", over(true));
      inner.addEventListener("pointerleave", over(false));
      inner.addEventListener("focus", over(true));
      inner.addEventListener("blur", over(false));
      inner.addEventListener("click", () => this.chooseRow(row));
    }
    item.append(inner);
    return item;
  }

  hoverRow(row) {
    this.over = row;
    if (this.look.view.source === "query") this.place(row === null ? null : { query: row.query }, false);
    this.draw();
  }

  chooseRow(row) {
    if (this.look.view.source !== "query") {
      const [first] = this.look.views;
      this.part(".views input").checked = true;
      this.look.setView(first);
    }
    this.place(this.look.pinned?.query === row.query ? null : { query: row.query }, true);
  }

  /** Take a place, and tell the other pane. */
  place(place, isPinned) {
    this.take(place, isPinned);
    this.hooks.placed(this, place, isPinned);
  }

  /** Take a place that was pointed at here or in the other pane. */
  take(place, isPinned) {
    if (isPinned) this.look.pin(place);
    else this.look.hover(place);
    this.draw();
  }

  point(place) {
    const source = this.look.view?.source;
    if (source === "query") {
      const row = place === null ? null : this.rowAt(place);
      this.stage.canvas.style.cursor = row === null ? "default" : "pointer";
      this.place(row === null ? null : { query: row.query }, false);
    } else if (source === "point") {
      this.stage.canvas.style.cursor = "crosshair";
      this.place(place === null ? null : this.pixel(place), false);
    } else {
      this.stage.canvas.style.cursor = "default";
    }
  }

  click(place) {
    if (place === null || !this.look.view) return;
    const { source } = this.look.view;
    if (source === "query") {
      const row = this.rowAt(place), isSame = row !== null && this.look.pinned?.query === row.query;
      this.choose(row === null || isSame ? null : { query: row.query }, true);
    } else if (source === "point") {
      this.choose(this.pixel(place), true);
    }
  }

  choose(place) {
    this.place(place, true);
    const row = place?.query === undefined ? null : this.shown.find(({ query }) => query === place.query);
    if (row) this.hooks.say(`Attention of ${row.text}`);
  }

  /** Answer an arrow key: the next object, or the next pixel. */
  move(dx, dy) {
    const source = this.look.view?.source, { pinned } = this.look, { bitmap } = this.picture ?? {};
    if (!bitmap) return;
    if (source === "query") {
      const rows = this.shown.filter((row) => row.query !== null), at = rows.findIndex((row) => row.query === pinned?.query);
      if (rows.length) this.choose({ query: rows[(at + Math.sign(dx + dy) + rows.length + (at < 0 && dx + dy < 0 ? 1 : 0)) % rows.length].query });
    } else if (source === "point") {
      const [stepX, stepY] = this.steps(), from = pinned ?? this.middle();
      const within = (value, size) => Math.min(size - 1, Math.max(0, value));
      this.choose(this.pixel({ x: within(from.x + dx * stepX, bitmap.width), y: within(from.y + dy * stepY, bitmap.height) }));
    }
  }

  middle() {
    return this.pixel({ x: this.picture.bitmap.width / 2, y: this.picture.bitmap.height / 2 });
  }

  /** The distance of two pixels that may look elsewhere: that of the cells, once they are known. */
  steps() {
    const map = this.look.map, { width, height } = this.picture.bitmap;
    if (!map) return [width / 16, height / 16];
    const [x0, y0, x1, y1] = map.extent;
    return [(x1 - x0) / map.width, (y1 - y0) / map.height];
  }

  /** Return a place in whole pixels. */
  pixel({ x, y }) {
    return { x: Math.floor(x), y: Math.floor(y) };
  }

  /** Return the smallest box or the segment at a place, or null. */
  rowAt({ x, y }) {
    const { width, height } = this.picture.bitmap;
    const size = ({ box }) => (box[2] - box[0]) * (box[3] - box[1]);
    const at = this.shown.filter((row) => row.query !== null && (row.box
      ? x >= row.box[0] && x <= row.box[2] && y >= row.box[1] && y <= row.box[3]
      : row.mask && isInside(row.mask, x / width, y / height)));
    return at.sort((a, b) => (a.box ? size(a) - size(b) : 0))[0] ?? null;
  }

  /** Begin a question: that about pixels begins in the middle. */
  beginView() {
    const { view, pinned } = this.look;
    if (view?.source === "point" && this.result !== null && !pinned) this.look.pinned = this.middle();
  }

  /** What is to be drawn, see `draw`. */
  scene() {
    if (this.picture === null) return null;
    const rows = this.result === null ? [] : this.shown, { map } = this.look, place = this.look.current;
    const query = this.over?.query ?? place?.query;
    const chosen = query === undefined || query === null ? null : rows.find((row) => row.query === query) ?? null;
    return { picture: this.picture.bitmap, rows, chosen, map, point: place?.x === undefined ? null : { x: place.x + 0.5, y: place.y + 0.5 } };
  }

  draw() {
    this.stage.draw();
    const { map, pinned, view } = this.look;
    for (const row of this.rows) {
      if (row.item?.tagName === "BUTTON") row.item.setAttribute("aria-pressed", String(pinned?.query === row.query && row.query !== null));
    }
    this.part(".legend").hidden = map === null;
    if (map !== null) this.part(".high").textContent = view.what === "relevance" ? highest(map).toPrecision(2) : percent(highest(map));
    this.part(".hint").textContent = hint(view, map !== null, this.result !== null && this.shown.length > 0);
    this.stage.canvas.setAttribute("aria-label", this.description());
  }

  description() {
    if (this.picture === null) return "No picture";
    const keys = { query: " Arrow keys go from one to the next.", point: " Arrow keys move the pixel." }[this.look.view?.source] ?? "";
    return `Picture ${this.picture.name}. ${this.summary()}${keys}`;
  }

  /** The answer of the server, without what is below the threshold. */
  json() {
    if (this.result === null) return {};
    const { detections } = this.result, threshold = this.threshold;
    const result = detections ? { ...this.result, detections: detections.filter(({ score }) => score >= threshold) } : this.result;
    return { ...this.answer, threshold, picture: this.picture.name, results: [result] };
  }

  code() {
    return pythonCode(this.model, this.picture?.name ?? "photo.jpg", this.threshold, this.look.shown);
  }

  async save() {
    if (this.picture === null) return;
    download(await this.stage.save(), `${this.picture.name.replace(/\.[^.]*$/, "")}-${this.model.name}.png`);
  }
}

function hint(view, isShown, isAny) {
  if (!view) return "";
  const pointing = window.matchMedia("(hover: hover)").matches;
  if (view.source === "point") return pointing ? "Point at a pixel. A click keeps it." : "Tap a pixel.";
  if (view.source !== "query" || !isAny) return "";
  const one = view.label === "Segment" || view.label === "Object" ? view.label.toLowerCase() : "object";
  if (isShown) return pointing ? "A click keeps it. Esc lets it go." : "Tap it again to let it go.";
  return pointing ? `Point at ${one === "object" ? "an" : "a"} ${one} to see where the model looked.` : `Tap ${one === "object" ? "an" : "a"} ${one} to see where the model looked.`;
}

function facts(model) {
  const size = model.parameters === null ? "" : `${(model.parameters / 1e6).toPrecision(2)} M parameters`;
  const classes = `${model.classes.length} class${model.classes.length === 1 ? "" : "es"}`;
  return [model.architecture === model.name ? "" : model.architecture, capital(model.task), classes, size].filter(Boolean).join(" · ");
}

function percent(share) {
  return `${(100 * share).toPrecision(share < 0.0995 ? 2 : 3)} %`;
}

function note(text) {
  return Object.assign(document.createElement("li"), { className: "none", textContent: text });
}

function span(name, text) {
  return Object.assign(document.createElement("span"), { className: name, textContent: text });
}

function paintBar(bar) {
  const context = bar.getContext("2d");
  for (let x = 0; x < bar.width; x++) {
    const colour = 3 * Math.round(255 * x / (bar.width - 1));
    context.fillStyle = css(warmth.subarray(colour, colour + 3));
    context.fillRect(x, 0, 1, bar.height);
  }
}
