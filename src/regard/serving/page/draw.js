// A picture with what was found in it and where the model looked, on a canvas of any size.

import { classColour, css, inkOn } from "./colours.js";
import { paintMap } from "./maps.js";
import { paintMask } from "./masks.js";

const FONT = "system-ui, sans-serif";

/**
 * Draw a scene.
 *
 * scene: `picture` (a bitmap), `rows` (what to draw: {colour, text, box or null, mask or null}), `chosen` (one of them or
 * null), `map` (or null), `point` ({x, y} in pixels of the picture, or null).
 * width, height: of the drawing, in the units of lines and letters.
 */
export function draw(context, scene, width, height) {
  const scale = width / scene.picture.width;
  context.imageSmoothingQuality = "high";
  context.clearRect(0, 0, width, height);
  context.drawImage(scene.picture, 0, 0, width, height);
  if (scene.map) drawMap(context, scene.map, scale, width, height);
  for (const row of scene.rows) {
    const isQuiet = scene.chosen && scene.chosen !== row;
    if (row.mask && !scene.map) {
      context.globalAlpha = isQuiet ? 0.25 : 1;
      context.drawImage(row.painted ??= paintMask(row.mask, classColour(row.colour)), 0, 0, width, height);
      context.globalAlpha = 1;
    }
  }
  if (scene.map && scene.chosen?.mask) outline(context, scene.chosen, width, height);
  // The chosen box last: no other may cover it.
  const boxes = scene.rows.filter((row) => row.box && row !== scene.chosen);
  if (scene.chosen?.box) boxes.push(scene.chosen);
  for (const row of boxes) drawBox(context, row, scale, width, scene.chosen !== null, row === scene.chosen);
  if (scene.point) drawPoint(context, scene.point.x * scale, scene.point.y * scale);
}

function drawMap(context, map, scale, width, height) {
  const [x0, y0, x1, y1] = map.extent.map((value) => value * scale);
  context.save();
  context.beginPath();
  context.rect(0, 0, width, height);
  context.clip();
  // Grey and darker, so that all colours are those of the map.
  context.globalCompositeOperation = "saturation";
  context.fillStyle = "hsl(0, 0%, 50%)";
  context.fillRect(0, 0, width, height);
  context.globalCompositeOperation = "source-over";
  context.fillStyle = "rgb(14 14 22 / 25%)";
  context.fillRect(0, 0, width, height);
  context.drawImage(paintMap(map), x0, y0, x1 - x0, y1 - y0);
  context.restore();
}

function outline(context, row, width, height) {
  row.edge ??= paintMask({ ...row.mask, inside: edgeOf(row.mask) }, [255, 255, 255]);
  context.drawImage(row.edge, 0, 0, width, height);
}

function edgeOf({ width, height, inside }) {
  const edge = new Uint8Array(inside.length);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const i = y * width + x;
      const isInner = x > 1 && y > 1 && x < width - 2 && y < height - 2
        && inside[i - 2] && inside[i + 2] && inside[i - 2 * width] && inside[i + 2 * width];
      edge[i] = inside[i] && !isInner ? 1 : 0;
    }
  }
  return edge;
}

function drawBox(context, row, scale, width, someChosen, isChosen) {
  const [x0, y0, x1, y1] = row.box.map((value) => value * scale);
  const colour = classColour(row.colour);
  context.globalAlpha = someChosen && !isChosen ? 0.35 : 1;
  context.lineWidth = isChosen ? 3 : 2;
  context.strokeStyle = isChosen ? "#fff" : css(colour);
  context.strokeRect(x0, y0, x1 - x0, y1 - y0);
  if (isChosen) {
    context.lineWidth = 1.5;
    context.strokeStyle = css(colour);
    context.strokeRect(x0 - 2, y0 - 2, x1 - x0 + 4, y1 - y0 + 4);
  }
  context.font = `600 12px ${FONT}`;
  const wide = context.measureText(row.text).width + 10, left = Math.min(Math.max(0, x0 - 1), Math.max(0, width - wide));
  const top = y0 > 18 ? y0 - 18 : Math.max(0, y0);
  context.fillStyle = css(colour);
  context.fillRect(left, top, wide, 18);
  context.fillStyle = inkOn(colour);
  context.textBaseline = "middle";
  context.fillText(row.text, left + 5, top + 9.5);
  context.globalAlpha = 1;
}

function drawPoint(context, x, y) {
  for (const [radius, line, colour] of [[7, 4, "rgb(0 0 0 / 60%)"], [7, 2, "#fff"]]) {
    context.lineWidth = line;
    context.strokeStyle = colour;
    context.beginPath();
    context.arc(x, y, radius, 0, 2 * Math.PI);
    context.stroke();
  }
  context.fillStyle = "#fff";
  context.fillRect(x - 1, y - 1, 2, 2);
}
