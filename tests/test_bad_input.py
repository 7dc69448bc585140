"""What users and accidents bring, through the command line: one line that says what and where, and an exit code.

The ids are those of the errors: I images, C settings, K weights. Nothing that was there before is ever changed.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import regard
from command_line import digest, run
from image_corpus import Bad, bad_images, good_images
from image_files import encode, scene
from regard.config import to_mapping
from regard.data.generated.shapes import ShapesConfig, write_shapes
from regard.data.images import MAX_PIXELS
from regard.errors import DataError
from regard.recipes import recipe_for
from run_files import small_detector, write_run

# Those that are bad only where fewer pixels are allowed than `predict` allows are no case here.
BAD = [case for case in bad_images() if case.max_pixels == MAX_PIXELS]
GOOD = good_images()


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A run to predict with."""
    folder = tmp_path_factory.mktemp("runs") / "pets"
    write_run(folder, small_detector(), {1: 0.5})
    return folder


@pytest.fixture(scope="module")
def shapes_source(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "shapes"
    write_shapes(ShapesConfig(size=32, train=6, val=2), folder)
    return folder


@pytest.fixture
def shapes(shapes_source, tmp_path) -> Path:
    """A small data set, to be damaged."""
    return shutil.copytree(shapes_source, tmp_path / "shapes")


@pytest.fixture
def images(tmp_path) -> Iterator[Path]:
    """A folder that is the same before and after whatever a test does once it has filled it."""
    folder = tmp_path / "images"
    folder.mkdir()
    yield folder


# Images


@pytest.mark.parametrize("case", BAD, ids=lambda case: case.id)
def test_bad_images(capsys, trained, images, case: Bad):
    path = images / "0007.jpg"
    path.write_bytes(case.data)
    before = digest(images.parent)
    finished = run(capsys, "predict", trained, path)
    assert finished.code == 3 and finished.out == ""
    code = finished.err.partition(":")[0].removeprefix("error ")
    assert code in case.code.split("|")
    finished.refused(3, code, path)
    assert digest(images.parent) == before


def test_which_ids_are_covered():
    ids = {case.code[:3] for case in BAD} | {case.id[:3] for case in BAD} | {case.id[:3] for case in GOOD}
    others = {"I18", "I27", "I28", "I29", "I30", "I31"}  # below, and in test_data_images
    assert ids | others == {f"I{number:02}" for number in range(1, 33)}


def test_good_images(capsys, trained, images):
    """Whatever the suffix says. An animation gives one warning in one line."""
    paths = [images / f"{number:04}.jpg" for number in range(len(GOOD))]
    for path, case in zip(paths, GOOD, strict=True):
        path.write_bytes(case.data)
    before = digest(images.parent)
    finished = run(capsys, "predict", trained, images)
    for line, path in zip(finished.worked().splitlines(), paths, strict=True):
        assert line.startswith(f"{path}: ")
    warned = [path for path, case in zip(paths, GOOD, strict=True) if case.warns]
    assert warned
    for line, path in zip(finished.complaints, warned, strict=True):
        assert line.startswith("warning: image has more than one frame") and str(path) in line
    assert digest(images.parent) == before


def test_bad_among_good(capsys, trained, images, tmp_path):
    for number, case in enumerate(BAD):
        (images / f"{number:03}.jpg").write_bytes(case.data)
    for number in range(3):
        (images / f"good{number}.png").write_bytes(encode(scene(number), "PNG"))
    before = digest(images)
    finished = run(capsys, "predict", trained, images, "--output", tmp_path / "out", "--batch-size", "4")
    finished.refused(3, "I01", f"{len(BAD)} of {len(BAD) + 3} images cannot be used", images / "000.jpg")
    lines = finished.out.splitlines()
    assert [line.startswith("error I") for line in lines] == [False] * 3 + [True] * (len(BAD) - 1)
    for number in range(1, len(BAD)):  # the first is told by the error
        assert sum(f"{images / f'{number:03}.jpg'}" in line for line in lines) == 1
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [f"good{n}.jpg" for n in range(3)]
    assert digest(images) == before


def test_things_that_are_no_files(capsys, trained, images):
    """I27: none is waited for."""
    (images / "gone.jpg").symlink_to(images / "nothing.jpg")
    (images / "zero.jpg").symlink_to("/dev/zero")
    os.mkfifo(images / "pipe.jpg")
    (images / "folder.jpg").mkdir()
    (images / "loop.jpg").symlink_to(images / "loop.jpg")
    before = sorted(images.iterdir())
    for name, says in (("gone", "link to a missing file"), ("zero", "a pipe, socket or device"),
                       ("pipe", "a pipe, socket or device"), ("loop", "cannot be read")):  # fmt: skip
        run(capsys, "predict", trained, images / f"{name}.jpg").refused(3, "I27", says, images / f"{name}.jpg")
    run(capsys, "predict", trained, images / "folder.jpg").refused(3, None, "no image in the directory")
    run(capsys, "predict", trained, images / "nothing.jpg").refused(3, "I29", "no such file")
    assert sorted(images.iterdir()) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_forbidden_file(capsys, trained, images):
    path = images / "a.png"
    path.write_bytes(encode(scene(), "PNG"))
    path.chmod(0)
    run(capsys, "predict", trained, path).refused(3, "I27", "cannot be read", path)


NAMES = (
    "größe 图像.png", "two\nlines.png", "%s%n.png", "-leading.png", "red\x1b[31m.png", "a" * 251 + ".png", "case.png",
    "CASE.PNG", "quote'\".png", " space .png", "<b>&amp;.png", os.fsdecode(b"latin-\xe9.png"),
)  # fmt: skip


def test_names(capsys, trained, images, tmp_path, monkeypatch):
    """I28: every name is read, drawn and told on one line."""
    for name in NAMES:
        (images / name).write_bytes(encode(scene(), "PNG"))
    before = digest(images)
    output = tmp_path / "out"
    finished = run(capsys, "predict", trained, images, "--output", output, "--json", tmp_path / "f.json")
    lines = finished.worked().splitlines()
    assert len(lines) == len(NAMES) and all(line.isprintable() for line in lines)
    assert len(list(output.iterdir())) == len(NAMES)
    for name in NAMES[:5]:
        (images / name).write_bytes(b"")
        run(capsys, "predict", trained, images / name).refused(3, "I01", "empty file")
        (images / name).write_bytes(encode(scene(), "PNG"))
    monkeypatch.chdir(images)
    assert run(capsys, "predict", trained, "--", "-leading.png").worked().startswith("-leading.png: ")
    run(capsys, "predict", trained, "-trailing.png").refused(2, "C01", "-trailing.png")
    assert digest(images) == before


def test_a_file_that_is_gone_when_its_turn_comes(capsys, trained, images, monkeypatch):
    """I29"""
    (images / "a.png").write_bytes(encode(scene(), "PNG"))
    monkeypatch.setattr("regard.prediction.files.expand", lambda _: [images / "a.png", images / "b.png"])
    finished = run(capsys, "predict", trained, images)
    finished.refused(3, "I29", "no such file", images / "b.png")
    assert finished.out.startswith(f"{images / 'a.png'}: ")


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (np.full((8, 8, 3), np.nan), "nan"),
        (np.full((8, 8, 3), np.inf, np.float32), "inf"),
        (np.random.rand(8, 8, 3) * 255, "divide 0..255 by 255"),
        (np.zeros((3, 8, 8), np.uint8), "array.transpose(1, 2, 0)"),
        (np.zeros((8, 8, 2), np.uint8), "(8, 8, 2)"),
        (np.zeros((8, 8, 0), np.uint8), "(8, 8, 0)"),
        (np.zeros((0, 8, 3), np.uint8), "(0, 8, 3)"),
        (np.zeros((2, 8, 8, 3), np.uint8), "pass a list of images"),
        (np.zeros((8, 8, 3), np.int64), "convert it to uint8"),
        (torch.zeros(8, 8, 3), "tensor.permute(2, 0, 1)"),
        (torch.zeros(2, 3, 8, 8), "pass a list of images"),
        (torch.zeros(4, 8, 8), "(4, 8, 8)"),
        (None, "NoneType"),
    ],
)
def test_arrays(source, says):
    """I31: what was expected, and what was found."""
    with pytest.raises(ValueError) as caught:
        regard.predict(small_detector(), source)
    assert isinstance(caught.value, DataError) and caught.value.code == "I31" and says in caught.value.line


def test_the_same_image_in_both_splits(capsys, shapes):
    """I30"""
    shutil.copy(shapes / "train" / "000004.png", shapes / "val" / "000001.png")
    before = digest(shapes)
    text = run(capsys, "data", "check", shapes).worked()
    pair = f"{shapes}/train/000004.png = {shapes}/val/000001.png"
    assert f"warning I30: 1 validation image is among the training images too — {pair}" in text
    assert digest(shapes) == before


# Broken images in a data set


def break_image(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-30])


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_training_image(capsys, shapes, tmp_path, workers):
    """The error of a loader process is the same line as without one."""
    break_image(shapes / "train" / "000003.png")
    before = digest(shapes)
    words = [
        "train",
        "detr_tiny",
        "--recipe",
        "small",
        "--data",
        shapes,
        "--quiet",
        "--output",
        tmp_path / "run",
        "epochs=1",
    ]
    finished = run(capsys, *words, "batch_size=2", "short_side=32", "max_size=32", f"workers={workers}")
    line = finished.refused(3, "I09", "PNG is cut off before its end", shapes / "train" / "000003.png")
    assert line.endswith(f"find all such images: regard data check {shapes}")
    assert digest(shapes) == before


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_validation_image(capsys, shapes, tmp_path, workers):
    from regard.models.build import build
    from regard.structures.categories import Category
    from run_files import SMALL

    net = build(SMALL, "mine", [Category(1, "circle"), Category(2, "square"), Category(3, "triangle")], (32, 64))
    write_run(tmp_path / "run", net, {1: 0.5})
    break_image(shapes / "val" / "000002.png")
    finished = run(capsys, "evaluate", tmp_path / "run", "--data", shapes, "--workers", workers)
    finished.refused(3, "I09", shapes / "val" / "000002.png", f"regard data check {shapes}")
    assert not (tmp_path / "run" / "metrics.json").exists()  # no score of a part


def test_check_finds_all_of_them(capsys, shapes):
    for name in ("train/000001.png", "train/000005.png", "val/000002.png"):
        break_image(shapes / name)
    (shapes / "train" / "000002.png").write_bytes(encode(scene(), "PNG"))  # of another size
    before = digest(shapes)
    finished = run(capsys, "data", "check", shapes)
    finished.refused(3, None, "2 kinds of faults stop a training", shapes)
    cut, size = (line for line in finished.out.splitlines() if line.startswith("error"))
    assert cut.startswith("error I09: ") and "(3 cases)" in cut
    assert all(f"{shapes / name}.png" in cut for name in ("train/000001", "train/000005", "val/000002"))
    assert size.startswith("error A33: ") and f"{shapes / 'train/000002'}.png" in size
    assert digest(shapes) == before


def test_no_such_data(capsys, shapes, tmp_path):
    run(capsys, "train", "detr_tiny", "--data", tmp_path / "none").refused(3, None, "no such folder", tmp_path / "none")
    run(capsys, "data", "check", shapes / "train").refused(3, "A64", "no detection data", shapes / "train")
    (shapes / "train" / "000001.png").unlink()
    finished = run(capsys, "data", "check", shapes)
    finished.refused(3, None, shapes)
    assert "error A31: 1 of 6 image files is missing: '000001.png'" in finished.out
    (shapes / "annotations" / "instances_val.json").unlink()
    assert "error A31" in run(capsys, "data", "check", shapes).out
    many = ["train", "detr_tiny", "--data", shapes, "model.num_queries=1"]
    run(capsys, *many).refused(3, "A31")


# Words of a newcomer


@pytest.fixture
def desk(tmp_path, trained, shapes_source, monkeypatch) -> Path:
    """A folder with a run, photographs, YOLO data without names of classes, and a text."""
    shutil.copytree(trained, tmp_path / "run")
    (tmp_path / "photos").mkdir()
    for number in range(2):
        (tmp_path / "photos" / f"{number}.jpg").write_bytes(encode(scene(number), "JPEG"))
    for kind in ("images", "labels"):
        (tmp_path / "yolo" / kind / "train").mkdir(parents=True)
    (tmp_path / "yolo" / "images" / "train" / "0.jpg").write_bytes(encode(scene(), "JPEG"))
    (tmp_path / "yolo" / "labels" / "train" / "0.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    (tmp_path / "yolo" / "data.yaml").write_text("train: images/train\n")
    (tmp_path / "README.md").write_text("# My pets\n\nSome notes.\nMore.\nMore.\n")
    (tmp_path / "drawn").mkdir()
    (tmp_path / "drawn" / "0.jpg").write_bytes(encode(scene(7), "JPEG"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "case",
    [
        ("train --data photos --ouput X", "error C01: unknown option '--ouput'", "did you mean '--output'?"),
        ("train detr_tiny output=X", "error C01: unknown option 'output'", "did you mean '--output'?"),
        ("predict run photos --outptu=X", "error C01: unknown option '--outptu'", "did you mean '--output'?"),
        (
            "data check yolo",
            "error A62: no names of the classes in the settings of the data",
            "yolo/data.yaml",
            "add a line such as names: [cat, dog]",
        ),
        ("evaluate run", "error C09: which data?", "add --data FOLDER, or --data shapes"),
        (
            "evaluate photos",
            "error K02: no model: the folder is no run and holds no weights",
            "photos",
            "name the model first: regard evaluate RUN --data photos",
        ),
        ("explain run", "error C09: which image?", "name it after the model: regard explain run IMAGE"),
        (
            "data convert yolo --to coco",
            "error: regard data convert needs --output: folder to create",
            "see: regard data convert --help",
        ),
        (
            "predict photos/0.jpg run --top 3",
            "error C09: swapped: the model comes first, then the images",
            "regard predict run photos/0.jpg --top 3",
        ),
        (
            "predict photos/0.jpg",
            "error C09: an image where the model is expected",
            "photos/0.jpg",
            "name the model first: regard predict detr_resnet50 photos/0.jpg",
        ),
        (
            "predict README.md",
            "error C09: neither a model (a run or a weights file) nor an image",
            "README.md",
            "name the model first, then images: regard predict detr_resnet50 IMAGE",
        ),
        (
            "predict run README.md",
            "error I03: text instead of an image",
            "README.md",
            "name an image (JPEG, PNG, WEBP, BMP, TIFF or GIF); if this should be one, copy or download it again",
        ),
        (
            "predict run photos --output drawn.jpg",
            "error C09: the name of one file for 2 images",
            "drawn.jpg",
            "name a folder: --output drawn",
        ),
        (
            "predict run photos/0.jpg --output drawn",
            "error C11: this file is no earlier result and would be replaced",
            "drawn/0.jpg",
            "name another file or folder",
        ),
        ("predict run photo/", "error I29: no such file or folder", "photo", "did you mean photos?"),
        ("predict run photo/0.jpg", "error I29: no such file", "photo/0.jpg", "did you mean photos/0.jpg?"),
        (
            "predict run photos --classes README.md",
            "error K08: 5 class names, expected 3 (or 2 if label 0 is unused) for mine: one a line, in the order of "
            "the labels",
            "README.md",
            "leave them out: the model knows cat, dog, owl",
        ),
        (
            "train run --data photos",
            "error C01: a path where the name of a model is expected",
            "run",
            "set start_from=run, or resume it: --output run --resume",
        ),
    ],
    ids=lambda case: case[0],
)
def test_one_line_says_what_to_do(capsys, desk, case):
    """The words, then what, where and the remedy."""
    words, *parts = case
    before = digest(desk)
    finished = run(capsys, *words.split())
    assert (finished.out, finished.err) == ("", f"{' — '.join(parts)}\n")
    assert digest(desk) == before


# Settings


@pytest.mark.parametrize(
    ("words", "exit_code", "code", "says"),
    [
        ("learning_rat=1", 2, "C01", "unknown key 'learning_rat'"),
        ("epoch=3", 2, "C01", "did you mean 'epochs'?"),
        ("model.num_querys=3", 2, "C01", "did you mean 'model.num_queries'?"),
        ("--modle.dropout=0", 2, "C01", "did you mean 'model'?"),
        ("--recipe fats", 2, "C01", "did you mean 'fast'?"),
        ("lr=high", 2, "C02", "lr='high', expected a number"),
        ("batch_size=2.5", 2, "C02", "batch_size='2.5', expected a whole number"),
        ("model.anchors=perhaps", 2, "C02", "expected true or false"),
        ("amp=fp8", 2, "C02", "did you mean 'fp16'?"),
        ("model=big", 2, "C02", "model is a group of settings"),
        ("lr=-1", 2, "C03", "lr=-1.0"),
        ("lr=0", 2, "C03", "lr=0"),
        ("lr=nan", 2, "C02", "lr='nan'"),
        ("--epochs 0", 2, "C03", "epochs=0, expected at least 1"),
        ("--epochs -5", 2, "C03", "epochs=-5"),
        ("batch_size=0", 2, "C03", "batch_size=0"),
        ("ema=1", 2, "C03", "ema"),
        ("short_side=900 max_size=800", 2, "C03", "16 <= short_side <= max_size"),
        ("model.embed_dim=250", 2, "C05", "embed_dim 250 is not a multiple of 4"),
        ("model.num_queries=0", 2, "C08", "num_queries is 0, expected at least 1"),
        ("model.decoder_layers=0", 2, "C08", "decoder_layers is 0"),
        ("model.anchors=false", 2, "C09", "denoising_groups needs anchor queries"),
        ("--resume", 2, "C09", "--resume needs the run's folder"),
        ("--resume --output NONE", 2, "C09", "no run to resume"),
        ("start_from=backbone", 2, "C09", "no ImageNet weights of backbone 'small'"),
        ("device=gpu", 2, "C10", "unknown device 'gpu'"),
        ("amp=fp16 device=cpu", 2, "C10", "amp=fp16 needs a GPU"),
        ("model.num_queries=1", 2, "A43", "set model.num_queries="),
    ],
)
def test_settings(capsys, shapes_source, tmp_path, monkeypatch, words, exit_code, code, says):
    monkeypatch.chdir(tmp_path)
    before = digest(shapes_source)
    finished = run(capsys, "train", "detr_tiny", "--data", shapes_source, "--quiet", *words.split())
    finished.refused(exit_code, code, says)
    assert not list(tmp_path.iterdir()) and digest(shapes_source) == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_silent_cpu(capsys, trained, shapes_source, images):
    """C10"""
    (images / "a.png").write_bytes(encode(scene(), "PNG"))
    for words in (["train", "detr_tiny", "--data", shapes_source, "device=cuda"],
                  ["evaluate", trained, "--data", shapes_source, "--device", "cuda"],
                  ["predict", trained, images, "--device", "cuda:1"]):  # fmt: skip
        run(capsys, *words).refused(6, "C10", "no cuda device on this machine", "use cpu")


def test_contradictions(capsys, tmp_path):
    """C09"""
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(to_mapping(recipe_for("detr_tiny"))))
    run(capsys, "train").refused(2, "C09", "which model?", "regard models")
    run(capsys, "train", "detr_resnet50", "--recipe", "small").refused(2, "C09", "small is for detr_tiny")
    run(capsys, "train", "detr_demo").refused(2, None, "detr_demo cannot be trained here", "detr_resnet50")
    run(capsys, "train", "--config", path, "--recipe", "fast").refused(2, "C09", "--config and --recipe")
    run(capsys, "train", "--config", path, "--resume", "--output", tmp_path).refused(2, "C09", "--config and --resume")
    run(capsys, "train", "--resume", "--output", tmp_path, "--recipe", "fast").refused(
        2, "C09", "--resume and --recipe"
    )
    run(capsys, "train", "detr_resnet50", "--config", path).refused(
        2, "C09", "for detr_tiny, not for detr_resnet50", path
    )


def test_data_are_never_guessed(capsys, tmp_path):
    """C09: only the small recipe is made for generated images."""
    for words in (["detr_resnet50"], ["detr_resnet50", "--recipe", "fast"], ["detr_tiny", "--recipe", "paper"]):
        run(capsys, "train", *words, "--output", tmp_path / "run").refused(2, "C09", "which data?", "--data")
    assert not list(tmp_path.iterdir())


def test_scores_are_told_before_anything_is_written(capsys, shapes, tmp_path, monkeypatch):
    """An hour's work is not lost because matplotlib is missing or the disk is full."""
    from regard.models.build import build
    from regard.structures.categories import Category
    from run_files import SMALL

    net = build(SMALL, "mine", [Category(1, "circle"), Category(2, "square"), Category(3, "triangle")], (32, 64))
    write_run(tmp_path / "run", net, {1: 0.5})

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("regard.evaluation.detection.plot_detections", full)
    finished = run(capsys, "evaluate", tmp_path / "run", "--data", shapes, "--workers", "0")
    finished.refused(6, None, "No space left on device")
    assert "AP50" in finished.out and "triangle" in finished.out
    worked = "regard.evaluation.detection.evaluate_detector"
    monkeypatch.setattr(worked, lambda *_, **__: pytest.fail("worked before it looked"))
    (tmp_path / "file").write_text("")
    words = ["evaluate", tmp_path / "run", "--data", shapes, "--output", tmp_path / "file"]
    run(capsys, *words).refused(6, "C11", "cannot write here", tmp_path / "file")


def test_where_the_run_goes(capsys, shapes_source, tmp_path):
    """C11"""
    folder = tmp_path / "full"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    before = digest(tmp_path)
    train = ["train", "detr_tiny", "--recipe", "small", "--data", shapes_source, "--quiet", "--output"]
    run(capsys, *train, folder).refused(2, "C11", "the output folder is not empty", folder, "--resume")
    run(capsys, *train, folder / "notes.txt").refused(2, "C11", folder / "notes.txt")
    run(capsys, *train, folder / "notes.txt" / "run").refused(6, "C11", "cannot write here", folder / "notes.txt")
    assert digest(tmp_path) == before


def test_predictions_have_nowhere_to_go(capsys, trained, images, tmp_path):
    (images / "a.png").write_bytes(encode(scene(), "PNG"))
    (tmp_path / "file").write_text("")
    before = digest(tmp_path)
    for option in ("--output", "--json"):
        for target in (tmp_path / "file" / "x", images if option == "--json" else tmp_path / "file"):
            answer = run(capsys, "predict", trained, images, option, target)
            known = option == "--json" and target == images
            line = answer.refused(2 if known else 6, "C11")
            assert str(tmp_path / "file") in line or str(images) in line
    (images / "a.jpg").write_bytes(encode(scene(), "JPEG"))  # would be the picture of a.png
    (tmp_path / "truth.json").write_text('{"images": []}')
    before = digest(tmp_path)
    run(capsys, "predict", trained, images / "a.png", "--output", images).refused(2, "C11", "no earlier result")
    run(capsys, "predict", trained, images / "a.png", "--json", tmp_path / "truth.json").refused(2, "C11", "no earlier")
    run(capsys, "predict", trained, images / "a.png", "--json", images / "a.png").refused(2, "C11", "replace an image")
    assert digest(tmp_path) == before


@pytest.mark.parametrize(
    ("text", "place", "code", "says"),
    [
        ("learning_rat: 1\n", ":2", "C01", "unknown key 'learning_rat'"),
        ("lr: 1.0e-4\nmodel:\n  num_queries: 9\n  num_querys: 9\n", ":5", "C01", "did you mean 'model.num_queries'?"),
        ("# a comment\n\nepochs: many\n", ":4", "C02", "epochs='many'"),
        ("model:\n  dropout: high\n", ":3", "C02", "model.dropout='high'"),
        ("amp: fp8\n", ":2", "C02", "did you mean 'fp16'?"),
        ("epochs: -1\n", ":2", "C03", "epochs=-1"),
        ("model:\n  num_queries: 0\n", ":3", "C08", "model.num_queries is 0"),
        ("epochs:\n- 1\n", ":2", "C02", "epochs=[1]"),
        ("lr: 1\nlr: 2\n", ":1", "C12", "duplicate key 'lr'"),
        ("lr: !!python/object/apply:os.system ['touch HACKED']\n", ":2", "C12", "is not allowed"),
        ("lr: [1, 2\nepochs: 3\n", ":", "C12", "correct the file"),
        ("lr: 2020-13-45\n", "", "C12", "not YAML"),
        (f"epochs: {'9' * 5000}\n", "", "C12", "not YAML"),
        ("a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(f"{c}: &{c} [{','.join(['*' + p] * 9)}]\n"
         for p, c in zip("abcdef", "bcdefg", strict=True)), "", "C12", "aliases"),
    ],
)  # fmt: skip
def test_config_files(capsys, tmp_path, monkeypatch, text, place, code, says):
    """The line of the file is told, and nothing in it is run."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "cfg.yaml"
    path.write_text("name: detr_tiny\n" + text)
    before = digest(tmp_path)
    run(capsys, "train", "--config", path, "--data", "shapes").refused(2, code, f"{path}{place}", says)
    assert digest(tmp_path) == before


def test_config_files_without_a_model(capsys, tmp_path):
    path = tmp_path / "cfg.yaml"
    run(capsys, "train", "--config", path).refused(2, None, "cannot read the settings", path)
    path.write_text("lr: 1\nname: detr_resnet5\n")
    run(capsys, "train", "--config", path).refused(2, "C01", f"{path}:2", "did you mean 'detr_resnet50' or ")
    path.write_text("lr: 1\n")
    run(capsys, "train", "--config", path).refused(2, "C01", path, "name: detr_resnet50")
    path.write_bytes(b"\xff\xfe")
    run(capsys, "train", "--config", path).refused(2, None, path, "not UTF-8")


# Weights


@pytest.mark.parametrize(
    ("content", "code"),
    [(b"", "K03"), (b"<!DOCTYPE html>", "K06"), (b"version https://git-lfs.github.com/spec/v1\n", "K06"),
     (b"PK\x03\x04" + bytes(50), "K04"), (b"\x80\x04cos\nsystem\n", "K12")],
)  # fmt: skip
def test_weights(capsys, images, content, code):
    (images / "a.png").write_bytes(encode(scene(), "PNG"))
    path = images.parent / "weights.pth"
    path.write_bytes(content)
    before = digest(images.parent)
    run(capsys, "predict", path, images).refused(4, code, path)
    run(capsys, "evaluate", path, "--data", "shapes").refused(4, code, path)
    assert digest(images.parent) == before


def test_runs(capsys, trained, images, tmp_path):
    (images / "a.png").write_bytes(encode(scene(), "PNG"))
    run(capsys, "predict", tmp_path, images).refused(4, "K02", tmp_path)
    run(capsys, "predict", "runs/none", images).refused(2, "K01", "runs/none")
    copy = shutil.copytree(trained, tmp_path / "copy") / "checkpoints" / "step_1"
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\1")
    run(capsys, "predict", copy, images).refused(4, "K05", "checksum mismatch", copy)
    run(capsys, "predict", weights, images).refused(4, "K06", copy)


def test_weights_that_need_the_network(capsys, images, tmp_path, monkeypatch):
    monkeypatch.setenv("REGARD_OFFLINE", "1")
    monkeypatch.setenv("REGARD_HOME", str(tmp_path / "home"))
    (images / "a.png").write_bytes(encode(scene(), "PNG"))
    line = run(capsys, "predict", "detr_resnet50", images).refused(6, None, tmp_path / "home" / "weights")
    assert "https://dl.fbaipublicfiles.com/detr/detr-r50-e632da11.pth" in line
    assert not (tmp_path / "home").exists()
