"""Training recipes: every setting of a run, by the name of a model and of a published training. No torch."""

from __future__ import annotations

import re
from pathlib import Path

from regard.config import RENAMED, apply_mapping, line_of, read_yaml
from regard.errors import ConfigError
from regard.models.catalog import preset
from regard.models.configs import ClassifierConfig
from regard.models.configs.retinanet import RetinaNetConfig
from regard.recipes.classification import ClassificationRecipe, classification_recipe_for
from regard.recipes.detection import DetectionRecipe, detection_recipe_for
from regard.recipes.retinanet import RetinaNetRecipe, retinanet_recipe_for

DetectorRecipe = DetectionRecipe | RetinaNetRecipe
Recipe = DetectorRecipe | ClassificationRecipe


def recipe_for(name: str, recipe: str | None = None) -> Recipe:
    """Return the recipe called `recipe` for a model, or the model's default one.

    Raises:
        ConfigError: an unknown model or recipe (C01), or a pair that does not fit (C09).
    """
    if isinstance(preset(name), ClassifierConfig):
        return classification_recipe_for(name, recipe)
    if isinstance(preset(name), RetinaNetConfig):
        return retinanet_recipe_for(name, recipe)
    return detection_recipe_for(name, recipe)


def recipe_from_file(path: Path) -> Recipe:
    """Read settings from a YAML file; settings it leaves out come from the model's default recipe.

    Raises:
        ConfigError: the file names no model, or a setting is wrong; the message gives the line.
    """
    values = read_yaml(path)
    name = values.get("name")
    if not isinstance(name, str):
        raise ConfigError("no model name", where=path, remedy="add a line such as: name: detr_resnet50", code="C01")
    try:
        recipe = recipe_for(name)
    except ConfigError as error:
        raise _placed(error, line_of(path, "name")) from error
    try:
        return apply_mapping(recipe, values)
    except ConfigError as error:
        # The message names the setting: the first of its words that is a key of the file, by its name now or before.
        old_names = {new: old for old, new in RENAMED.items()}
        words = re.findall(r"[a-z_][\w.]*", error.what)
        lines = (line_of(path, key) for word in words for key in (word, old_names.get(word, word)))
        raise _placed(error, next((line for line in lines if line != str(path)), str(path))) from error


def _placed(error: ConfigError, where: str) -> ConfigError:
    return ConfigError(error.what, where=where, remedy=error.remedy, code=error.code)
