"""Models with masks from training to files: data, losses, scores, two stages, results."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import regard
from charts import without_charts
from command_line import run as command
from refusals import refused
from regard.data.coco.dataset import open_detection
from regard.data.coco.panoptic import open_panoptic
from regard.data.coco.panoptic_annotations import read_panoptic
from regard.data.coco.panoptic_png import segments_of
from regard.data.generated.shapes import ShapesConfig, write_shapes
from regard.errors import ConfigError, DataError, MachineError, RegardError
from regard.evaluation.options import DetectionEvaluationOptions
from regard.metrics.panoptic import PanopticCounts
from regard.models.configs.detr import DETRConfig
from regard.models.detr import DETR
from regard.prediction.files import predict_files
from regard.prediction.options import PredictionOptions
from regard.prediction.predict import predict_each
from regard.results.detections import Detections
from regard.results.postprocess import ImageSizes, instance_masks
from regard.results.segmentation import Segmentation
from regard.runs.few_steps import DETECTOR
from regard.structures.boxes import cxcywh_to_xyxy, xyxy_to_cxcywh
from regard.structures.categories import ModelCard, knows_stuff
from regard.structures.outputs import DetectionOutput
from regard.weights.load import best_threshold_of

pytestmark = pytest.mark.usefixtures("blank_charts")

SMALL = (
    "workers=0", "batch_size=4", "model.embed_dim=16", "model.num_heads=2", "model.feedforward_dim=16",
    "evaluate_every=1", "device=cpu",
)  # fmt: skip

# detr_lite with the recipe `auto`, small and without its weights.
LITE_WORDS = (
    "workers=0", "batch_size=4", "short_side=64", "max_size=96", "start_from=none", "model.embed_dim=16",
    "model.num_heads=2", "model.feedforward_dim=16", "model.decoder_layers=1", "evaluate_every=1",
)  # fmt: skip

EVERYTHING = PredictionOptions(threshold=0.0)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "shapes"
    write_shapes(ShapesConfig(train=8, val=4, size=32), folder)
    return folder


def panoptic_scores(truth, found):
    """The scores of a submission of four images."""
    counts = PanopticCounts(truth.categories)
    for i in range(4):
        counts.add(truth.segments(i), segments_of(found, i))
    return counts.scores()


def train(data, output, *settings, model="detr_tiny_panoptic"):
    words = (*SMALL, *settings)
    return regard.train(model, data, recipe="small", epochs=1, output=output, overrides=words, quiet=True)


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    return train(data, tmp_path_factory.mktemp("runs") / "a")


class Oracle(DETR):
    """Finds what is there: it is given the samples in the order of the data set."""

    def __init__(self, samples, categories):
        super().__init__(DETRConfig(backbone="small", masks=True, num_queries=20, num_classes=len(categories)))
        self.card = ModelCard("oracle", categories, short_side=32, max_size=64, panoptic=knows_stuff(categories))
        self.samples = iter(samples)

    def forward(self, images, targets=None, *, masks=None):
        self.now = [next(self.samples) for _ in images.sizes]
        logits = torch.full((len(self.now), 20, self.config.num_classes + 1), -9.0)
        logits[:, :, -1] = 0
        boxes = torch.full((len(self.now), 20, 4), 0.5)
        for row, sample in enumerate(self.now):
            h, w = sample.size
            for query, label in enumerate(sample.labels.tolist()):
                logits[row, query, label] = 9
            boxes[row, : len(sample.boxes)] = xyxy_to_cxcywh(sample.boxes) / torch.tensor([w, h, w, h])
        return DetectionOutput(logits, boxes)

    def masks(self, output, image, query):
        every = [*zip(image.tolist(), query.tolist(), strict=True)]
        nothing = torch.zeros(32, 32, dtype=torch.bool)
        found = [self.now[i].masks[q] if q < len(self.now[i].labels) else nothing for i, q in every]
        return torch.stack(found).float() * 20 - 10 if found else torch.zeros(0, 32, 32)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_who_finds_everything_has_full_marks(data, batch_size):
    dataset = open_panoptic(data, "val")
    oracle = Oracle(list(dataset), dataset.categories)
    found = regard.evaluate(oracle, data, batch_size=batch_size, workers=0)
    assert found.stats["PQ"] == found.stats["PQ_st"] == found.stats["mask_AP"] == found.stats["AP"] == 1.0
    assert (
        found.panoptic.predictions == found.panoptic.segments > found.masks.objects
    )  # stuff is not in the AP of masks
    objects = open_detection(data, "val", masks=True)
    oracle = Oracle(list(objects), objects.categories)
    found = regard.evaluate(oracle, data, batch_size=batch_size, workers=0)
    assert found.panoptic is None and found.stats["mask_AP"] == found.stats["AP"] == 1.0


def test_a_class_is_a_thing_or_stuff_to_both(data):
    dataset = open_panoptic(data, "val")
    others = [replace(c, is_thing=True) if c.name == "sky" else c for c in dataset.categories]
    with refused(DataError, "'sky'", "isthing", code="A42"):
        regard.evaluate(Oracle(list(dataset), others), data, workers=0)


def test_outlines_that_are_missing_are_told_at_the_start(data, tmp_path):
    """Of validation images: not after an epoch, at the first evaluation."""
    shutil.copytree(data, tmp_path / "data")
    file = tmp_path / "data" / "annotations" / "instances_val.json"
    content = json.loads(file.read_text())
    del content["annotations"][0]["segmentation"]
    file.write_text(json.dumps(content))
    with refused(DataError, "1 of 10", "segmentation", code="A37"):
        train(tmp_path / "data", tmp_path / "run", "annotations=instances")
    assert not (tmp_path / "run").exists()


def test_a_run_has_scores_of_segments_masks_and_boxes(run, data, tmp_path, capsys):
    written = json.loads((run.folder / "metrics.json").read_text())
    assert {"PQ", "SQ_th", "RQ_st", "mask_AP", "AP"} <= set(written["stats"])
    assert {"loss_mask", "loss_dice", "loss_ce"} <= set(written["losses"])
    rows = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert any("train/loss_dice" in row for row in rows)
    assert {"predictions_step_2.jpg", "train_batch.jpg"} <= {p.name for p in (run.folder / "pictures").iterdir()}
    again = regard.evaluate(run.folder, data, output=tmp_path, batch_size=4, workers=0, device="cpu")
    assert again.stats == written["stats"]
    assert again.table().row_count == 3
    # With names from a file, it is scored by the loss of its run all the same.
    (tmp_path / "names.txt").write_text("\n".join(category.name for category in run.load().card.categories))
    command(
        capsys, "evaluate", run.folder, "--data", data, "--output", tmp_path / "named", "--batch-size", "4",
        "--workers", "0", "--device", "cpu", "--classes", tmp_path / "names.txt",
    ).worked()  # fmt: skip
    named, before = (json.loads((folder / "metrics.json").read_text()) for folder in (tmp_path / "named", tmp_path))
    assert named["losses"] == before["losses"] and named["stats"] == written["stats"]


def test_submissions_score_what_the_model_scores(run, data, tmp_path):
    """Read back, by the readers of ground truth and by pycocotools."""
    pycocotools = pytest.importorskip("pycocotools.coco")
    options = DetectionEvaluationOptions(submission=tmp_path / "p.json")
    scores = regard.evaluate(run.folder, data, output=tmp_path, workers=0, device="cpu", options=options)
    truth = open_panoptic(data, "val")
    found = read_panoptic(tmp_path / "p.json")
    counts = panoptic_scores(truth, found)
    assert counts.stats == scores.panoptic.stats
    run = train(data, tmp_path / "run", "annotations=instances")
    of_masks = DetectionEvaluationOptions(submission=tmp_path / "sub" / "masks.json")
    scores = regard.evaluate(run.folder, data, workers=0, device="cpu", options=of_masks)
    ours = pycocotools.COCO(str(data / "annotations" / "instances_val.json"))
    assert len(ours.loadRes(str(tmp_path / "sub" / "masks.json")).anns) == scores.masks.detections == 4 * 15
    with pytest.raises(ConfigError) as caught:
        regard.evaluate(run.folder, data, device="cpu", options=options)
    assert caught.value.code == "C11"


def test_instances_alone(data, tmp_path):
    run = train(data, tmp_path / "run", "annotations=instances")
    stats = json.loads((run.folder / "metrics.json").read_text())["stats"]
    assert "mask_AP" in stats and "PQ" not in stats
    image = data / "val" / "000001.png"
    found = regard.predict(run.folder, image, threshold=0.0)
    assert isinstance(found, Detections) and found.masks.shape == (len(found), 32, 32)
    net = regard.load(run.folder)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in net.mask_head.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))  # so that the masks differ
        net.query_embed.content.weight.add_(torch.randn_like(net.query_embed.content.weight))
        every = net([_normalized(image)])
    assert len(found) == 15 and every.masks.shape[1] == 15
    other = regard.predict(net, image, threshold=0.0)
    boxes = (cxcywh_to_xyxy(every.boxes[0]) * 32).clamp(0, 32)
    query = (other.boxes[:, None] - boxes).abs().amax(-1).argmin(1)  # each mask goes with its box
    side = every.masks.shape[-1] * 4
    expected = instance_masks(every.masks[0], ImageSizes((side, side), (side, side), (32, 32)))
    assert torch.equal(other.masks, expected[query]) and not torch.equal(other.masks, other.masks.flip(0))
    assert set(found.to_coco(1)[0]["segmentation"]) == {"size", "counts"}
    assert found[:2].masks.shape[0] == 2
    assert torch.equal(found[found.scores < 9].masks, found.masks)
    assert found.plot().size[0] >= 32


def _normalized(path):
    from regard.data.images import read_image
    from regard.data.samples import Sample
    from regard.data.transforms.detection import EvaluationResize
    from regard.structures.image_batch import ImageBatch

    resized = EvaluationResize(64, 128)(Sample(read_image(path))).image
    return ImageBatch.from_images([resized]).normalized().pixels[0]


def test_half_precision(data, tmp_path):
    run = train(data, tmp_path / "run", "amp=bf16", "annotations=instances")
    assert run.scores["loss_dice"] > 0


def test_two_stages(data, tmp_path):
    """Boxes of things and stuff first; then masks, and not a number of the detector changes."""
    boxes = train(data, tmp_path / "boxes", "annotations=panoptic", model="detr_tiny")
    assert "PQ" not in json.loads((boxes.folder / "metrics.json").read_text())["stats"]
    assert len(boxes.load().card.categories) == 5
    again = regard.evaluate(boxes.folder, data, output=tmp_path / "e", workers=0, device="cpu")
    assert {c.name for c in again.per_class} == {"circle", "square", "triangle"}  # AP is of things
    assert boxes.load().config.num_queries == 10  # which the second stage takes over
    masks = train(data, tmp_path / "masks", f"start_from={boxes.folder}", "freeze_detector=true")
    before, after = boxes.load().state_dict(), masks.load().state_dict()
    learned = ("mask_head.", "bbox_attention.")
    assert {name for name in after if name.startswith(learned)} == after.keys() - before.keys()
    assert any(name.endswith("running_mean") for name in before)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert after["mask_head.out_lay.bias"] != 0  # as it starts


@pytest.mark.parametrize(
    ("model", "says"),
    [("detr_tiny_panoptic", "start_from=none"), ("detr_tiny", "has no mask head")],
)
def test_a_frozen_detector_has_to_come_from_somewhere(data, tmp_path, model, says):
    with pytest.raises(ConfigError) as caught:
        train(data, tmp_path / "run", "freeze_detector=true", model=model)
    assert says in caught.value.what and not (tmp_path / "run").exists()


def test_a_frozen_detector_has_to_be_whole(data, tmp_path):
    things = train(data, tmp_path / "things", "annotations=instances", model="detr_tiny").folder
    with refused(RegardError, "detr_tiny", "'sky'", code="K08"):
        train(data, tmp_path / "a", f"start_from={things}", "freeze_detector=true")
    few = train(data, tmp_path / "few", "annotations=panoptic", "model.num_queries=9", model="detr_tiny").folder
    train(data, tmp_path / "b", f"start_from={few}", "freeze_detector=true", "model.num_queries=12")
    assert regard.load(tmp_path / "b").config.num_queries == 9
    with refused(RegardError, "detr_tiny", "9 queries", code="K08"):
        train(data, tmp_path / "c", f"start_from={few}", "freeze_detector=true", "model.query_groups=5")


def test_a_backbone_alone_is_no_detector_to_freeze(data, tmp_path):
    torch.save(regard.create("resnet18", num_classes=2).state_dict(), tmp_path / "resnet18-f37072fd.pth")
    words = (f"start_from={tmp_path / 'resnet18-f37072fd.pth'}", "model.backbone=resnet18", "freeze_detector=true")
    with refused(ConfigError, "freeze_detector", "resnet18-f37072fd.pth", code="C09"):
        train(data, tmp_path / "run", *words)


def test_things_alone_are_segments_too(data, tmp_path):
    """Panoptic data without stuff: a model trained on them evaluates and predicts as any panoptic model."""
    things = tmp_path / "things"
    shutil.copytree(data, things)
    for split in ("train", "val"):
        file = things / "annotations" / f"panoptic_{split}.json"
        content = json.loads(file.read_text())
        kept = {row["id"] for row in content["categories"] if row["isthing"]}
        content["categories"] = [row for row in content["categories"] if row["id"] in kept]
        for row in content["annotations"]:
            png = file.with_suffix("") / row["file_name"]
            pixels = np.array(Image.open(png))
            for segment in row["segments_info"]:
                if segment["category_id"] not in kept:
                    pixels[pixels[..., 0] == segment["id"]] = 0
            Image.fromarray(pixels).save(png)
            row["segments_info"] = [s for s in row["segments_info"] if s["category_id"] in kept]
        file.write_text(json.dumps(content))
    run = train(things, tmp_path / "run")
    assert "PQ" in run.scores and "PQ" in regard.evaluate(run.folder, things, workers=0, device="cpu").stats
    assert isinstance(regard.predict(run.folder, things / "val" / "000001.png"), Segmentation)


def test_segments_of_an_image(run, data, tmp_path):
    image = data / "val" / "000001.png"
    found = regard.predict(run.folder, image, threshold=0.0)
    assert isinstance(found, Segmentation) and found.size == (32, 32) and len(found) > 0
    assert found.ids.max() == len(found) and found.masks.sum((1, 2)).tolist() == found.segments.areas.tolist()
    assert sum(row["area"] for row in found.to_dicts()) == 32 * 32
    assert {row["label"] for row in found.to_dicts()} <= {c.name for c in run.load().card.categories}
    found.save(tmp_path / "drawn.png")
    with Image.open(tmp_path / "drawn.png") as picture:
        assert picture.width > 32
    nothing = regard.predict(run.folder, image, threshold=1.0)
    assert (
        nothing.summary().startswith("nothing above 1.00; best score ")
        and (nothing.ids == 0).all()
        and repr(nothing).startswith("Segmentation(")
    )
    clean = regard.predict(run.folder, image, threshold=0.0, segments="clean")
    names = [name for name, c in zip(clean.names, clean.labels, strict=True) if not clean.categories[c].is_thing]
    assert len(set(names)) == len(names)
    array = np.asarray(Image.open(image).convert("RGB"))
    assert torch.equal(regard.predict(run.folder, array, threshold=0.0).ids, found.ids)


def test_submissions_have_the_categories_of_the_data(run, data, tmp_path):
    """Under other ids, in another order, and with a class fewer than the model's, whose pixels become void."""
    other = tmp_path / "data"
    shutil.copytree(data, other)
    file = other / "annotations" / "panoptic_val.json"
    content = json.loads(file.read_text())
    content["categories"] = [row for row in content["categories"] if row["name"] != "sky"]
    new = {row["id"]: 500 - row["id"] for row in content["categories"]}
    for row in content["categories"]:
        row["id"] = new[row["id"]]
    for row in content["annotations"]:
        png = file.with_suffix("") / row["file_name"]
        pixels = np.array(Image.open(png))
        for segment in row["segments_info"]:
            if segment["category_id"] not in new:
                pixels[pixels[..., 0] == segment["id"]] = 0
        Image.fromarray(pixels).save(png)
        row["segments_info"] = [
            {**segment, "category_id": new[segment["category_id"]]}
            for segment in row["segments_info"] if segment["category_id"] in new
        ]  # fmt: skip
    file.write_text(json.dumps(content))
    submitted = tmp_path / "p.json"
    dataset = open_panoptic(data, "val")
    oracle = Oracle(list(dataset), dataset.categories)
    regard.evaluate(oracle, other, workers=0, options=DetectionEvaluationOptions(submission=submitted))
    truth, found = open_panoptic(other, "val"), read_panoptic(submitted)
    assert found.categories == truth.categories
    counts = panoptic_scores(truth, found)
    assert counts.stats["PQ"] == 1.0 and counts.predictions == counts.segments


def test_panoptic_files_need_a_suffix(run, data, tmp_path):
    options = DetectionEvaluationOptions(submission=tmp_path / "new" / "out")
    for call in (
        lambda: regard.evaluate(run.folder, data, output=tmp_path, device="cpu", options=options),
        lambda: list(predict_files(run.folder, [data / "val"], json_file=tmp_path / "new" / "out")),
    ):
        with pytest.raises(ConfigError) as caught:
            call()
        assert caught.value.remedy == "name it out.json" and not list(tmp_path.iterdir())


def test_files_of_segments_again(run, data, tmp_path):
    """Interrupted, done again, with other images: what is there is this result, and what was not ours is left."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        shutil.copy(data / "val" / "000001.png", tmp_path / name / "cat.png")
    target, pictures = tmp_path / "found.json", tmp_path / "found"
    lines = predict_files(run.folder, [tmp_path / "a", tmp_path / "b"], json_file=target, options=EVERYTHING)
    next(lines)
    lines.close()  # as an interrupt does
    assert [p.name for p in pictures.iterdir()] == ["cat.png"]
    list(predict_files(run.folder, [tmp_path / "a", tmp_path / "b"], json_file=target, options=EVERYTHING))
    content = json.loads(target.read_text())
    assert [row["file_name"] for row in content["images"]] == ["a/cat.png", "b/cat.png"]
    assert len(read_panoptic(target).images) == 2
    (pictures / "mine.png").write_bytes(b"mine")
    list(predict_files(run.folder, [tmp_path / "b"], json_file=target, options=EVERYTHING))
    assert sorted(p.name for p in pictures.iterdir()) == ["cat.png", "mine.png"]
    shutil.copy(tmp_path / "b" / "cat.png", tmp_path / "b" / "mine.png")
    with pytest.raises(ConfigError) as caught:
        list(predict_files(run.folder, [tmp_path / "b"], json_file=target))
    assert caught.value.code == "C11" and (pictures / "mine.png").read_bytes() == b"mine"


def test_an_earlier_result_stays_until_there_is_a_new_one(run, data, tmp_path):
    target = tmp_path / "found.json"
    list(predict_files(run.folder, [data / "val"], json_file=target, options=EVERYTHING))
    before = target.read_bytes()
    with refused(ConfigError, "'gpu'", code="C10"):
        list(predict_files(run.folder, [data / "val"], json_file=target, device="gpu"))
    assert target.read_bytes() == before and len(list((tmp_path / "found").iterdir())) == 4
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    with refused(DataError, broken, code="I03"):
        list(predict_files(run.folder, [broken], json_file=target, options=EVERYTHING))
    assert target.read_bytes() == before and len(list((tmp_path / "found").iterdir())) == 4
    with pytest.raises(DataError):
        list(
            predict_files(
                run.folder,
                [broken, data / "val" / "000001.png"],
                json_file=target,
                options=EVERYTHING,
            )
        )
    assert [image.id for image in read_panoptic(target).images] == [2]
    assert [path.name for path in (tmp_path / "found").iterdir()] == ["000001.png"]


def test_without_any_readable_image_no_segments_are_written(run, data, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(DataError):
        list(predict_files(run.folder, [tmp_path / "broken.png"], json_file=tmp_path / "found.json"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken.png"]


def test_ways_of_making_segments_have_names(run, data):
    image = data / "val" / "000001.png"
    for call in (
        lambda: regard.predict(run.folder, image, segments="cleen"),
        lambda: next(predict_each(run.load(), [image], options=PredictionOptions(segments="cleen"))),
        lambda: list(predict_files(run.folder, [image], options=PredictionOptions(segments="cleen"))),
    ):
        with refused(ConfigError, "segments", "'cleen'", "'clean'", code="C02"):
            call()


def test_files_of_segments_are_read_back(run, data, tmp_path):
    lines = list(
        predict_files(
            run.folder,
            [data / "val"],
            json_file=tmp_path / "out" / "found.json",
            options=EVERYTHING,
        )
    )
    assert len(lines) == 4
    content = read_panoptic(tmp_path / "out" / "found.json", segment_folder=tmp_path / "out" / "found")
    for index in range(4):
        expected = regard.predict(run.folder, data / "val" / content.images[index].file_name, threshold=0.0)
        assert torch.equal(segments_of(content, index).ids, expected.ids)
    list(predict_files(run.folder, [data / "val"], json_file=tmp_path / "out" / "found.json"))  # an earlier result
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a.png").write_bytes(b"mine")
    with pytest.raises(ConfigError) as caught:
        list(predict_files(run.folder, [data / "val"], json_file=tmp_path / "mine.json"))
    assert caught.value.code == "C11"
    truth = data / "annotations" / "panoptic_val.json"
    with refused(ConfigError, truth, code="C11"):
        list(predict_files(run.folder, [data / "val"], json_file=truth))


@pytest.fixture(scope="module")
def lite_run(data, tmp_path_factory):
    """To read; tests that change it take a copy."""
    folder = tmp_path_factory.mktemp("runs") / "lite"
    with without_charts():
        return regard.train("detr_lite", data, epochs=1, output=folder, quiet=True, overrides=LITE_WORDS)


def test_a_run_that_starts_from_another_keeps_its_network(lite_run, tmp_path):
    """Other data may suggest another network, which the trained weights would not fit."""
    first = lite_run
    words = ["data=shapes:size=64,train=4,val=2", f"start_from={first.folder}", "workers=0", "batch_size=2"]
    second = regard.train("detr_lite", epochs=1, output=tmp_path / "second", quiet=True, overrides=words)
    models = [yaml.safe_load((run.folder / "config.yaml").read_text())["model"] for run in (first, second)]
    assert all(models[0][name] == models[1][name] for name in models[0] if name not in ("num_classes", "num_queries"))


def test_a_finished_run_says_which_setting_prolongs_it(lite_run, tmp_path, capsys):
    regard.train(output=shutil.copytree(lite_run.folder, tmp_path / "run"), resume=True)
    said = capsys.readouterr()
    assert "set epochs to more than 1" in " ".join((said.out + said.err).split())


def test_the_threshold_of_other_data_is_not_the_run_s(data, lite_run, tmp_path):
    folder = shutil.copytree(lite_run.folder, tmp_path / "run")
    before = best_threshold_of(folder)
    other = shutil.copytree(data, tmp_path / "other")
    regard.evaluate(folder, other, workers=0)
    assert best_threshold_of(folder) is None
    regard.evaluate(folder, f"{data}/", workers=0)
    assert best_threshold_of(folder) == before


def test_minutes_are_filled_and_end_the_schedule(data, tmp_path, capsys):
    """The clock ends the training: the rate has fallen to almost nothing by then, and few steps are told."""
    words = (*LITE_WORDS, "minutes=0.05", "evaluate_every=100000", "model.backbone=small")
    run = regard.train("detr_lite", data, output=tmp_path / "run", overrides=words)
    rows = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "train/lr" in row]
    assert 3.0 <= rows[-1]["seconds"] < 15
    settings = yaml.safe_load((run.folder / "config.yaml").read_text())
    assert rows[-1]["train/lr"] < 0.1 * settings["lr"] and settings["patience"] == 0
    steps, said = rows[-1]["step"], " ".join(capsys.readouterr().err.split())
    assert (f"{steps} steps in 0.05 minutes are few" in said) == (steps < DETECTOR.steps)


def test_released_weights_that_cannot_be_had_are_not_the_end(data, tmp_path, monkeypatch):
    monkeypatch.setenv("REGARD_OFFLINE", "1")
    monkeypatch.setenv("REGARD_HOME", str(tmp_path / "home"))
    for model, other in (
        ("detr_resnet50", "regard train"),
        ("detr_resnet50_panoptic", "regard train detr_lite_panoptic"),
    ):
        with refused(MachineError, "detr-r", f"{other} --data {data}"):
            regard.train(model, data, output=tmp_path / "run", overrides=("workers=0",), quiet=True)
    with pytest.raises(MachineError) as caught:
        regard.train("detr_lite", data, overrides=("start_from=detr_resnet50",), output=tmp_path / "run", quiet=True)
    assert "regard train" not in caught.value.line and not (tmp_path / "run").exists()


def test_panoptic_data_without_validation_train_and_evaluate(data, tmp_path, capsys):
    """No image of the training split is evaluated."""
    whole = tmp_path / "data"
    shutil.copytree(data, whole)
    for file in (whole / "annotations").glob("*_val*"):
        shutil.rmtree(file) if file.is_dir() else file.unlink()
    run = regard.train("detr_lite_panoptic", whole, epochs=1, output=tmp_path / "run", overrides=LITE_WORDS)
    assert "chosen by content" in capsys.readouterr().err and "PQ" in run.scores
    train_names, val_names = (set(open_panoptic(whole, split).names) for split in ("train", "val"))
    counts = json.loads((run.folder / "environment.json").read_text())["counts"]
    assert not train_names & val_names
    assert (counts["train"]["images"], counts["val"]["images"]) == (len(train_names), len(val_names))
