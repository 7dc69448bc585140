"""`regard.predict`: whatever holds an image in, boxes in pixels of that very image out."""

from __future__ import annotations

import hashlib
import io
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import regard
from image_files import encode, exif, turned
from refusals import refused
from regard.data import images
from regard.errors import ConfigError, DataError, MachineError
from regard.models.build import build
from regard.models.configs import CONFIGS
from regard.models.configs.detr import DETRConfig
from regard.models.detr import DETR
from regard.prediction.files import picture_names, predict_files
from regard.prediction.options import PredictionOptions
from regard.prediction.predict import check_options, predict, predict_each
from regard.results.detections import Detections
from regard.results.postprocess import postprocess
from regard.structures.categories import Category, ModelCard
from regard.structures.image_batch import IMAGENET_MEAN, IMAGENET_STD, ImageBatch
from regard.structures.outputs import DetectionOutput
from regard.weights import load
from regard.weights.load import load_on
from run_files import PETS, SMALL, small_detector, write_run

# Ids that are neither contiguous nor in step with the labels.
CATEGORIES = (Category(7, "dark"), Category(90, "bright"))
CONFIG = DETRConfig(
    num_classes=2, backbone="small", embed_dim=16, num_heads=2, encoder_layers=1, decoder_layers=1,
    feedforward_dim=16, num_queries=4,
)  # fmt: skip


class Finder(DETR):
    """Gives the bounding box of all bright pixels as `bright`, score 0.9, and the whole image as `dark`, 0.3.

    It reads the normalised batch as a detector does, and keeps what it was given.
    """

    def __init__(self) -> None:
        super().__init__(CONFIG)
        self.card = ModelCard("finder", CATEGORIES, short_side=64, max_size=128)
        self.batches: list[ImageBatch] = []

    def forward(
        self, images: ImageBatch | Sequence[Tensor], targets: Sequence[Mapping[str, Tensor]] | None = None
    ) -> DetectionOutput:
        assert isinstance(images, ImageBatch) and images.pixels.is_floating_point() and not self.training
        self.batches.append(images)
        mean, std = (torch.tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
        boxes = []
        for pixels, (height, width) in zip(images.pixels, images.sizes, strict=True):
            bright = ((pixels[:, :height, :width] * std + mean) > 0.5).all(0)
            rows, columns = bright.any(1).nonzero(), bright.any(0).nonzero()
            x0, x1 = columns.min() / width, (columns.max() + 1) / width
            y0, y1 = rows.min() / height, (rows.max() + 1) / height
            found = torch.stack(((x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0))
            boxes.append(torch.stack((torch.tensor([0.5, 0.5, 1, 1]), found)))
        scores = torch.tensor([[0.3, 1e-9, 0.7], [1e-9, 0.9, 0.1]])
        return DetectionOutput(scores.log().expand(len(boxes), -1, -1), torch.stack(boxes))


@pytest.fixture
def finder() -> Finder:
    return Finder()


BOX = (30, 20, 70, 60)  # xyxy
SIZE = (90, 140)  # (height, width)


def scene(box=BOX, size=SIZE) -> np.ndarray:
    """(H, W, 3) uint8: a white rectangle on black."""
    image = np.zeros((*size, 3), np.uint8)
    image[box[1] : box[3], box[0] : box[2]] = 255
    return image


def assert_found(result: Detections, box=BOX, size=SIZE) -> None:
    assert isinstance(result, Detections) and result.size == size
    assert result.names == ["bright"] and result.category_ids == [90]
    assert result.scores.item() == pytest.approx(0.9)
    step = max(size) / 128 + 1  # pixels of the original in one of the resized image
    assert result.boxes[0].tolist() == pytest.approx(box, abs=step)


def write(path: Path, image: np.ndarray, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, **options)
    return path


# One image


def test_every_kind_of_source(finder, tmp_path):
    path = write(tmp_path / "street.png", scene())
    array = scene()
    tensor = torch.from_numpy(array).permute(2, 0, 1)
    sources = {
        "path": path, "text": str(path), "PIL": Image.fromarray(array), "array": array, "floats": array / 255,
        "grey": array[..., 0], "tensor": tensor, "float tensor": tensor / 255,
    }  # fmt: skip
    results = {kind: predict(finder, source) for kind, source in sources.items()}
    for kind, result in results.items():
        assert_found(result)
        assert torch.equal(result.boxes, results["path"].boxes), kind
        assert result.path == (str(path) if kind in ("path", "text") else None)
        picture = result.plot()  # on the file, or on the pixels that were given
        assert picture.size[0] >= SIZE[1] and np.asarray(picture).std() > 20
    assert (array == scene()).all()
    assert all(batch.sizes == ((64, 99),) for batch in finder.batches)


def test_one_in_one_out_and_lists(finder, tmp_path):
    path = write(tmp_path / "a.png", scene())
    other = scene((5, 50, 25, 80), (90, 40))
    assert_found(predict(finder, path))
    (single,) = predict(finder, [path])
    assert_found(single)
    first, second = predict(finder, (path, other))
    assert_found(first)
    assert_found(second, (5, 50, 25, 80), (90, 40))
    assert predict(finder, []) == []


def test_folder(finder, tmp_path):
    write(tmp_path / "b.png", scene())
    write(tmp_path / "deeper" / "c.jpg", scene(), quality=95)
    write(tmp_path / "a.bmp", scene())
    (tmp_path / "notes.txt").write_text("no image")
    for folder in (tmp_path, str(tmp_path)):
        results = predict(finder, folder)
        assert [Path(r.path).name for r in results] == ["a.bmp", "b.png", "c.jpg"]
        for result in results:
            assert_found(result)
    with refused(DataError, tmp_path, code="I27"):
        predict(finder, [tmp_path])


@pytest.mark.parametrize("size", [(64, 64), (31, 200), (200, 31), (480, 640), (7, 9), (1, 1), (1, 400)])
def test_original_coordinates(finder, size):
    height, width = size
    box = (width // 4, height // 4, max(1, 3 * width // 4), max(1, 3 * height // 4))
    result = predict(finder, scene(box, size))
    assert_found(result, box, size)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_are_those_of_the_displayed_image(finder, tmp_path, orientation):
    shown = scene()
    stored = next(s for s in (turned(shown, k) for k in range(1, 9)) if np.array_equal(turned(s, orientation), shown))
    path = tmp_path / "photo.jpg"
    path.write_bytes(encode(stored, "JPEG", quality=95, exif=exif(orientation)))
    result = predict(finder, path)
    assert_found(result)
    opened = predict(finder, Image.open(io.BytesIO(path.read_bytes())))
    assert torch.equal(opened.boxes, result.boxes)


def test_greyscale_and_palette_files(finder, tmp_path):
    grey = Image.fromarray(scene()[..., 0])
    grey.save(tmp_path / "grey.png")
    grey.convert("1").save(tmp_path / "bilevel.png")
    Image.fromarray(scene()).quantize(4).save(tmp_path / "palette.gif")
    for name in ("grey.png", "bilevel.png", "palette.gif"):
        assert_found(predict(finder, tmp_path / name))


def test_threshold(finder):
    assert predict(finder, scene(), threshold=0.2).names == ["bright", "dark"]
    assert predict(finder, scene(), threshold=0.2).boxes[1].tolist() == [0, 0, 140, 90]
    assert len(predict(finder, scene(), threshold=0.95)) == 0
    assert len(predict(finder, scene(), threshold=0)) == 2


def test_nothing_tells_the_best(finder):
    result = predict(finder, scene(), threshold=0.95)
    assert result.summary() == "nothing above 0.95; best score 0.90 bright" and "0.90 bright" in repr(result)
    assert predict(finder, scene(), threshold=0.2).rejected is None


def test_the_threshold_of_a_run(tmp_path):
    """`predict` takes the best threshold of the last evaluation; one that is given goes first."""
    folder = tmp_path / "run"
    write_run(folder, small_detector(), {1: 0.5})
    every = regard.predict(folder, scene(), threshold=0)
    middle = float((every.scores[1] + every.scores[2]) / 2)
    assert regard.load(folder).card.threshold is None and every.scores[0] < 0.95
    for text in ("", "[]", "{}", '{"best_threshold": null}', '{"best_threshold": 7}', '{"best_threshold": "a"}', "{{"):
        (folder / "metrics.json").write_text(text)
        assert regard.load(folder).card.threshold is None
    (folder / "metrics.json").write_text(json.dumps({"best_threshold": middle}))
    assert regard.load(folder).card.threshold == middle
    assert torch.equal(regard.predict(folder, scene()).scores, every.scores[:2])
    assert len(regard.predict(folder, scene(), threshold=0)) == len(every)
    assert regard.load(folder / "checkpoints" / "step_1").card.threshold is None  # it belongs to the best one


@pytest.mark.parametrize(
    ("metrics", "says", "warns"),
    [
        (None, "threshold 0.50, the default", False),
        ({"best_f1": 0.9}, "threshold 0.50, the default", False),
        ({"best_threshold": 0.36, "best_f1": 0.6}, "threshold 0.36, the best F1 (0.60) on the run's", False),
        ({"best_threshold": 0.036, "best_f1": 0.12}, "threshold 0.036, the best F1 (0.12) on the run's", True),
        ({"best_threshold": 0.036, "best_f1": 0.8}, "threshold 0.036, the best F1 (0.80) on the run's", False),
        ({"best_threshold": 0.36, "best_f1": 0.12}, "threshold 0.36, the best F1 (0.12) on the run's", False),
        ({"best_threshold": 0.05, "stats": {"PQ": 0.2}}, "threshold 0.05, the best PQ (0.20) on the run's", True),
        ({"best_threshold": 0.3, "stats": [], "best_f1": "?"}, "threshold 0.30, the best on the run's", False),
    ],
)
def test_the_threshold_is_told_with_its_reason(photos, tmp_path, capsys, metrics, says, warns):
    """On stderr: stdout has a line for each image. One that is given needs no word."""
    folder = tmp_path / "run"
    write_run(folder, small_detector(), {1: 0.5})
    if metrics is not None:
        (folder / "metrics.json").write_text(json.dumps(metrics))
    assert len(list(predict_files(folder, [photos / "dog.png"]))) == 1
    told = capsys.readouterr()
    lines = told.err.splitlines()
    assert lines[0].startswith(says) and "--threshold" in lines[0] and told.out == ""
    assert len(lines) == 1 + warns and all("warning" in line and "few training steps" in line for line in lines[1:])
    list(predict_files(folder, [photos / "dog.png"], options=PredictionOptions(threshold=0.2)))
    assert capsys.readouterr().err == ""


def test_a_classifier_has_no_threshold(photos, capsys):
    net = build(replace(CONFIGS["resnet20"], num_classes=3), "resnet20", PETS).eval()
    assert len(list(predict_files(net, [photos / "dog.png"]))) == 1 and capsys.readouterr().err == ""


def test_boxes_are_clipped_to_the_image(finder, monkeypatch):
    plain = finder.forward

    def beyond(*args):
        output = plain(*args)
        return output._replace(boxes=torch.tensor([[[0.5, 0.5, 1.5, 2.0], [0.0, 1.0, 0.5, 0.5]]]))

    monkeypatch.setattr(finder, "forward", beyond)
    result = predict(finder, scene(), threshold=0)
    assert result.boxes.tolist() == [pytest.approx([0, 67.5, 35, 90]), [0, 0, 140, 90]]
    bright = torch.full((3, 64, 99), 255, dtype=torch.uint8)
    finder.eval()
    output = beyond(ImageBatch.from_images([bright]).normalized())
    evaluated = postprocess(output, [SIZE], softmax=True)[0][2]
    assert evaluated[0].tolist() == pytest.approx([-35, -45, 175, 135])  # evaluation keeps the authors' numbers


def test_one_label_for_each_query_unless_asked():
    net = build(replace(SMALL, sigmoid=True), "mine", PETS, (32, 64)).eval()
    with torch.no_grad():
        net.class_embed.bias.copy_(torch.tensor([1.0, 2.0, -3.0]))
    one = predict(net, scene(), threshold=0)
    assert len(one) == SMALL.num_queries == len({tuple(box) for box in one.boxes.tolist()})
    assert set(one.names) == {"dog"}
    several = predict(net, scene(), threshold=0.5, multi_label=True)
    assert {"cat", "dog"} <= set(several.names) or len(several) == SMALL.num_queries
    logits = net(ImageBatch.from_images([torch.zeros(3, 32, 32, dtype=torch.uint8)]).normalized()).logits
    pairs = predict(net, np.zeros((32, 32, 3), np.uint8), threshold=0, multi_label=True)
    expected = logits.sigmoid().flatten().topk(SMALL.num_queries).values
    assert torch.allclose(pairs.scores, expected, atol=1e-5)
    best = predict(net, np.zeros((32, 32, 3), np.uint8), threshold=0)
    assert torch.allclose(best.scores, logits.sigmoid().amax(-1).flatten().sort(descending=True).values, atol=1e-5)


def test_patterns_give_lists(finder, photos):
    assert len(predict(finder, f"{photos}/**/*.png")) == 3
    (only,) = predict(finder, f"{photos}/*.png")
    assert_found(only, (10, 10, 20, 20), (32, 32))
    assert [result.path for result in predict(finder, f"{photos}/b/*.png")] == [str(photos / "b" / "cat.png")]


def test_standard_input(finder, photos, tmp_path, monkeypatch):
    for call in ("predict", "files"):
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO((photos / "a" / "cat.png").read_bytes())))
        if call == "predict":
            result = predict(finder, "-")
            assert_found(result)
            result.plot()  # on the pixels: there is no file
        else:
            assert list(predict_files(finder, ["-"], output=tmp_path / "out")) == ["-: 1 bright"]
            assert [path.name for path in (tmp_path / "out").iterdir()] == ["stdin.jpg"]


def test_addresses(finder, photos, tmp_path, monkeypatch):
    data = (photos / "a" / "cat.png").read_bytes()
    monkeypatch.setattr("regard.data.sources.fetch_image", lambda address: data)
    address = "https://a.b/cats/cat.png?size=1"
    result = predict(finder, address)
    assert_found(result)
    assert result.path == address and result.plot()
    with refused(DataError, "not allowed", address, code="I33"):
        predict(finder, address, allow_urls=False)
    lines = list(
        predict_files(finder, [address, photos / "dog.png"], output=tmp_path / "out", json_file=tmp_path / "a.json")
    )
    assert lines[0] == f"{address}: 1 bright" and len(lines) == 2
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["cat.jpg", "dog.jpg"]
    assert json.loads((tmp_path / "a.json").read_text())[0]["file_name"] == address


def as_options(numbers: dict) -> dict:
    """Keywords of `predict_files` for those of `predict`."""
    return {"options": PredictionOptions(**numbers)} if "threshold" in numbers else numbers


@pytest.mark.parametrize("numbers", [{"threshold": 1.5}, {"threshold": -0.1}, {"threshold": float("nan")},
                                     {"batch_size": 0}, {"batch_size": -1}])  # fmt: skip
def test_numbers_out_of_range(finder, tmp_path, numbers):
    write(tmp_path / "a.png", scene())
    for call in (
        lambda: predict(finder, [scene()], **numbers),
        lambda: predict(finder, [], **numbers),
        lambda: list(predict_files(finder, [tmp_path], **as_options(numbers))),
    ):
        with refused(ConfigError, f"{next(iter(numbers))}=", code="C03"):
            call()


@pytest.mark.parametrize(
    "numbers", [{"threshold": "0.7"}, {"threshold": True}, {"batch_size": 1.5}, {"tile_size": 640.0}, {"top": "5"}]
)
def test_numbers_of_the_wrong_type(numbers):
    options = PredictionOptions(**{name: value for name, value in numbers.items() if name != "batch_size"})
    with refused(ConfigError, f"{next(iter(numbers))}={next(iter(numbers.values()))!r}", code="C02"):
        check_options(options, numbers.get("batch_size", 1))


def test_numbers_of_numpy():
    check_options(PredictionOptions(threshold=np.float32(0.5), tile_size=np.int64(64)), np.int32(2))


def test_wrong_sources(finder, tmp_path, monkeypatch):
    monkeypatch.setenv("REGARD_OFFLINE", "1")
    for source in (None, 3, {"a": 1}, scene().tolist()[0][0][0], np.zeros((4, 4, 7), np.uint8), "missing.png",
                   "https://example.org/a.jpg", torch.zeros(2, 3, 8, 8), np.full((8, 8, 3), np.nan)):  # fmt: skip
        with pytest.raises(DataError) as caught:
            predict(finder, source)
        assert "\n" not in caught.value.line
    with refused(ConfigError, "'gpu'", code="C10"):
        predict(finder, scene(), device="gpu")
    if not torch.cuda.is_available():
        with refused(MachineError, "cuda", code="C10"):
            predict(finder, scene(), device="cuda")


# Many


@pytest.mark.parametrize("batch_size", [2, 3, 8])
def test_batches_hold_images_of_one_size(finder, batch_size):
    sizes = [(90, 140), (140, 90), (64, 64), (90, 140), (140, 90), (90, 140)]
    boxes = [(w // 3, h // 3, w - 9, h - 9) for h, w in sizes]
    images = [scene(box, size) for box, size in zip(boxes, sizes, strict=True)]
    results = predict(finder, images, batch_size=batch_size)
    assert [len(batch) for batch in finder.batches] == {2: [1] * 6, 3: [1, 1, 1, 2, 1], 8: [3, 2, 1]}[batch_size]
    for result, box, size in zip(results, boxes, sizes, strict=True):
        assert_found(result, box, size)
    assert not any(batch.is_padded for batch in finder.batches)


@pytest.mark.parametrize("batch_size", [2, 5])
def test_results_do_not_depend_on_the_batch_size(batch_size):
    net = small_detector()
    g = torch.Generator().manual_seed(0)
    sizes = [(40, 60), (60, 40), (40, 60), (33, 47), (40, 60), (60, 40)]
    images = [torch.randint(0, 256, (3, *size), generator=g, dtype=torch.uint8) for size in sizes]
    alone = predict(net, images, threshold=0.0)
    together = predict(net, images, threshold=0.0, batch_size=batch_size)
    for one, other in zip(alone, together, strict=True):
        assert torch.equal(one.labels, other.labels)
        torch.testing.assert_close(other.scores, one.scores, atol=1e-6, rtol=0)
        torch.testing.assert_close(other.boxes, one.boxes, atol=1e-3, rtol=0)


def test_batches_of_a_network():
    """Without padding an image's result does not depend on its neighbours."""
    net = small_detector()
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (40, 60, 3), np.uint8) for _ in range(4)]
    alone = predict(net, images, threshold=0)
    together = predict(net, images, threshold=0, batch_size=4)
    assert not torch.equal(alone[0].boxes, alone[1].boxes)
    for one, other in zip(alone, together, strict=True):
        assert torch.allclose(one.scores, other.scores, atol=1e-5)
        assert torch.allclose(one.boxes, other.boxes, atol=1e-2)


def test_results_come_one_by_one(finder):
    results = predict_each(finder, [scene()] * 5)
    assert_found(next(results))
    assert len(finder.batches) == 1
    results.close()


def test_the_model_is_left_as_it_was(finder):
    finder.train()
    predict(finder, scene())
    assert finder.training
    finder.eval()
    result = predict(finder, scene())
    assert not finder.training
    result.boxes.clamp_(max=50)  # results may be changed, and used where gradients flow
    weight = torch.ones(4, requires_grad=True)
    (weight * result.boxes).sum().backward()
    assert weight.grad is not None and torch.is_grad_enabled()


def test_a_run_by_its_path(tmp_path):
    net = small_detector()
    write_run(tmp_path / "run", net, {1: 0.5})
    result = regard.predict(tmp_path / "run", scene(), threshold=0)
    same = regard.predict(net, scene(), threshold=0)
    assert torch.equal(result.boxes, same.boxes) and result.categories == PETS


# Files


@pytest.fixture
def photos(tmp_path) -> Path:
    """Four images, two of one name."""
    folder = tmp_path / "photos"
    write(folder / "a" / "cat.png", scene())
    write(folder / "b" / "cat.png", scene((5, 5, 40, 30), (50, 60)))
    write(folder / "b" / "Cat.jpg", scene(), quality=95)
    write(folder / "dog.png", scene((10, 10, 20, 20), (32, 32)))
    return folder


def digest(folder: Path) -> dict[str, str]:
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()}


def test_pictures_and_json(finder, photos, tmp_path):
    before = digest(photos)
    output, json_file = tmp_path / "new" / "drawn", tmp_path / "new" / "found" / "all.json"
    lines = list(
        predict_files(finder, [photos], output=output, json_file=json_file, options=PredictionOptions(threshold=0.2))
    )
    files = ["a/cat.png", "b/Cat.jpg", "b/cat.png", "dog.png"]
    assert lines == [f"{photos / name}: 1 bright, 1 dark" for name in files]
    assert digest(photos) == before

    names = ["cat.jpg", "Cat-2.jpg", "cat-3.jpg", "dog.jpg"]
    assert sorted(path.name for path in output.iterdir()) == sorted(names)
    for name, file in zip(names, files, strict=True):
        drawn, image = (np.asarray(Image.open(path)).astype(int) for path in (output / name, photos / file))
        assert drawn.shape[0] >= image.shape[0] and drawn.shape[0] / drawn.shape[1] == pytest.approx(
            image.shape[0] / image.shape[1], rel=0.02
        )
        colours = drawn.max(2) - drawn.min(2)
        assert (colours > 100).any()  # the images have none

    rows = json.loads(json_file.read_text())
    assert [(row["image_id"], row["file_name"]) for row in rows[::2]] == [
        (number, str(photos / name)) for number, name in enumerate(files, start=1)
    ]
    assert [row["category_id"] for row in rows] == [90, 7] * 4
    assert all(set(row) == {"image_id", "category_id", "bbox", "score", "file_name"} for row in rows)
    assert rows[0]["bbox"] == pytest.approx([30, 20, 40, 40], abs=2)
    assert rows[1]["bbox"] == [0, 0, 140, 90]


def test_json_is_read_by_pycocotools(finder, photos, tmp_path, capsys):
    from pycocotools.coco import COCO

    list(predict_files(finder, [photos], json_file=tmp_path / "found.json"))
    truth = COCO()
    truth.dataset = {
        "images": [{"id": i} for i in range(1, 5)],
        "annotations": [],
        "categories": [{"id": c.id, "name": c.name} for c in CATEGORIES],
    }
    truth.createIndex()
    assert len(truth.loadRes(str(tmp_path / "found.json")).anns) == 4


@pytest.mark.parametrize("batch_size", [1, 3])
def test_one_broken_image(finder, photos, tmp_path, batch_size):
    """The others are done, and numbered as if it were whole."""
    broken = photos / "b" / "broken.png"
    broken.write_bytes((photos / "dog.png").read_bytes()[:60])
    before = digest(photos)
    lines: list[str] = []
    with pytest.raises(DataError) as caught:
        for line in predict_files(
            finder, [photos], output=tmp_path / "out", json_file=tmp_path / "all.json", batch_size=batch_size
        ):
            lines.append(line)
    assert caught.value.code == "I09" and str(broken) in caught.value.line and caught.value.exit_code == 3
    assert len(lines) == 4 and not any("broken.png" in line for line in lines)
    assert len(list((tmp_path / "out").iterdir())) == 4
    rows = json.loads((tmp_path / "all.json").read_text())
    assert [(row["image_id"], Path(row["file_name"]).name) for row in rows] == [
        (1, "cat.png"), (2, "Cat.jpg"), (4, "cat.png"), (5, "dog.png"),
    ]  # fmt: skip
    assert digest(photos) == before


def test_files_are_decoded_once_and_the_model_is_prepared_once(finder, photos, tmp_path, monkeypatch):
    """Also with pictures, and in batches with an image that cannot be read."""
    (photos / "b" / "broken.png").write_bytes(b"no image")
    decoded, prepared = [], []
    read, place = images.read_image, load.load_on
    monkeypatch.setattr(images, "read_image", lambda path, **options: decoded.append(path) or read(path, **options))
    monkeypatch.setattr("regard.results.result.read_image", lambda path: pytest.fail(f"decoded again: {path}"))
    monkeypatch.setattr("regard.prediction.predict.load_on", lambda *args: prepared.append(args) or place(*args))
    with pytest.raises(DataError):
        list(predict_files(finder, [photos], output=tmp_path / "out", batch_size=3))
    assert len(decoded) == len(set(decoded)) == 5 and len(prepared) == 1
    assert sum(len(batch) for batch in finder.batches) == 4


def test_several_broken_images(finder, photos):
    for name in ("x.png", "y.png"):
        (photos / name).write_bytes(b"")
    lines = []
    with refused(DataError, "2 of 6", "x.png", code="I01"):
        for line in predict_files(finder, [photos]):
            lines.append(line)
    assert [line.startswith("error I01") for line in lines] == [False] * 4 + [True]  # the first is in the error
    assert str(photos / "y.png") in lines[-1]


def test_images_are_not_replaced(finder, tmp_path):
    photo = write(tmp_path / "photos" / "cat.jpg", scene())
    write(tmp_path / "photos" / "dog.png", scene())
    before = digest(tmp_path)
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "photos")
    for targets in ({"output": photo.parent}, {"output": link}, {"json_file": photo}):
        with refused(ConfigError, "cat.jpg", code="C11"):
            list(predict_files(finder, [tmp_path / "photos"], **targets))
    assert digest(tmp_path) == before and not finder.batches


def test_neighbours_of_images_are_not_replaced(finder, tmp_path):
    """A picture has another suffix than its image, and may have the name of another image of the folder."""
    photo = write(tmp_path / "photos" / "cat.png", scene())
    write(tmp_path / "photos" / "cat.jpg", scene())
    (tmp_path / "links").mkdir()
    linked = tmp_path / "links" / "cat.png"
    linked.symlink_to(photo)
    write(tmp_path / "links" / "cat.jpg", scene())
    before = digest(tmp_path)
    for source in (photo, linked):
        with refused(ConfigError, "cat.jpg", code="C11"):
            list(predict_files(finder, [source], output=source.parent))
    assert digest(tmp_path) == before and not finder.batches


def test_only_an_earlier_result_is_replaced(finder, tmp_path):
    photo = write(tmp_path / "cat.png", scene())
    target = tmp_path / "instances.json"
    other = '[{"file_name": "a.png", "label": "cat"}]'
    for content in (
        other,
        "[]",
        "",
        "{}",
        '{"images": [], "annotations": []}',
        '[{"id": 1}]',
        "[1]",
        "[" * 10_000,
        "\xff",
    ):
        target.write_bytes(content.encode("latin-1"))
        with refused(ConfigError, target, code="C11"):
            list(predict_files(finder, [photo], json_file=target))
        assert target.read_bytes() == content.encode("latin-1")
    target.unlink()
    for threshold in (0.95, 0.5, 0.2):  # an empty result is one too
        list(predict_files(finder, [photo], json_file=target, options=PredictionOptions(threshold=threshold)))
    assert len(json.loads(target.read_text())) == 2


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
def test_only_a_drawn_picture_is_replaced(finder, tmp_path, suffix):
    """A photograph of the user in the output folder may have the name of a picture."""
    photo, target = write(tmp_path / "photos" / "cat.png", scene()), tmp_path / "out" / f"cat{suffix}"
    output = target.parent if suffix == ".jpg" else target
    Path(target.parent).mkdir()
    for content in (encode(scene(), "JPEG"), encode(scene(), "PNG"), b"text", b""):
        target.write_bytes(content)
        with refused(ConfigError, target, code="C11"):
            list(predict_files(finder, [photo], output=output))
        assert target.read_bytes() == content
    target.unlink()
    pictures = []
    for threshold in (0.95, 0.2):
        list(predict_files(finder, [photo], output=output, options=PredictionOptions(threshold=threshold)))
        pictures.append(target.read_bytes())
    assert pictures[0] != pictures[1] and [path.name for path in target.parent.iterdir()] == [target.name]


@pytest.mark.parametrize("name", ["drawn.jpg", "new/drawn.PNG", "drawn.webp"])
def test_one_image_is_drawn_to_the_file_that_is_named(finder, tmp_path, name):
    photo, target = write(tmp_path / "photos" / "cat.png", scene()), tmp_path / name
    list(predict_files(finder, [photo], output=target))
    expected = {".jpg": "JPEG", ".png": "PNG", ".webp": "WEBP"}[target.suffix.lower()]
    with Image.open(target) as picture:
        assert picture.format == expected
    (tmp_path / "folder.jpg").mkdir()
    list(predict_files(finder, [photo], output=tmp_path / "folder.jpg"))
    assert [path.name for path in (tmp_path / "folder.jpg").iterdir()] == ["cat.jpg"]


@pytest.mark.parametrize(
    ("sources", "name", "says"),
    [
        (["cat.png", "dog.png"], "drawn.jpg", "--output drawn"),
        (["."], "drawn.jpg", "--output drawn"),
        (["cat.png"], "drawn.gif", "drawn.jpg"),
        (["cat.png"], "drawn.mp4", "drawn.jpg"),
        (["cat.png"], "found.json", "--json found.json"),
    ],
)
def test_a_file_for_other_than_one_image(finder, tmp_path, monkeypatch, sources, name, says):
    monkeypatch.chdir(tmp_path)
    for photo in ("cat.png", "dog.png"):
        write(tmp_path / photo, scene())
    before = digest(tmp_path)
    with refused(ConfigError, name, says, code="C09"):
        list(predict_files(finder, sources, output=Path(name)))
    assert digest(tmp_path) == before and not finder.batches


def test_an_earlier_result_stays_if_no_image_can_be_read(finder, tmp_path):
    photo, target = write(tmp_path / "cat.png", scene()), tmp_path / "found.json"
    list(predict_files(finder, [photo], json_file=target))
    before = target.read_bytes()
    photo.write_bytes(b"")
    for file in (target, tmp_path / "new.json"):
        with refused(DataError, photo, code="I01"):
            list(predict_files(finder, [photo], json_file=file))
    assert target.read_bytes() == before and not (tmp_path / "new.json").exists()


def test_auto_leaves_a_model_where_it_is(finder, tmp_path, monkeypatch):
    net = small_detector()
    monkeypatch.setattr(
        "regard.weights.load.choose_device", lambda name: torch.device(name if name != "auto" else "meta")
    )
    monkeypatch.setattr("regard.weights.load.load", lambda _: small_detector())
    assert load_on(net) == (net, torch.device("cpu"))
    loaded, place = load_on(tmp_path)
    assert place == torch.device("meta") == next(loaded.parameters()).device
    assert load_on(net, "meta")[1] == torch.device("meta") == next(net.parameters()).device


def test_a_file_that_is_named_twice(finder, photos, tmp_path):
    photo = photos / "dog.png"
    assert len(list(predict_files(finder, [photo, photos, photo], output=tmp_path / "out"))) == 4
    assert len(list((tmp_path / "out").iterdir())) == 4


def test_missing_files_are_told_before_anything_is_done(photos, tmp_path):
    with refused(DataError, photos / "nine.png", code="I29"):
        list(predict_files("no-such-model.pth", [photos, photos / "nine.png"], output=tmp_path / "out"))
    with refused(ConfigError, "regard predict", code="C09"):
        list(predict_files("no-such-model.pth", []))
    assert not (tmp_path / "out").exists()


def test_picture_names():
    files = [Path(name) for name in ("a/cat.png", "b/cat.png", "b/CAT.jpg", "cat-2.png", "c/dog.tar.gif")]
    names = picture_names(files)
    assert list(names.values()) == ["cat.jpg", "cat-2.jpg", "CAT-3.jpg", "cat-2-2.jpg", "dog.tar.jpg"]


@pytest.mark.parametrize("many", [False, True])
def test_half_precision_is_that_of_the_model_alone(many):
    """Not of what runs between the results, which come one by one; scores and boxes are float32."""
    net, images = small_detector(), [torch.randint(0, 255, (3, 40, 56), dtype=torch.uint8) for _ in range(3)]
    half, whole = (regard.predict(net, images[0], threshold=0.0, precision=name) for name in ("bf16", "fp32"))
    assert not torch.equal(half.scores, whole.scores)  # without hooks, which have an effect on what runs
    seen = []
    net.class_embed.register_forward_hook(lambda *arguments: seen.append(arguments[-1].dtype))
    options = PredictionOptions(threshold=0.0, precision="bf16", flip=many)
    for found in predict_each(net, images, options=options, batch_size=2):
        assert not torch.is_autocast_enabled("cpu")
        assert found.scores.dtype == found.boxes.dtype == torch.float32
    assert set(seen) == {torch.bfloat16}
    half, whole = (regard.predict(net, images[0], threshold=0.0, precision=name) for name in ("bf16", "auto"))
    torch.testing.assert_close(half.scores, whole.scores, atol=0.02, rtol=0)
    with refused(ConfigError, "precision", "'half'", code="C02"):
        regard.predict(net, images[0], precision="half")
    with refused(ConfigError, "precision=fp16", "cpu", code="C10"):
        regard.predict(net, images[0], precision="fp16", device="cpu")
