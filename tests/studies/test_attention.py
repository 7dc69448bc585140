"""Studies of attention in convolutions: networks that differ in what their names say."""

from dataclasses import replace

import torch

from regard.attention import AugmentedConv2d
from regard.config import apply_overrides
from regard.models.build import build
from regard.recipes import recipe_for
from regard.studies.attention import ATTENTION


def network(row):
    model, *settings = row.words
    net = build(apply_overrides(recipe_for(model, "small"), settings).model, model)
    assert net(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    return [layer for layer in net.modules() if isinstance(layer, AugmentedConv2d)]


def test_positions_are_those_of_their_names():
    """The same attention in the same places."""
    plain, *augmented = [network(row) for row in ATTENTION["positions"].rows]
    assert plain == [] and len({len(layers) for layers in augmented}) == 1
    assert [{layer.position for layer in layers} for layers in augmented] == [
        {"none"}, {"sine"}, {"coord"}, {"relative"},
    ]  # fmt: skip


def test_detectors_differ_in_their_attention_alone():
    plain, augmented = [row.words for row in ATTENTION["retinanet"].rows if row.words]
    one, other = (recipe_for(words[0], "small") for words in (plain, augmented))
    assert (one.model.backbone, other.model.backbone) == ("small", "aa_small")
    assert replace(other, name=one.name, model=replace(other.model, backbone="small")) == one


def test_ratios_are_those_of_their_names():
    plain, *augmented = [network(row) for row in ATTENTION["attention_ratios"].rows]
    shares = [{layer.value_channels / layer.out_channels for layer in layers} for layers in augmented]
    assert plain == [] and shares == [{0.25}, {0.5}, {0.75}, {1.0}]
    assert [{layer.position for layer in network(row)} for row in ATTENTION["full_attention"].rows] == [
        {"none"}, {"relative"},
    ]  # fmt: skip
