// Pictures to begin with: the file in `examples/`, what it shows, and classes by which a model is known to suit it.

const SHAPES = ["circle", "square", "triangle"];

export const EXAMPLES = [
  { file: "shapes-1.jpg", name: "Example: coloured shapes, first", classes: SHAPES },
  { file: "shapes-2.jpg", name: "Example: coloured shapes, second", classes: SHAPES },
  { file: "shapes-3.jpg", name: "Example: coloured shapes, third", classes: SHAPES },
  { file: "cat.jpg", name: "Example: a cat", classes: ["cat", "tabby", "tiger cat", "Egyptian cat"] },
  { file: "coffee.jpg", name: "Example: a cup of coffee", classes: ["cup", "espresso"] },
];
