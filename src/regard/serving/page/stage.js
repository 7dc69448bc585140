// The canvas with the picture: its size on the page, what is pointed at, and the keys that move.

import { draw } from "./draw.js";

const MOVES = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const SAVED = 1000; // pixels of the shorter side of a saved picture, at least
const MOST = 4000; // of the longer side, beyond which a picture is not enlarged

export class Stage {
  /**
   * root: the element around the canvas. scene(): what to draw, as in `draw`, or null.
   * hooks: `point(place)` at each movement with {x, y} in pixels of the picture or null, `click(place)`,
   * `move(dx, dy)` at an arrow key, `clear()` at Escape.
   */
  constructor(root, scene, hooks) {
    this.root = root;
    this.canvas = root.querySelector("canvas");
    this.scene = scene;
    this.waiting = false;
    new ResizeObserver(() => this.draw()).observe(root);
    this.canvas.addEventListener("pointermove", (event) => event.pointerType === "mouse" && hooks.point(this.place(event)));
    this.canvas.addEventListener("pointerleave", () => hooks.point(null));
    this.canvas.addEventListener("click", (event) => hooks.click(this.place(event)));
    this.canvas.addEventListener("keydown", (event) => {
      if (event.key === "Escape") hooks.clear();
      if (!(event.key in MOVES) || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      const far = event.shiftKey ? 4 : 1, [dx, dy] = MOVES[event.key];
      hooks.move(far * dx, far * dy);
    });
  }

  /** Draw with the next frame of the screen. */
  draw() {
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => {
      this.waiting = false;
      this.drawNow();
    });
  }

  drawNow() {
    const scene = this.scene();
    if (scene === null || this.root.clientWidth === 0) return;
    const { width, height } = scene.picture;
    const tallest = Math.max(240, Math.min(760, window.innerHeight * 0.72));
    const scale = Math.min(this.root.clientWidth / width, tallest / height);
    const shown = [Math.max(1, Math.round(width * scale)), Math.max(1, Math.round(height * scale))];
    const ratio = Math.min(3, window.devicePixelRatio || 1);
    const { canvas } = this;
    canvas.style.width = `${shown[0]}px`;
    canvas.style.height = `${shown[1]}px`;
    const pixels = shown.map((value) => Math.round(value * ratio));
    if (canvas.width !== pixels[0] || canvas.height !== pixels[1]) [canvas.width, canvas.height] = pixels;
    const context = canvas.getContext("2d");
    context.setTransform(pixels[0] / shown[0], 0, 0, pixels[1] / shown[1], 0, 0);
    draw(context, scene, shown[0], shown[1]);
  }

  place(event) {
    const area = this.canvas.getBoundingClientRect(), scene = this.scene();
    if (scene === null || area.width === 0) return null;
    const x = (event.clientX - area.left) / area.width, y = (event.clientY - area.top) / area.height;
    if (x < 0 || y < 0 || x >= 1 || y >= 1) return null;
    return { x: x * scene.picture.width, y: y * scene.picture.height };
  }

  /** Return the drawing as a PNG file, at the size of the picture or larger. */
  async save() {
    const scene = this.scene(), { width, height } = scene.picture;
    const scale = Math.max(1, Math.min(SAVED / Math.min(width, height), MOST / Math.max(width, height)));
    const canvas = Object.assign(document.createElement("canvas"), {
      width: Math.round(width * scale), height: Math.round(height * scale),
    });
    const letters = Math.max(1, Math.min(canvas.width, canvas.height) / 600); // lines and letters grow with the picture
    const context = canvas.getContext("2d");
    context.scale(letters, letters);
    draw(context, scene, canvas.width / letters, canvas.height / letters);
    return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
  }
}
