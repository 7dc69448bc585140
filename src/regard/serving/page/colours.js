// Colours of classes and of attention.

const CLASSES = [
  [230, 85, 60], [52, 132, 196], [62, 160, 85], [233, 168, 45], [142, 91, 170], [28, 170, 174],
  [214, 64, 122], [125, 140, 52], [95, 105, 205], [176, 112, 70],
];

// From no attention to the most: dark blue over violet and orange to pale yellow, ever lighter, for any eyes.
const WARM = [[12, 10, 48], [74, 20, 110], [148, 40, 110], [213, 72, 77], [246, 130, 45], [252, 196, 75], [252, 250, 190]];

/** Return the colour [red, green, blue] of a class or segment by its number. */
export function classColour(number) {
  return CLASSES[((number % CLASSES.length) + CLASSES.length) % CLASSES.length];
}

/** Return a colour as CSS. */
export function css([red, green, blue]) {
  return `rgb(${red}, ${green}, ${blue})`;
}

/** Return black or white, whichever can be read on a colour. */
export function inkOn([red, green, blue]) {
  return 0.299 * red + 0.587 * green + 0.114 * blue > 150 ? "#111" : "#fff";
}

/** 256 colours of attention, three bytes each. */
export const warmth = new Uint8Array(256 * 3);
for (let i = 0; i < 256; i++) {
  const place = i / 255 * (WARM.length - 1), low = Math.min(Math.floor(place), WARM.length - 2), part = place - low;
  for (let c = 0; c < 3; c++) warmth[3 * i + c] = WARM[low][c] + part * (WARM[low + 1][c] - WARM[low][c]);
}
