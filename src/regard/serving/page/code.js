// The code that does what the page shows: three lines of Python.

/**
 * Return the lines.
 *
 * model: the description of the model. picture: the name of the file. threshold: minimum score, or null.
 * shown: what is looked at, {kind, layer, head, ...}, or null for the prediction.
 */
export function pythonCode(model, picture, threshold, shown) {
  const lines = ["import regard", `model = regard.load(${text(model.name)})  # or the path of the model's run or file`];
  if (shown === null) {
    const options = threshold === null ? "" : `, threshold=${threshold}`;
    return [...lines, `regard.predict(model, ${text(picture)}${options}).plot().show()`].join("\n");
  }
  const known = model.explanations.find(({ what }) => what === shown.what)?.options ?? [];
  const options = Object.entries(shown.options).filter(([name, value]) => value !== null && known.includes(name));
  const words = options.map(([name, value]) => `, ${name}=${name === "point" ? `(${value.join(", ")})` : value}`);
  return [...lines, `regard.explain(model, ${text(picture)}, ${text(shown.what)}${words.join("")}).plot().show()`].join("\n");
}

function text(value) {
  return JSON.stringify(value);
}
