"""`regard export`, and what the other verbs do with its files."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

import regard
from color_data import color_image, write_colors
from command_line import digest, run
from documents import blocks
from exported_files import randomized
from refusals import refused
from regard.data.coco.dataset import open_detection
from regard.data.generated.shapes import ShapesConfig, write_shapes
from regard.errors import CheckpointError, ConfigError, DataError, MachineError
from regard.exporting import export as verb
from regard.exporting.check import TOLERANCE, compare, outputs_of
from regard.exporting.int8 import require_score
from regard.models.build import build, create
from regard.models.configs.resnet import ResNetConfig
from regard.models.configs.vit import ViTConfig
from regard.models.engine import engine_of
from regard.structures.categories import Category
from regard.structures.image_batch import ImageBatch
from run_files import SMALL, small_detector, write_run

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def shapes(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "shapes"
    write_shapes(ShapesConfig(size=40, train=4, val=3), folder)
    return folder


@pytest.fixture(scope="module")
def detector(shapes):
    torch.manual_seed(0)
    categories = open_detection(shapes, "val").categories
    return randomized(build(SMALL, "mine", categories, (32, 64)))


@pytest.fixture(scope="module")
def file(detector, shapes, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("exported") / "mine.onnx"
    assert regard.export(detector, output=path, data=shapes, quiet=True) == path
    return path


def test_the_file_knows_its_model(detector, file):
    loaded = regard.load(file)
    assert loaded.card == detector.card and loaded.config == detector.config
    about = onnxruntime.InferenceSession(file).get_modelmeta().custom_metadata_map
    assert about["model"] == "mine" and about["task"] == "detection" and about["regard_version"] == regard.__version__
    assert json.loads(about["classes"]) == [category.name for category in detector.card.categories]
    assert (json.loads(about["short_side"]), json.loads(about["max_size"])) == (32, 64)
    (pixels, padding) = onnxruntime.InferenceSession(file).get_inputs()
    assert pixels.shape == ["batch", 3, "height", "width"] and padding.shape == ["batch", "height", "width"]
    assert [path.name for path in file.parent.iterdir()] == ["mine.onnx"]


def test_predictions_are_those_of_the_model(detector, file):
    """Of the file itself: `predict` and `evaluate` make no engine of it."""
    loaded = regard.load(file)
    assert engine_of(loaded) is loaded
    images = [torch.randint(256, (3, *size), dtype=torch.uint8) for size in ((40, 60), (80, 50), (40, 60))]
    for options in ({"batch_size": 2}, {"tile_size": 32}, {"flip": True}):
        expected = regard.predict(detector, images, threshold=0.0, **options)
        found = regard.predict(file, images, threshold=0.0, **options)
        for one, other in zip(expected, found, strict=True):
            assert len(one) == len(other) > 0 and torch.equal(one.labels, other.labels)
            assert torch.allclose(one.boxes, other.boxes, atol=1e-2) and torch.allclose(one.scores, other.scores)


@pytest.mark.usefixtures("blank_charts")
def test_verbs_take_the_file(file, shapes, detector, tmp_path, capsys):
    found = tmp_path / "found.json"
    run(capsys, "predict", file, shapes / "val", "--threshold", 0, "--json", found).worked()
    assert len(json.loads(found.read_text())) >= 3
    run(capsys, "evaluate", file, "--data", shapes, "--output", tmp_path / "scores").worked()
    scores = json.loads((tmp_path / "scores/metrics.json").read_text())
    assert scores["stats"] == pytest.approx(regard.evaluate(detector, shapes, quiet=True).stats)
    assert scores["losses"] == {}


def test_verbs_that_need_a_model_refuse_the_file(file, shapes, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (40, 40)).save("a.png")
    run(capsys, "explain", file, "a.png").refused(2, "C09", file, "explained")
    run(capsys, "explain", file, shapes / "val").refused(2, "C09", file, "explained")
    run(capsys, "export", file).refused(2, "C09", file, "exported")
    for model in ("detr_tiny", "retinanet_tiny"):
        run(capsys, "train", model, "--data", shapes, f"start_from={file}").refused(2, "C09", file)
    colors = write_colors(tmp_path / "colors")
    run(capsys, "train", "aa_resnet20", "--data", colors, f"start_from={file}").refused(2, "C09", file)
    run(capsys, "train", "aa_resnet20", "--data", colors, "--teacher", file).refused(2, "C09", file, "teacher")
    assert {path.name for path in tmp_path.iterdir()} <= {"a.png", "colors", "runs"}


def test_files_that_are_no_model(tmp_path, file):
    other = tmp_path / "other.onnx"
    with refused(CheckpointError, other, code="K01"):
        regard.load(other)
    other.write_bytes(b"")
    with refused(CheckpointError, other, code="K03"):
        regard.load(other)
    other.write_bytes(b"no graph")
    with refused(CheckpointError, other, code="K06"):
        regard.load(other)
    other.write_bytes(file.read_bytes()[:2000])
    with refused(CheckpointError, other, code="K06"):
        regard.load(other)
    import onnx

    for key, value in (("regard_state", "{}"), ("regard_state", "]"), ("something", "else")):
        model = onnx.load(file)
        del model.metadata_props[:]
        model.metadata_props.add(key=key, value=value)
        onnx.save(model, other)
        with refused(CheckpointError, other):
            regard.load(other)


def test_a_file_that_disagrees_with_its_model_is_not_kept(tmp_path, monkeypatch):
    nano = ViTConfig(num_classes=5, image_size=16, patch_size=4, embed_dim=16, num_heads=2, depth=1)
    net, other = (randomized(build(nano, "nano"), seed) for seed in (0, 5))
    graph_of = verb.graph_of
    monkeypatch.setattr(verb, "graph_of", lambda _: graph_of(other))
    with refused(CheckpointError, tmp_path / "a.pt2", code="K21"):
        regard.export(net, "torch", output=tmp_path / "a.pt2", quiet=True)
    assert not list(tmp_path.iterdir())


def test_differences_are_found(detector):
    batch = ImageBatch(torch.randn(2, 3, 32, 40), ((32, 40), (32, 40)))
    expected = outputs_of(detector, batch)

    def shifted(by: float):
        with torch.no_grad():
            return compare(detector, lambda inputs: {name: value + by for name, value in expected.items()}, [batch])

    assert shifted(0).difference == 0 and shifted(0).images == 2
    assert shifted(TOLERANCE / 2).difference < TOLERANCE < shifted(TOLERANCE * 10).difference
    assert shifted(float("nan")).difference == float("inf")


def test_what_cannot_be_exported_is_told_before_the_work(detector, tmp_path, shapes, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "pets", small_detector(), {1: 0.5})
    before = digest(tmp_path)
    run(capsys, "export", "pets", "--int8").refused(2, "C09", "--data")
    run(capsys, "export", "pets", "--int8", "--data", shapes, "--format", "torch").refused(2, "C09", "torch")
    run(capsys, "export", "pets", "--output", "pets.pt").refused(2, "C09", ".onnx")
    run(capsys, "export", "pets", "--max-drop", -1).refused(2, "C03", "-1")
    run(capsys, "export", "nothing.pth").refused(4, "K01", "nothing.pth")
    run(capsys, "export", "pets", "--data", "nowhere").refused(3, None, "nowhere")
    with refused(ConfigError, "tflite", "onnx", code="C02"):
        regard.export(detector, "tflite")
    with refused(ConfigError, "deit_nano", code="C09"):
        regard.export(create("deit_nano_patch4_32"), data=shapes, int8=True, quiet=True)
    with refused(ConfigError, "optimised", code="C09"):
        regard.export(regard.optimize(detector))
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else find(name))
    with refused(MachineError, "onnxscript", "pip install onnxscript"):
        regard.export(detector)
    assert digest(tmp_path) == before
    (tmp_path / "mine.pt2").touch()
    with refused(ConfigError, "mine.pt2", code="C11"):
        regard.export(detector, "torch", output="mine.pt2")
    weights = tmp_path / "model.bin"  # of the user's: OpenVINO's weights would take its place
    weights.write_bytes(b"mine")
    with refused(ConfigError, "model.bin", code="C11"):
        regard.export(detector, "openvino", output=tmp_path / "model.xml")
    assert weights.read_bytes() == b"mine"


def test_the_program_of_the_guide_needs_neither_regard_nor_torch(detector, file, tmp_path):
    """It finds what `predict` finds, but for the rounding of the resize."""
    text = (ROOT / "docs/guide/export.md").read_text()
    (program,) = [block for block in blocks(text, "python") if "onnxruntime" in block]
    (tmp_path / "mine.onnx").write_bytes(file.read_bytes())
    noise = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((90, 60), Image.Resampling.BICUBIC).save(tmp_path / "street.png")
    program = program.replace("street.jpg", "street.png").replace("threshold or 0.5", "0.0")
    blocked = "import sys; sys.modules['torch'] = sys.modules['regard'] = None\n"
    finished = subprocess.run([sys.executable, "-c", blocked + program], cwd=tmp_path, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
    expected = regard.predict(detector, tmp_path / "street.png", threshold=0.0)
    lines = [re.split(r"\s+", line) for line in finished.stdout.splitlines()]
    assert len(lines) == len(expected) > 0
    names = [detector.card.categories[label].name for label in expected.labels.tolist()]
    assert [line[0] for line in lines] == names
    found = torch.tensor([[float(word) for word in line[2:]] for line in lines])
    inside = (found - expected.boxes).abs() < 1
    assert inside[(expected.boxes > 0.5) & (expected.boxes < 59)].all()


def test_int8_may_lose_half_a_point():
    require_score("AP", 50.0, 49.6, 0.5)
    require_score("AP", 50.0, 51.0, 0.0)
    with refused(CheckpointError, "AP", "1.5", code="K21"):
        require_score("AP", 50.0, 48.5, 0.5)


@pytest.mark.slow
def test_int8_keeps_the_score_and_a_bad_calibration_is_refused(tmp_path):
    colors = write_colors(tmp_path / "colors", train=24, val=10)
    torch.manual_seed(0)
    config = ResNetConfig(
        num_classes=3, image_size=24, layers=(1, 1), widths=(16, 32), block="basic", stem="cifar"
    )  # fmt: skip
    net = build(config, "colors", [Category(i, name) for i, name in enumerate(("blue", "green", "red"))])
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for step in range(30):
        labels = [step % 3, (step + 1) % 3, (step + 2) % 3] * 4
        images = [torch.from_numpy(color_image(2 - i, 50 * step + n, (24, 24))) for n, i in enumerate(labels)]
        batch = ImageBatch.from_images([image.permute(2, 0, 1) for image in images]).normalized()
        optimizer.zero_grad()
        F.cross_entropy(net(batch.pixels), torch.tensor(labels)).backward()
        optimizer.step()
    net.eval()
    small = regard.export(net, output=tmp_path / "small.onnx", data=colors, int8=True, quiet=True)
    scores = regard.evaluate(small, colors, quiet=True)
    assert scores.stats["top1"] == regard.evaluate(net, colors, quiet=True).stats["top1"] > 0.9
    operators = {node.op_type for node in __import__("onnx").load(small).graph.node}
    assert {"QuantizeLinear", "DequantizeLinear", "Conv"} <= operators
    for path in (colors / "train").rglob("*.png"):
        Image.new("RGB", (24, 24), (124, 116, 104)).save(path)  # the mean: zeros once normalised
    with refused(CheckpointError, "top1", code="K21"):
        regard.export(net, output=tmp_path / "bad.onnx", data=colors, int8=True, quiet=True)
    assert {path.name for path in tmp_path.iterdir()} == {"colors", "small.onnx"}
    for path in list((colors / "train").rglob("*.png"))[::2]:
        path.unlink()
    with refused(DataError, code="A48"):
        regard.export(net, output=tmp_path / "few.onnx", data=colors, int8=True, quiet=True)
