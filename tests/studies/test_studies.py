"""Studies: what they train, that they go on, and what they make of the scores."""

import itertools
import json
import subprocess
from pathlib import Path
from statistics import stdev
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from color_data import write_colors
from command_line import digest, run
from regard.attention import AugmentedConv2d
from regard.config import apply_overrides
from regard.models.build import build, create
from regard.recipes import recipe_for
from regard.studies.attention import NETWORKS
from regard.studies.distillation import DISTILLED, PLAIN


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


@pytest.fixture
def trained(monkeypatch):
    """Training is replaced by writing a score, a different one each time; what was to be trained is kept."""
    commands, numbers = [], itertools.count()

    def train(command, **_):
        commands.append(command)
        folder = Path(command[command.index("--output") + 1])
        folder.mkdir(exist_ok=True)
        number = next(numbers)  # runs come from several threads
        (folder / "metrics.json").write_text(json.dumps({"stats": {"top1": 0.5 + number / 100}}))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", train)
    return commands


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


def test_a_stopped_run_is_gone_on_with(capsys, tmp_path, trained):
    words = ["study", "attention", "--data", "digits", "--seeds", "1", "--output", tmp_path / "out"]
    run(capsys, *words).worked()
    (tmp_path / "out" / "augmented__coordinates-0" / "metrics.json").unlink()
    (tmp_path / "out" / "augmented__coordinates-0" / "config.yaml").write_text("")
    (tmp_path / "out" / "augmented__relative-0" / "metrics.json").unlink()
    trained.clear()
    run(capsys, *words).worked()
    resumed, anew = sorted(trained, key=lambda command: command[command.index("--output") + 1])
    assert "--resume" in resumed and "--recipe" not in resumed
    assert "--resume" not in anew and "aa_resnet20" in anew
    assert "augmentation=cifar" not in anew  # digits are not mirrored


@pytest.mark.parametrize("name", ["attention", "distillation"])
@pytest.mark.parametrize("words", [["--epochs", "0"], ["--seeds", "0"]])
def test_numbers_out_of_range(capsys, tmp_path, name, words):
    run(capsys, "study", name, *words, "--output", tmp_path / "out").refused(2, "C03", "expected at least 1")
    assert not (tmp_path / "out").exists()


def test_distillation_study(capsys, tmp_path, trained, monkeypatch):
    """The teacher is first, then the students without one, then those who learn from either."""
    judged = []

    def evaluate(net, data, **_):
        judged.append((net.config.fuse, data))
        return SimpleNamespace(stats={"top1": 0.25})

    monkeypatch.setattr("regard.studies.distillation.load", lambda _: create(DISTILLED))
    monkeypatch.setattr("regard.studies.distillation.evaluate", evaluate)
    told = run(capsys, "study", "distillation", "--seeds", "2", "--output", tmp_path / "out").worked()
    models = [command[command.index("train") + 1] for command in trained]
    assert models[:3] == ["resnet20", PLAIN, PLAIN] and len(models) == 1 + 2 * 5
    teachers = [next((word for word in command if word.startswith("teacher=")), None) for command in trained]
    assert teachers[:3] == [None] * 3
    assert set(teachers[3:]) == {
        f"teacher={tmp_path}/out/teacher-0", f"teacher={tmp_path}/out/no_distillation-0",
    }  # fmt: skip
    assert sum("distillation=soft" in command for command in trained) == 2
    assert models.count(DISTILLED) == 4 and judged == [("class", "digits")] * 2 + [("distillation", "digits")] * 2
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())["top1"]
    assert scores["token, hard, class head only"] == [0.25, 0.25] and len(scores) == 8
    assert all(name in told for name in scores)
