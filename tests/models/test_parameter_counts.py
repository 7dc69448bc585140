"""What the catalog says of models without building them, against built models."""

import torch

from regard.models.build import build
from regard.models.catalog import list_models, preset
from regard.models.parameter_counts import PARAMETER_COUNTS


def test_parameter_counts_are_those_of_the_built_models():
    assert list(PARAMETER_COUNTS) == list_models()
    for name, count in PARAMETER_COUNTS.items():
        with torch.device("meta"):  # shapes without memory
            assert sum(p.numel() for p in build(preset(name), name).parameters()) == count, name
