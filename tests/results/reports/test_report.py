"""The report of runs: valid, complete, in one file, whatever the run's state and names."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

import regard
from color_data import write_colors
from command_line import run as command
from refusals import refused
from regard.data.generated.shapes import ShapesConfig, write_shapes
from regard.errors import ConfigError
from regard.results.reports.pictures import MAX_STEPS
from regard.results.reports.report import write_report
from regard.results.reports.run_files import RunFiles
from regard.training.config import UNTIL_TIME_IS_UP
from strict_html import StrictHtml

pytestmark = pytest.mark.usefixtures("blank_charts")

DETECTOR = (
    "workers=0", "batch_size=4", "model.embed_dim=16", "model.num_heads=2", "model.feedforward_dim=16",
    "evaluate_every=1", "device=cpu",
)  # fmt: skip
CLASSIFIER = ("workers=0", "batch_size=6", "evaluate_every=1", "device=cpu")
HOSTILE = "<script>alert(1)</script>"


def read(run):
    return StrictHtml((run / "report.html").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    data = tmp_path_factory.mktemp("data") / 'a"b<i>'
    write_shapes(ShapesConfig(train=8, val=4, size=32), data)
    for path in data.rglob("*.json"):
        path.write_text(path.read_text().replace('"circle"', json.dumps(HOSTILE)))
    folder = tmp_path_factory.mktemp("runs") / "a"
    return regard.train("detr_tiny", data, recipe="small", epochs=2, output=folder, overrides=DETECTOR, quiet=True)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    data = write_colors(tmp_path_factory.mktemp("data") / "c", names=("a & b", "<b>green", "blue"))
    folder = tmp_path_factory.mktemp("runs") / "b"
    overrides = (*CLASSIFIER, "model.depth=1", "model.embed_dim=16", "model.num_heads=2", "model.image_size=16")
    return regard.train("deit_nano_patch4_32", data, epochs=2, output=folder, overrides=overrides, quiet=True)


def test_a_detector(detector):
    assert detector.report == detector.folder / "report.html" and detector.report.stat().st_size < 4e6
    page = read(detector.folder)
    headings = ["Data", "Training", "Scores", "The worst validation images", "What the model looks at", "Predictions"]
    places = [page.texts.index(name) for name in [*headings, "Time", "Settings", "Environment"]]
    assert places == sorted(places)
    alts = [image["alt"] for image in page.images]
    assert alts[:3] == [
        "classes and sizes of the data set",
        "images with their targets",
        "losses, scores and learning rate by step",
    ]
    assert "precision by recall" in alts and "confusion matrix" in alts
    assert [alt for alt in alts if alt.startswith("attention")] == ["attention at step 2", "attention at step 4"]
    assert HOSTILE in page.texts  # the row of its class


def test_it_has_all_settings_scores_and_versions(detector):
    texts = read(detector.folder).texts
    settings = yaml.safe_load((detector.folder / "config.yaml").read_text())
    for name, value in {**settings, **{f"model.{k}": v for k, v in settings["model"].items()}}.items():
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            assert float(texts[texts.index(name) + 1]) == pytest.approx(value, rel=1e-5)
    assert texts[texts.index("torch") + 1] == torch.__version__
    metrics = json.loads((detector.folder / "metrics.json").read_text())
    place = texts.index("Each class")
    assert texts[place + 1 : place + 5] == ["class", "objects", "AP", "AP50"]
    for number, score in enumerate(metrics["per_class"]):
        row = texts[place + 5 + 4 * number :][:4]
        assert row[:2] == [score["name"], str(score["objects"])] and row[2] == f"{100 * score['ap']:.1f}"


def test_the_data_are_counted(detector):
    counts = json.loads((detector.folder / "environment.json").read_text())["counts"]
    data = Path(yaml.safe_load((detector.folder / "config.yaml").read_text())["data"])
    for split, images in (("train", 8), ("val", 4)):
        objects = json.loads((data / "annotations" / f"instances_{split}.json").read_text())["annotations"]
        classes = {row["category_id"] for row in objects}
        assert counts[split] == {"images": images, "objects": len(objects), "classes": len(classes)}


def test_both_losses_are_the_same_sum(detector):
    """Of the last decoder layer, with the weights of the settings."""
    rows, settings = RunFiles(detector.folder).rows, RunFiles(detector.folder).settings
    weights = {name: settings[f"{key}_weight"] for name, key in (("ce", "class"), ("bbox", "bbox"), ("giou", "giou"))}
    for part, total in (("train", "loss_last_layer"), ("val", "loss")):
        known = [row for row in rows if f"{part}/{total}" in row]
        assert known
        for row in known:
            loss = sum(weight * row[f"{part}/loss_{name}"] for name, weight in weights.items())
            assert row[f"{part}/{total}"] == pytest.approx(loss, rel=1e-5)
            assert part == "val" or row["train/loss"] > loss


def test_a_classifier(classifier):
    page = read(classifier.folder)
    alts = [image["alt"] for image in page.images]
    assert "calibration of the probabilities" in alts and "attention at step 4" in alts
    assert "<b>green" in page.texts and page.texts[0] == "deit_nano_patch4_32 on c"
    assert "precision by recall" not in alts
    worst = json.loads((classifier.folder / "worst_images.json").read_text())["images"]
    assert [w["caption"] in page.texts for w in worst] == [True] * 10


def test_a_network_without_attention(tmp_path):
    data = write_colors(tmp_path / "c")
    small = (*CLASSIFIER, "model.layers=[1,1,1]", "model.widths=[8,8,8]", "mixup=0.5")
    run = regard.train("resnet20", data, epochs=2, output=tmp_path / "run", overrides=small, quiet=True)
    page = read(run.folder)
    assert "What the model looks at" not in page.texts and not list(run.folder.rglob("attention*"))
    assert any("cannot be compared" in text for text in page.texts)  # mixed images


def test_evaluate_writes_it_anew_with_the_data_that_it_was_given(detector, tmp_path):
    run = shutil.copytree(detector.folder, tmp_path / "run")
    other = tmp_path / "other"
    write_shapes(ShapesConfig(train=4, val=3, size=32, seed=5), other)
    for path in other.rglob("*.json"):
        path.write_text(path.read_text().replace('"circle"', json.dumps(HOSTILE)))
    regard.evaluate(run, other, batch_size=2, workers=0, device="cpu")
    assert str(other) in read(run).texts and not list(run.rglob("attention*9*"))
    elsewhere = tmp_path / "elsewhere"
    regard.evaluate(run, other, output=elsewhere, workers=0, device="cpu")
    assert not (elsewhere / "report.html").exists() and (elsewhere / "worst_images.json").exists()


def test_an_unfinished_run(detector, tmp_path):
    """Stopped before the end, or before the first step; or with files that a full disk cut off."""
    run = shutil.copytree(detector.folder, tmp_path / "run")
    for name in ("metrics.json", "worst_images.json", "report.html"):
        (run / name).unlink()
    assert write_report(run) == run / "report.html"
    assert any("has not finished" in text for text in read(run).texts)
    rows = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run / "metrics.jsonl").write_text("".join(rows[:1]) + rows[1][:20])
    for name in ("metrics.json", "environment.json", "worst_images.json"):
        (run / name).write_text('{"stats": ')
    write_report(run)
    read(run)
    (run / "metrics.jsonl").unlink()
    shutil.rmtree(run / "pictures")
    write_report(run)
    page = read(run)
    assert not page.images and any("No step" in text for text in page.texts)


def test_of_many_evaluations_some_are_shown(detector, tmp_path):
    run = shutil.copytree(detector.folder, tmp_path / "run")
    first = run / "pictures" / "attention_step_2.jpg"
    for step in range(6, 2 * 60, 2):
        shutil.copy(first, run / "pictures" / f"attention_step_{step}.jpg")
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 100, "epoch": 50, "train/loss": 1.0}) + "\n")
    write_report(run)
    steps = [int(i["alt"].split()[-1]) for i in read(run).images if i["alt"].startswith("attention")]
    assert len(steps) == MAX_STEPS and steps == sorted(steps) and (steps[0], steps[-1]) == (2, 100)


def changed(run, name, content):
    """A copy of a run with other content of a JSON file."""
    (run / name).write_text(json.dumps(content))
    write_report(run)
    return read(run)


def test_warnings_of_the_training_are_repeated(detector, classifier):
    """Both had few steps: the report says so before anything else."""
    for run, model in ((detector, "detector"), (classifier, "classifier")):
        page, says = read(run.folder), f"steps are few for a {model}"
        (place,) = (number for number, text in enumerate(page.texts) if says in text)
        assert place < page.texts.index("Data") and "warning" not in page.texts[place]


def test_what_was_told_at_the_start(detector, tmp_path):
    run = shutil.copytree(detector.folder, tmp_path / "run")
    notes = {"start": ["up to 3 objects", "warning: 8 images are few", HOSTILE, 7], "length": ["warning: <b>"]}
    texts = changed(run, "notes.json", notes).texts
    assert texts.index("8 images are few") < texts.index("<b>") < texts.index("Data") < texts.index("up to 3 objects")
    for damaged in ([], {"start": 3}, {"start": None, "length": {}}, {}):
        assert "up to 3 objects" not in changed(run, "notes.json", damaged).texts


def test_epochs_without_end_are_said_in_words(detector, tmp_path):
    run = shutil.copytree(detector.folder, tmp_path / "run")
    settings = yaml.safe_load((run / "config.yaml").read_text())
    for minutes, epochs, shown in (
        (3.0, UNTIL_TIME_IS_UP, "as many as fit into minutes"),
        (None, UNTIL_TIME_IS_UP, "100000"),
        (3.0, 50, "50"),
    ):
        (run / "config.yaml").write_text(yaml.safe_dump({**settings, "minutes": minutes, "epochs": epochs}))
        write_report(run)
        texts = read(run).texts
        assert texts[texts.index("epochs") + 1] == shown


def test_one_evaluation_is_no_curve(detector, tmp_path):
    run = shutil.copytree(detector.folder, tmp_path / "run")
    rows = RunFiles(run).rows
    one = [row for row in rows if row["step"] == rows[0]["step"]]
    training = [row for row in rows if "train/loss" in row]
    for kept, says, drawn in (
        ([*one, *training[-1:]], "There was one evaluation", True),
        (one, "they make no curve", False),
    ):
        (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
        write_report(run)
        page = read(run)
        assert any(says in text for text in page.texts)
        assert any("learning rate by step" in image["alt"] for image in page.images) == drawn


def test_the_threshold_of_predict(detector, tmp_path):
    run = shutil.copytree(detector.folder, tmp_path / "run")
    metrics = json.loads((run / "metrics.json").read_text()) | {"best_threshold": 0.034, "best_f1": 0.25}
    text = " ".join(changed(run, "metrics.json", metrics).texts)
    assert "F1 of detections, 25.0 %, is best above a score of 0.034" in text and "regard predict takes" in text
    other = " ".join(changed(run, "metrics.json", {**metrics, "data": "elsewhere"}).texts)
    assert "0.034" in other and "regard predict" not in other
    del metrics["best_threshold"], metrics["best_f1"]
    assert "No detection is right" in " ".join(changed(run, "metrics.json", metrics).texts)


def test_scores_of_segments_masks_and_boxes_are_side_by_side(detector, tmp_path):
    run = shutil.copytree(detector.folder, tmp_path / "run")
    stats = {"PQ": 0.1, "SQ": 0.2, "RQ": 0.3, "PQ_th": 0.4, "SQ_th": 0.5, "RQ_th": 0.6, "PQ_st": None, "SQ_st": 0.8,
             "RQ_st": 0.9, "mask_AP": 0.11, "mask_AR1": 0.12, "AP": 0.13, "AR1": 0.14, "mine": 0.15}  # fmt: skip
    texts = changed(run, "metrics.json", {"stats": stats, "data": "d", "panoptic": {}, "best_threshold": 0.3}).texts
    place = texts.index("segments")
    assert texts[place : place + 16] == [
        "segments", "all", "things", "stuff", "PQ", "10.0", "40.0", "n/a", "SQ", "20.0", "50.0", "80.0", "RQ", "30.0",
        "60.0", "90.0",
    ]  # fmt: skip
    assert texts[place + 16 : place + 27] == [
        "score", "masks", "boxes", "AP", "11.0", "13.0", "AR1", "12.0", "14.0", "mine", "15.0",
    ]  # fmt: skip


def test_the_worst_images_are_named_below_their_folder(detector, classifier, tmp_path):
    for run in (detector.folder, classifier.folder):
        page, worst = read(run), json.loads((run / "worst_images.json").read_text())["images"]
        data = Path(yaml.safe_load((run / "config.yaml").read_text())["data"])
        folder = next(text for text in page.texts if text.startswith(str(data / "val")))
        for image in worst:
            assert Path(image["file"]).is_file()
            assert Path(image["file"]).relative_to(folder).as_posix() in page.texts
    run = shutil.copytree(detector.folder, tmp_path / "run")
    images = json.loads((run / "worst_images.json").read_text())["images"]
    images[1]["file"] = "relative/to/here.png"
    texts = changed(run, "worst_images.json", {"measure": "chance", "images": images}).texts
    assert "relative/to/here.png" in texts and images[0]["file"] in texts


def test_the_command(detector, tmp_path, capsys, monkeypatch):
    opened = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    run = shutil.copytree(detector.folder, tmp_path / "a run")
    done = command(capsys, "report", str(run))
    assert (done.code, done.out.strip(), opened) == (0, str(run / "report.html"), [])
    command(capsys, "report", str(run), "--open")
    assert opened == [(run / "report.html").as_uri()]
    with refused(ConfigError, tmp_path, code="K02"):
        write_report(tmp_path)


def test_no_torch(detector, tmp_path):
    run = shutil.copytree(detector.folder, tmp_path / "run")
    code = "import sys; from regard.cli import main; main(['report', sys.argv[1]]); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code, str(run)], check=True)
    read(run)
