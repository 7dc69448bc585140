"""The comparison of networks with and without attention: what it trains and makes of the scores."""

import itertools
import json
from statistics import stdev

import torch
from PIL import Image

from color_data import write_colors
from command_line import digest, run
from regard.attention import AugmentedConv2d
from regard.config import apply_overrides
from regard.models.build import build
from regard.recipes import recipe_for
from regard.studies.attention import NETWORKS


def test_networks_differ_in_what_their_names_say():
    """The same width and depth; the augmented ones have attention in the same places and other positions."""
    found = {}
    for name, (model, *settings) in NETWORKS.items():
        recipe = apply_overrides(recipe_for(model, "small"), settings)
        net = build(recipe.model, model)
        layers = [layer for layer in net.modules() if isinstance(layer, AugmentedConv2d)]
        found[name] = (len(layers), {layer.position for layer in layers})
        assert net(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    plain, *augmented = found.values()
    assert plain == (0, set())
    assert [position for _, position in augmented] == [{"none"}, {"sine"}, {"coord"}, {"relative"}]
    assert len({count for count, _ in augmented}) == 1


def test_attention_study(capsys, tmp_path, trained):
    data = write_colors(tmp_path / "data")
    words = ["study", "attention", "--data", data, "--epochs", "2", "--seeds", "2", "--train-images", "9"]
    told = run(capsys, *words, "--output", tmp_path / "out").worked()
    assert len(trained) == 2 * len(NETWORKS)
    for command in trained:
        assert {"evaluate_every=2", "train_images=9", "--recipe", "small", "augmentation=cifar"} <= set(command)
    assert sum("seed=1" in command for command in trained) == len(NETWORKS)
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())["top1"]
    assert list(scores) == list(NETWORKS)
    assert sorted(itertools.chain(*scores.values())) == [0.5 + number / 100 for number in range(2 * len(NETWORKS))]
    for first, second in scores.values():
        assert f"{50 * (first + second):.2f}" in told and f"{100 * stdev([first, second]):.2f}" in told
    assert Image.open(tmp_path / "out" / "scores.png").size[0] > 500
    before = digest(tmp_path / "out")
    again = run(capsys, *words, "--output", tmp_path / "out").worked()
    assert again == told and len(trained) == 2 * len(NETWORKS) and digest(tmp_path / "out") == before
    words[5] = "3"
    run(capsys, *words, "--output", tmp_path / "out").refused(2, "C11", "another study is here")
