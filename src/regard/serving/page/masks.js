// Masks: COCO's compressed run lengths, and pictures of them.

const LONGEST = 640; // pixels of the longer side of a mask that is drawn: sharp enough, and small

/**
 * Return the runs of a mask: numbers of pixels outside, inside, outside, ... column by column.
 *
 * Each number is written in pieces of 5 bits, the lowest first, as characters from "0" on; 32 says that another piece
 * follows, 16 in the last one that the number is negative. From the fourth number on it is the difference to the number
 * two before.
 */
export function runLengths(text) {
  const runs = [];
  for (let place = 0; place < text.length; ) {
    let value = 0, shift = 0, piece;
    do {
      piece = text.charCodeAt(place++) - 48;
      value |= (piece & 31) << shift;
      shift += 5;
    } while (piece & 32);
    if (piece & 16 && shift < 32) value |= -1 << shift;
    runs.push(runs.length > 2 ? value + runs[runs.length - 2] : value);
  }
  return runs;
}

/** A mask at a size to draw: `width`, `height`, and `inside`, 0 or 1 row by row. */
export function readMask({ size: [fullHeight, fullWidth], counts }) {
  const columns = new Uint8Array(fullHeight * fullWidth);
  let place = 0, value = 0;
  for (const run of runLengths(counts)) {
    if (value) columns.fill(1, place, place + run);
    place += run;
    value = 1 - value;
  }
  const scale = Math.min(1, LONGEST / Math.max(fullHeight, fullWidth));
  const width = Math.max(1, Math.round(fullWidth * scale)), height = Math.max(1, Math.round(fullHeight * scale));
  const inside = new Uint8Array(width * height);
  for (let y = 0; y < height; y++) {
    const row = Math.min(fullHeight - 1, Math.floor((y + 0.5) * fullHeight / height));
    for (let x = 0; x < width; x++) {
      const column = Math.min(fullWidth - 1, Math.floor((x + 0.5) * fullWidth / width));
      inside[y * width + x] = columns[column * fullHeight + row];
    }
  }
  return { width, height, inside };
}

/** Return whether a place, as fractions of the image, is inside of a mask. */
export function isInside(mask, x, y) {
  const column = Math.floor(x * mask.width), row = Math.floor(y * mask.height);
  return column >= 0 && row >= 0 && column < mask.width && row < mask.height && mask.inside[row * mask.width + column] === 1;
}

/** Return a canvas with a mask in a colour [red, green, blue], its edge opaque. */
export function paintMask({ width, height, inside }, [red, green, blue]) {
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  const context = canvas.getContext("2d");
  const image = context.createImageData(width, height);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const i = y * width + x;
      if (!inside[i]) continue;
      const isEdge = (x > 0 && !inside[i - 1]) || (x < width - 1 && !inside[i + 1])
        || (y > 0 && !inside[i - width]) || (y < height - 1 && !inside[i + width]);
      image.data.set([red, green, blue, isEdge ? 255 : 120], 4 * i);
    }
  }
  context.putImageData(image, 0, 0);
  return canvas;
}
