// Maps of attention: read from answers, averaged, enlarged and coloured.

import { warmth } from "./colours.js";

const DETAIL = 256; // pixels of the longer side of a map that is drawn

/**
 * Return the layers of an answer of v1/attention: [{name, maps}]; the first map of a layer is the mean of its heads.
 *
 * A map is {label, head, width, height, values, extent}: weights row by row, over the area `extent` of the picture.
 */
export function readAttention(answer) {
  return answer.layers.map(({ name, shape: [heads, height, width], data }) => {
    const bytes = Uint8Array.from(atob(data), (character) => character.charCodeAt(0));
    const all = new Float32Array(bytes.buffer), count = height * width;
    const one = (values, label, head) => ({ label, head, width, height, values, extent: answer.extent });
    const maps = Array.from({ length: heads }, (_, i) => one(all.subarray(i * count, (i + 1) * count), `Head ${i}`, i));
    return { name, maps: heads > 1 ? [one(mean(maps, count), "All heads", null), ...maps] : maps };
  });
}

/** Return the maps of an answer of v1/explain as one layer. */
export function readExplanation(answer) {
  const maps = answer.maps.map(({ title, weights, extent }) => ({
    label: title, head: null, width: weights[0].length, height: weights.length, extent,
    values: Float32Array.from(weights.flat()),
  }));
  return [{ name: answer.what, maps }];
}

function mean(maps, count) {
  const sum = new Float32Array(count);
  for (const { values } of maps) for (let i = 0; i < count; i++) sum[i] += values[i] / maps.length;
  return sum;
}

/** Return the largest weight of a map. */
export function highest(map) {
  return map.values.reduce((most, value) => Math.max(most, value), 0);
}

/** Return a canvas with a map in colours, the largest weight the lightest. Kept with the map. */
export function paintMap(map) {
  return map.painted ??= paint(map);
}

function paint(map) {
  const scale = Math.max(1, DETAIL / Math.max(map.width, map.height));
  const width = Math.round(map.width * scale), height = Math.round(map.height * scale);
  const values = enlarge(map, width, height), most = highest(map) || 1;
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  const context = canvas.getContext("2d");
  const image = context.createImageData(width, height);
  for (let i = 0; i < values.length; i++) {
    const share = Math.min(1, Math.max(0, values[i] / most)), colour = 3 * Math.round(255 * share);
    image.data.set(warmth.subarray(colour, colour + 3), 4 * i);
    image.data[4 * i + 3] = 255 * (0.3 + 0.5 * share); // the picture shows through where there is least
  }
  context.putImageData(image, 0, 0);
  return canvas;
}

/** Enlarge weights with cubic curves through the middles of cells; the edge goes on outside. */
function enlarge({ width, height, values }, toWidth, toHeight) {
  const across = new Float32Array(toWidth * height), result = new Float32Array(toWidth * toHeight);
  const columns = places(width, toWidth), rows = places(height, toHeight);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < toWidth; x++) {
      let sum = 0;
      for (const [from, part] of columns[x]) sum += part * values[y * width + from];
      across[y * toWidth + x] = sum;
    }
  }
  for (let y = 0; y < toHeight; y++) {
    for (let x = 0; x < toWidth; x++) {
      let sum = 0;
      for (const [from, part] of rows[y]) sum += part * across[from * toWidth + x];
      result[y * toWidth + x] = sum;
    }
  }
  return result;
}

/** For each place of a longer line: the four cells around it with their parts (Catmull-Rom). */
function places(cells, length) {
  return Array.from({ length }, (_, i) => {
    const place = (i + 0.5) * cells / length - 0.5, low = Math.floor(place), t = place - low;
    const parts = [
      ((-0.5 * t + 1) * t - 0.5) * t, (1.5 * t - 2.5) * t * t + 1, ((-1.5 * t + 2) * t + 0.5) * t, (0.5 * t - 0.5) * t * t,
    ];
    return parts.map((part, k) => [Math.min(cells - 1, Math.max(0, low - 1 + k)), part]);
  });
}
