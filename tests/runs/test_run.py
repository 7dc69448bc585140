"""Whole runs of a very small detector: files, scores, and going on."""

import json

import pytest
import torch
import yaml

import regard
from refusals import refused
from regard.data.generated.shapes import ShapesConfig, write_shapes
from regard.errors import ConfigError, MachineError
from regard.runs.run import Run
from regard.runs.settings import resolve
from regard.training.checkpoints import newest_checkpoint, read_checkpoint
from regard.training.run_lock import lock_run

pytestmark = pytest.mark.usefixtures("blank_charts")

SMALL = (
    "workers=0", "batch_size=4", "model.embed_dim=16", "model.num_heads=2", "model.feedforward_dim=16",
    "evaluate_every=1", "device=cpu",
)  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "shapes"
    write_shapes(ShapesConfig(train=8, val=4, size=32), folder)
    return folder


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    return regard.train(
        "detr_tiny",
        data,
        recipe="small",
        epochs=2,
        output=tmp_path_factory.mktemp("runs") / "a",
        overrides=SMALL,
        quiet=True,
    )


def test_files_of_a_run(run):
    names = {path.name for path in run.folder.iterdir()}
    assert {"checkpoints", "config.yaml", "environment.json", "metrics.csv", "metrics.json", "metrics.jsonl"} <= names
    pictures = {path.name for path in (run.folder / "pictures").iterdir()}
    assert {
        "train_batch.jpg",
        "dataset.png",
        "curves.png",
        "precision_recall.png",
        "predictions_step_4.jpg",
    } <= pictures
    environment = json.loads((run.folder / "environment.json").read_text())
    assert environment["torch"] == torch.__version__ and len(environment["data"]["train"]) == 64


def test_scores_can_be_had_again_from_the_run_alone(run, data, tmp_path):
    written = json.loads((run.folder / "metrics.json").read_text())
    again = regard.evaluate(run.folder, data, output=tmp_path, batch_size=4, workers=0, device="cpu")
    assert again.to_dict()["stats"] == written["stats"]
    assert json.loads((tmp_path / "metrics.json").read_text())["losses"] == pytest.approx(written["losses"], rel=1e-4)


def test_the_model_of_a_run_knows_its_classes(run, data):
    model = regard.load(run.folder)
    assert [c.name for c in model.card.categories] == ["circle", "square", "triangle"] and not model.training
    result = regard.predict(model, data / "val" / "000001.png", threshold=0.0)
    assert set(result.category_ids) <= {1, 2, 3} and len(result) > 0


def test_settings_of_a_run_make_the_same_run(run, data, tmp_path):
    again = regard.train(config=run.folder / "config.yaml", output=tmp_path / "b", quiet=True)
    first, second = (read_checkpoint(newest_checkpoint(r.folder / "checkpoints")).tensors for r in (run, again))
    assert all(torch.equal(first["model"][name], second["model"][name]) for name in first["model"])
    values = yaml.safe_load((run.folder / "config.yaml").read_text())
    assert values["model"]["num_classes"] == 3 and values["data"] == str(data)
    assert values["amp"] == "off"  # what `auto` is on a CPU


def test_going_on_after_the_end_changes_nothing(run):
    before = {p.name: p.read_bytes() for p in (run.folder / "checkpoints").rglob("*.safetensors")}
    regard.train(output=run.folder, resume=True, quiet=True)
    assert before == {p.name: p.read_bytes() for p in (run.folder / "checkpoints").rglob("*.safetensors")}


def test_more_epochs_can_be_added(run, data, tmp_path):
    first = regard.train(
        "detr_tiny", data, recipe="small", epochs=1, output=tmp_path / "c", overrides=SMALL, quiet=True
    )
    regard.train(output=first.folder, resume=True, epochs=2, quiet=True)
    assert newest_checkpoint(first.folder / "checkpoints").name == "step_4"


def test_a_run_can_start_another(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "five"
    write_shapes(ShapesConfig(train=8, val=4, size=32, classes=5), folder)
    other = regard.train(
        "detr_tiny", folder, recipe="small", epochs=1, output=tmp_path_factory.mktemp("runs") / "d",
        overrides=(*SMALL, f"start_from={run.folder}", "model.denoising_groups=0"), quiet=True,
    )  # fmt: skip
    assert len(regard.load(other.folder).card.categories) == 5


def test_a_folder_with_files_is_left_alone(data, tmp_path):
    (tmp_path / "mine.txt").write_text("keep me")
    with pytest.raises(ConfigError) as caught:
        regard.train("detr_tiny", data, recipe="small", epochs=1, output=tmp_path, overrides=SMALL, quiet=True)
    assert caught.value.code == "C11" and [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_more_objects_than_queries(data, tmp_path):
    with refused(ConfigError, "000001.png", "1 query", "model.num_queries=", code="A43"):
        regard.train(
            "detr_tiny",
            data,
            recipe="small",
            output=tmp_path / "e",
            overrides=(*SMALL, "model.num_queries=1"),
            quiet=True,
        )


def test_more_objects_than_queries_of_a_model_that_fits_them(data, tmp_path, capsys):
    settings = (*SMALL, "model.num_queries=1", "fit_queries=true")
    run = regard.train("detr_tiny", data, recipe="small", epochs=1, output=tmp_path / "e", overrides=settings)
    assert "objects but the model has 1 query: it gets 10 (model.num_queries)" in capsys.readouterr().err
    assert run.load().config.num_queries == 10
    more = regard.train(output=run.folder, resume=True, overrides=("epochs=2",), quiet=True)
    assert more.load().config.num_queries == 10


def test_without_imagenet_weights_training_goes_on_and_says_so(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("REGARD_OFFLINE", "1")
    monkeypatch.setenv("REGARD_HOME", str(tmp_path / "home"))
    overrides = (*SMALL, "short_side=32", "max_size=64", "model.decoder_layers=1", "model.encoder_layers=0")
    result = regard.train("detr_resnet18", data, epochs=1, output=tmp_path / "f", overrides=overrides)
    assert "warning: no ImageNet weights for resnet18" in capsys.readouterr().err
    values = yaml.safe_load((result.folder / "config.yaml").read_text())
    assert values["start_from"] == "none" and values["model"]["backbone_norm"] == "batch"
    assert values["lr_backbone"] == values["lr"]


def test_one_process_a_run(run):
    with lock_run(run.folder), pytest.raises(MachineError) as caught:
        regard.train(output=run.folder, resume=True, quiet=True)
    assert caught.value.code == "T14"


def test_arguments_stand_above_the_recipe_and_words_above_both():
    settings = resolve("detr_tiny", "my", 7, None, False, None, None, ["epochs=9", "lr=0.5"])
    assert (settings.data, settings.epochs, settings.lr) == ("my", 9, 0.5)
    for wrong in ((None, "shapes"), (None, None), ("detr_tinny", "my")):
        with pytest.raises(ConfigError):
            resolve(*wrong, None, None, False, None, None, [])
    with refused(ConfigError, "--resume", "--output", code="C09"):
        resolve(None, None, None, None, True, None, None, [])


def test_the_last_line_of_a_training(tmp_path):
    run = Run(tmp_path / "a", {"loss": 2.0, "AP": 0.4123, "AP50": 0.6, "AR1": 0.5})
    report = run.folder / "report.html"
    assert run.summary == f"{run.folder}: best checkpoint AP 0.412, AP50 0.600; report: {report}"
    assert "top1 0.900, top5 0.990;" in Run(tmp_path, {"top5": 0.99, "top1": 0.9, "nll": 0.1}).summary


def test_profile(data, tmp_path):
    """A picture and a table of the parts of a step; shares add up to one."""
    run = regard.train(
        "detr_tiny", data, recipe="small", epochs=7, output=tmp_path / "run", overrides=(*SMALL, "evaluate_every=7"),
        quiet=True, profile=True,
    )  # fmt: skip
    text = (run.folder / "profile.txt").read_text()
    for part in ("data", "forward", "matching", "loss", "backward", "optimizer", "the rest"):
        assert f" {part} " in text
    shares = [float(line.split("│")[3].strip("% ")) for line in text.splitlines() if line.count("│") == 4]
    assert len(shares) == 7 and sum(shares) == pytest.approx(100, abs=0.5)
    assert "aten::" in text and "Operators of one step" in text
    assert (run.folder / "pictures" / "profile.png").stat().st_size > 0


def test_a_run_that_is_too_short_to_be_measured_says_so(data, tmp_path, capsys):
    run = regard.train(
        "detr_tiny", data, recipe="small", epochs=1, output=tmp_path / "run", overrides=SMALL, profile=True,
    )  # fmt: skip
    assert not (run.folder / "profile.txt").exists()
    (line,) = [line for line in "".join(capsys.readouterr()).splitlines() if "profile.txt" in line]
    assert line.startswith("warning: no profile.txt") and "too few" in line


def test_activations_computed_again(data, run, tmp_path):
    """The same run, as gradients and dropout are the same."""
    again = regard.train(
        "detr_tiny", data, recipe="small", epochs=2, output=tmp_path / "run",
        overrides=(*SMALL, "checkpoint_activations=true"), quiet=True,
    )  # fmt: skip
    states = [read_checkpoint(newest_checkpoint(r.folder / "checkpoints")).tensors["model"] for r in (run, again)]
    for key, value in states[0].items():
        torch.testing.assert_close(states[1][key], value, rtol=1e-4, atol=1e-6)
