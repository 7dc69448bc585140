"""Images before the model, data as the model: one line with the command as it should be."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
import yaml

from command_line import run
from image_files import encode, scene
from regard.cli.groups import app
from regard.cli.places import EXAMPLE, check_places, is_model
from regard.config import to_mapping
from regard.errors import ConfigError
from regard.models.catalog import WEIGHTS
from regard.recipes import recipe_for
from run_files import small_detector, write_run


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """A folder with a run, weights, images and a text."""
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "my run", small_detector(), {1: 0.5})
    (tmp_path / "my run" / "config.yaml").write_text(yaml.safe_dump(to_mapping(recipe_for("detr_tiny"))))
    (tmp_path / "photos").mkdir()
    for name in ("a.png", "photos/b.jpg"):
        (tmp_path / name).write_bytes(encode(scene(), "PNG"))
    for name in ("w.pth", "w.onnx", "clip.mp4", "README.md"):
        (tmp_path / name).touch()
    return tmp_path


SWAPPED = [
    ["predict", "a.png", "my run"],
    ["predict", "photos", "my run", "--threshold", "0.3"],
    ["predict", "--output", "out here", "photos/*.jpg", "my run"],
    ["predict", "clip.mp4", "w.pth"],
    ["predict", "a.png", "w.onnx"],
    ["predict", "a.png", EXAMPLE, "photos"],
    ["predict", "https://example.org/a.jpg", "my run/checkpoints/step_1"],
    ["predict", "-", "my run"],
    ["predict", "camera:0", "my run"],
    ["explain", "a.png", "my run", "--what", "heads"],
    ["evaluate", "photos", "--data", "my run"],
]


@pytest.mark.parametrize("words", SWAPPED, ids=" ".join)
def test_swapped_words_are_put_right(place, capsys, words):
    line = run(capsys, *words).refused(2, "C09")
    remedy = shlex.split(line.rpartition(" — ")[2])
    assert remedy[0] == "regard" and sorted(remedy[1:]) == sorted(words)
    _, bound, _ = app.parse_args(remedy[1:], exit_on_error=False, print_error=False)
    assert is_model(bound.arguments["checkpoint"])
    check_places(remedy[1:])


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["predict", "a.png"], "C09", f"regard predict {EXAMPLE} a.png"),
        (["predict", "photos", "--threshold", "0.3"], "C09", f"regard predict {EXAMPLE} photos --threshold 0.3"),
        (["predict", "a.png", "photos/b.jpg"], "C09", f"regard predict {EXAMPLE} a.png photos/b.jpg"),
        (["explain", "a.png"], "C09", f"regard explain {EXAMPLE} a.png"),
        (["predict", "README.md"], "C09", "README.md"),
        (["predict", "README.md", "a.png"], "C09", "README.md"),
        (["predict", "my run"], "C09", "regard predict 'my run' IMAGE"),
        (["explain", "my run"], "C09", "regard explain 'my run' IMAGE"),
        (["evaluate", "photos"], "K02", "regard evaluate RUN --data photos"),
        (["predict", "a.png", "v.pth"], "K01", "w.pth"),
        (["predict", "photo", "my run"], "K01", "photos"),  # what is not there is told first
    ],
)
def test_what_is_missing_is_named(place, capsys, words, code, says):
    finished = run(capsys, *words)
    finished.refused(4 if code == "K01" and "v.pth" in words else 2, code, says)


@pytest.mark.parametrize(
    "words",
    [
        ["predict", "my run", "a.png"],
        ["predict", "my run", "my run"],  # its pictures
        ["predict", EXAMPLE, "photos"],
        ["predict", "photos", "a.png"],  # the error about the folder says more
        ["evaluate", "my run"],
        ["evaluate", "my run", "--data", "photos"],
        ["predict", "--help"],
        ["train", "detr_tiny"],
    ],
)
def test_right_words_pass(place, words):
    check_places(words)


def test_a_name_with_weights_is_a_model_unless_a_file_has_it(place):
    assert EXAMPLE in WEIGHTS and is_model(EXAMPLE)
    (place / EXAMPLE).mkdir()
    assert not is_model(EXAMPLE)


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("my run", "start_from=my run"),
        ("w.pth", "start_from=w.pth"),
        ("photos", "--data photos"),
        ("my run/config.yaml", "--config my run/config.yaml"),
    ],
)
def test_a_path_is_no_model_to_train(place, capsys, word, says):
    run(capsys, "train", word).refused(2, "C01", says)


def test_a_file_is_no_folder_and_a_folder_no_file(place, capsys):
    (place / "old.png").touch()
    for target, code in (("photos", "C11"), ("old.png", "C11"), ("new.gif", "C09"), ("new", "C09")):
        run(capsys, "data", "show", "photos", "--output", target).refused(2, code, target)
        run(capsys, "explain", "my run", "a.png", "--output", target).refused(2, code, target)
    line = run(capsys, "explain", "my run", "a.png", "--output", "photos").refused(2, "C11")
    new = Path(shlex.split(line.rpartition("--output ")[2])[0])
    assert new.parent == Path("photos") and not new.exists()


def test_a_run_is_no_data(place, capsys):
    """The error names the data of the run."""
    for words in (
        ["data", "check"],
        ["data", "show"],
        ["train", "detr_tiny", "--data"],
        ["evaluate", "my run", "--data"],
    ):
        run(capsys, *words, "my run").refused(3, None, "my run", "shapes")


def test_errors_before_any_work(place):
    for words in SWAPPED:
        with pytest.raises(ConfigError):
            check_places(words)
