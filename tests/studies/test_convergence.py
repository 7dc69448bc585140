"""The comparison of small detectors: what its variants train."""

from regard.config import apply_overrides
from regard.recipes import recipe_for
from regard.studies.convergence import VARIANTS


def test_variants_have_settings_that_exist():
    made = [apply_overrides(recipe_for("detr_tiny"), words) for words in VARIANTS.values()]
    assert made[-1] == recipe_for("detr_tiny") and len({repr(recipe) for recipe in made}) == len(made)
    assert not made[0].model.anchors and not made[0].model.sigmoid
