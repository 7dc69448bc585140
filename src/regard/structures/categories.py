"""Classes of data sets and models, and the model card."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from regard.errors import DataError, counted


@dataclass(frozen=True)
class Category:
    """A class of a data set or model. Its label in the model is its index in the list of categories.

    id: id in the data set. name: unique. is_thing: False for stuff (sky, grass), which has no instances.
    """

    id: int
    name: str
    is_thing: bool = True


@dataclass(frozen=True)
class ModelCard:
    """Metadata of a model, its `card`. Checkpoints store it next to the parameters.

    name: name of the model.
    categories: the class of every label.
    short_side, max_size: in pixels; of a detector, length of the short side and maximum length of the long side in
        evaluation; of a classifier, both are the side of its square input.
    crop_pct: of a classifier, side of the centre crop over the short side of the resized image, above 0; None to resize
        the whole image to a square.
    squash: of a classifier, whether the image is resized to a square of side / `crop_pct`, whatever its shape, before
        the crop. By default its short side gets this length.
    interpolation: of the resize of a classifier.
    crop_rounding: where the centre crop of a classifier starts if half a pixel is left over: `nearest` rounds to even
        as torchvision and timm do, `down` as transformers does.
    panoptic: whether a detector was trained on panoptic annotations. With masks it then predicts segments.
    threshold: of a detector from a run, the minimum score with the best F1 of boxes, or PQ of segments, on the images
        it was evaluated on, 0..1; None if it is not known. Checkpoints do not store it: it stands in the run's
        metrics.json.
    threshold_measure: that measure, `F1` or `PQ`, and its value at the threshold, 0..1; None if it is not known.
    """

    name: str
    categories: tuple[Category, ...]
    short_side: int = 800
    max_size: int = 1333
    crop_pct: float | None = None
    panoptic: bool = False
    threshold: float | None = None
    threshold_measure: tuple[str, float] | None = None
    squash: bool = False
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    crop_rounding: Literal["nearest", "down"] = "nearest"


def knows_stuff(categories: Sequence[Category]) -> bool:
    """Return whether any class is stuff. Only panoptic annotations have stuff."""
    return not all(category.is_thing for category in categories)


def labels_by_name(model: Sequence[Category], data: Sequence[Category], where: str) -> list[int]:
    """Match the categories of a data set with those of a model by name.

    Args:
        model: categories of the model.
        data: categories of the data set.
        where: path or name of the data set, for the message.

    Returns:
        The model's label of every category of the data set, in the order of `data`.

    Raises:
        DataError: the data set has classes that the model does not know (K20).
    """
    known = {category.name: label for label, category in enumerate(model)}
    missing = [category.name for category in data if category.name not in known]
    if missing:
        names = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        raise DataError(
            f"the model does not know {counted(len(missing), 'class', 'classes', of=len(data))}: {names}",
            where=where,
            remedy="use data with the classes that the model was trained on",
            code="K20",
        )
    return [known[category.name] for category in data]


_COCO_NAMES = (
    "person bicycle car motorcycle airplane bus train truck boat traffic_light fire_hydrant - stop_sign parking_meter "
    "bench bird cat dog horse sheep cow elephant bear zebra giraffe - backpack umbrella - - handbag tie suitcase "
    "frisbee skis snowboard sports_ball kite baseball_bat baseball_glove skateboard surfboard tennis_racket bottle - "
    "wine_glass cup fork knife spoon bowl banana apple sandwich orange broccoli carrot hot_dog pizza donut cake chair "
    "couch potted_plant bed - dining_table - - toilet - tv laptop mouse remote keyboard cell_phone microwave oven "
    "toaster sink refrigerator - book clock vase scissors teddy_bear hair_drier toothbrush"
)

# The authors' detectors use COCO's ids as labels, 0 to 90. Eleven of these have no name and no objects.
COCO: tuple[Category, ...] = tuple(
    Category(i, f"unused {i}" if name == "-" else name.replace("_", " "))
    for i, name in enumerate(["-", *_COCO_NAMES.split()])
)

_COCO_STUFF = {
    92: "banner", 93: "blanket", 95: "bridge", 100: "cardboard", 107: "counter", 109: "curtain", 112: "door-stuff",
    118: "floor-wood", 119: "flower", 122: "fruit", 125: "gravel", 128: "house", 130: "light", 133: "mirror-stuff",
    138: "net", 141: "pillow", 144: "platform", 145: "playingfield", 147: "railroad", 148: "river", 149: "road",
    151: "roof", 154: "sand", 155: "sea", 156: "shelf", 159: "snow", 161: "stairs", 166: "tent", 168: "towel",
    171: "wall-brick", 175: "wall-stone", 176: "wall-tile", 177: "wall-wood", 178: "water-other", 180: "window-blind",
    181: "window-other", 184: "tree-merged", 185: "fence-merged", 186: "ceiling-merged", 187: "sky-other-merged",
    188: "cabinet-merged", 189: "table-merged", 190: "floor-other-merged", 191: "pavement-merged",
    192: "mountain-merged", 193: "grass-merged", 194: "dirt-merged", 195: "paper-merged", 196: "food-other-merged",
    197: "building-other-merged", 198: "rock-merged", 199: "wall-other-merged", 200: "rug-merged",
}  # fmt: skip

# Labels of the authors' panoptic models, 0 to 249: things up to 90, then stuff, of which only some have a name.
COCO_PANOPTIC: tuple[Category, ...] = (
    *COCO,
    *(Category(i, _COCO_STUFF.get(i, f"unused {i}"), is_thing=False) for i in range(len(COCO), 250)),
)
