"""Commands that train, evaluate, predict, explain, export and benchmark."""

from __future__ import annotations

import os
import sys
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from regard.cli.groups import Settings, app, distill_app
from regard.cli.places import check_name, check_new_file
from regard.cli.typed import as_typed
from regard.distillation.options import StorageOptions
from regard.errors import ConfigError, escape
from regard.evaluation.options import ClassificationEvaluationOptions, DetectionEvaluationOptions
from regard.explanations.options import ExplanationOptions
from regard.exporting.options import MAX_DROP, Format
from regard.prediction.options import JobOptions, PredictionOptions
from regard.runs.options import TrainingOptions
from regard.safe_files import first_free

if TYPE_CHECKING:
    from regard.models.build import Model


@app.command
def quickstart(*, minutes: float = 4.0, output: Path | None = None, device: str = "auto") -> None:
    """Train a small detector on generated images, evaluate it and draw its predictions. No data, no download.

    Args:
        minutes: training time.
        output: folder of the run; runs/quickstart, runs/quickstart-2 and so on if not given.
        device: auto, cpu, cuda, cuda:0 or mps.
    """
    from regard.studies.quickstart import quickstart

    commands = quickstart(minutes, output, device)
    print("5. Next, one command a line:", *map(as_typed, commands), sep="\n")


@app.command
def train(
    model: str | None = None,
    *settings: Settings,
    data: str | None = None,
    epochs: int | None = None,
    output: Path | None = None,
    options: Annotated[TrainingOptions | None, Parameter(name="*")] = None,
    quiet: bool = False,
    open: bool = False,
) -> None:
    """Train a detector or a classifier: regard train detr_resnet50 --data my_coco/ --epochs 50 lr=1e-4.

    Args:
        model: a name from `regard models`; chosen by the data if not given.
        data: folder of COCO, YOLO, Pascal VOC or CSV data, or with a folder per class; `shapes`, `digits`,
            or the address of a folder of tar shards, such as s3://bucket/folder.
        epochs: passes over the training images.
        output: the run's folder; runs/MODEL-N if not given.
        quiet: print no progress.
        open: open the report in the browser at the end.
    """
    from regard.runs import train

    # Model and settings may come in any order; --resume and --config need no model.
    words = [word for word in (model, *settings) if word is not None]
    names = [word for word in words if "=" not in word]
    if len(names) > 1:
        remedy = f"did you mean --data {names[1]}?" if data is None else None
        raise ConfigError(f"expected key=value, got {names[1]!r}", remedy=remedy, code="C01")
    if names:
        check_name(names[0])
    run = train(
        names[0] if names else None, data, epochs=epochs, output=output, quiet=quiet,
        overrides=tuple(word for word in words if "=" in word), **asdict(options or TrainingOptions()),
    )  # fmt: skip
    if os.environ.get("RANK", "0") == "0":  # the first process of torchrun tells for all
        print(escape(run.summary))
        if open:
            _show(run.report)


@app.command
def report(run: Path, *, open: bool = False) -> None:
    """Write the report of a run anew, finished or not: RUN/report.html.

    Training and `regard evaluate` write it by themselves.

    Args:
        run: the run's folder.
        open: open the report in the browser.
    """
    from regard.results.reports.report import write_report

    path = write_report(run)
    print(path)
    if open:
        _show(path)


def _show(path: Path) -> None:
    import webbrowser

    webbrowser.open(path.resolve().as_uri())


@app.command
def evaluate(
    checkpoint: str,
    *,
    data: str | None = None,
    output: Path | None = None,
    device: str = "auto",
    classes: Path | None = None,
    batch_size: int | None = None,
    workers: int = 2,
    precision: Literal["auto", "fp32", "tf32", "bf16", "fp16"] = "auto",
    of_classifiers: Annotated[ClassificationEvaluationOptions | None, Parameter(name="*")] = None,
    of_detectors: Annotated[DetectionEvaluationOptions | None, Parameter(name="*")] = None,
) -> None:
    """Score a model on the validation images of a data set: COCO AP of a detector, accuracy of a classifier.

    Args:
        checkpoint: a run, a weights file, or the name of a model with released weights.
        data: folder of data, as for train; that of the run if not given.
        output: folder for metrics.json and pictures; the run itself if not given.
        device: auto, cpu, cuda, cuda:0 or mps.
        classes: text file with one class name a line, for weights of other projects, which hold no names.
        batch_size: images per batch; 1 for detectors and 64 for classifiers if not given.
        workers: processes that load images.
        precision: fp32; tf32 on GPUs; bf16 or fp16, mixed precision; auto: tf32 on CUDA, else fp32.
    """
    if of_classifiers and of_detectors:
        what = "--submission is for detectors, --probe, --throughput, --real and --all-images are for classifiers"
        raise ConfigError(what, remedy="leave one kind out", code="C09")
    from rich.console import Console

    from regard.evaluation import evaluate

    evaluate(
        checkpoint,
        data,
        output=output,
        device=device,
        batch_size=batch_size,
        workers=workers,
        precision=precision,
        classes=classes,
        options=of_classifiers or of_detectors,
        tell=lambda scores: Console().print(scores.table()),
    )


@app.command
def predict(
    checkpoint: Annotated[str, Parameter(allow_leading_hyphen=True)],
    *images: Annotated[str, Parameter(allow_leading_hyphen=True)],
    output: Path | None = None,
    json: Path | None = None,
    options: Annotated[PredictionOptions | None, Parameter(name="*")] = None,
    batch_size: int | None = None,
    device: str = "auto",
    classes: Path | None = None,
    job: Annotated[JobOptions | None, Parameter(name="*")] = None,
) -> None:
    """Predict objects, segments or classes of images, videos and cameras.

    Args:
        checkpoint: a run, a weights file, or the name of a model with released weights.
        images: image files, folders, patterns in quotes ("photos/**/*.jpg"), http addresses, - for the standard input,
            video files, camera:0.
        output: folder for the images and videos with their predictions drawn, or the file for a single one.
        json: file for the results: COCO's format of detections or segments, or the classes of each image.
        batch_size: most images of one shape per batch; if not given, small images share one.
        device: auto, cpu, cuda, cuda:0 or mps.
        classes: text file with one class name a line, for weights of other projects, which hold no names.
    """
    from regard.data.sources import check_sources
    from regard.weights.source import check_source

    check_sources(images)
    check_source(checkpoint)
    from regard.prediction.files import predict_files

    lines = predict_files(
        _named(checkpoint, classes, device),
        images,
        output=output,
        json_file=json,
        options=options,
        batch_size=batch_size,
        device=device,
        job=job,
    )
    with closing(lines):
        for line in lines:
            print(line)


@app.command
def explain(
    checkpoint: str,
    image: Path | None = None,
    *,
    what: str | None = None,
    options: Annotated[ExplanationOptions | None, Parameter(name="*")] = None,
    output: Path | None = None,
    device: str = "auto",
    classes: Path | None = None,
) -> None:
    """Draw the attention of a model over an image, or where each query of a DETR finds objects in a folder of images.

    DETR: decoder, heads, encoder, layers, relevance. ViT and DeiT: rollout, heads, tokens, patch, relevance.
    Attention-augmented networks: layers, heads, relevance.

    Args:
        checkpoint: a run, a weights file, or the name of a model with released weights.
        image: an image file, or a folder of images for the boxes of each query of a detector.
        what: kind of maps; the first above if not given.
        output: picture file, or .npz for the arrays; explanations/IMAGE-WHAT.png if not given.
        device: auto, cpu, cuda, cuda:0 or mps.
        classes: text file with one class name a line, for weights of other projects, which hold no names.
    """
    from regard.data.paths import check_images
    from regard.weights.source import check_source

    assert image is not None, "checked with the order of the words"
    check_source(checkpoint)
    check_images([image])
    if output is not None:
        check_new_file(output, ".png", ".jpg", ".jpeg", ".webp", ".npz")
    from regard.explanations.explain import explain, explain_queries  # imports torch

    options, net = options or ExplanationOptions(), _named(checkpoint, classes, device)
    if image.is_dir():
        given = [name for name, value in {"what": what, **asdict(options)}.items() if value is not None]
        if given:
            problem = f"{given[0]} does not apply to a folder of images"
            raise ConfigError(problem, remedy="leave it out, or name one image", code="C09")
        queries = explain_queries(net, image, device=device)
        print(queries.save(output or first_free(Path("explanations", f"{image.resolve().name}-queries.png"))))
        return
    explanation = explain(net, image, what, **asdict(options), device=device)
    output = output or first_free(Path("explanations", f"{image.stem}-{explanation.what}.png"))
    explanation.save(output)
    print(output)


@app.command
def export(
    checkpoint: str,
    *,
    format: Format = "onnx",
    output: Path | None = None,
    data: str | None = None,
    int8: bool = False,
    max_drop: float = MAX_DROP,
    classes: Path | None = None,
) -> None:
    """Write a model as one file that runs without Regard, and check that the file computes what the model does.

    Args:
        checkpoint: a run, a weights file, or the name of a model with released weights.
        format: onnx; torch, for torch.export.load; openvino, an .xml file and a .bin file.
        output: the file; NAME.onnx, NAME.pt2 or NAME.xml in this folder if not given.
        data: as for train; the file is checked and scored on its validation images. Without it generated images check.
        int8: compute the convolutions of an ONNX file in 8 bits, calibrated on training images of --data.
        max_drop: points of AP, PQ or accuracy that int8 may lose; no file is left if it loses more.
        classes: text file with one class name a line, for weights of other projects, which hold no names.
    """
    from regard.exporting.export import export
    from regard.weights.source import check_source

    check_source(checkpoint)
    print(export(_named(checkpoint, classes, "cpu"), format, output=output, data=data, int8=int8, max_drop=max_drop))


def _named(checkpoint: str, classes: Path | None, device: str) -> Model | str:
    """Return a model whose classes are named by a file; without one `checkpoint` itself, to be loaded later."""
    if classes is None:
        return checkpoint
    from regard.training.distributed import choose_device
    from regard.weights.load import load
    from regard.weights.source import check_source

    check_source(checkpoint)
    return load(checkpoint, classes=classes).to(choose_device(device))


@app.command
def models(pattern: str = "*") -> None:
    """List the named models: parameters, weights, published scores.

    Args:
        pattern: how the names begin, such as detr, or a pattern such as "*50*"; for one name also the address of its
            weights.
    """
    from rich.console import Console

    from regard.models.catalog import describe, list_models, table

    if pattern in list_models():
        print("\n".join(describe(pattern)))
    else:
        Console().print(table(pattern))


@distill_app.command
def cache(
    model: str,
    *settings: Settings,
    data: str,
    teacher: str,
    output: Path,
    recipe: str | None = None,
    options: Annotated[StorageOptions | None, Parameter(name="*")] = None,
) -> None:
    """Store the logits of a teacher once, for any number of trainings: regard train MODEL --teacher OUTPUT ...

    Training then uses `views` augmented views of each image, in turn. The same command resumes a stopped one.

    Args:
        model: the student, a name from `regard models`; its recipe decides the augmentation.
        data: folder of data, as for train.
        teacher: a model name, run or file, regnety_160, timm/NAME, torchvision/NAME.
        output: folder for the logits.
        recipe: recipe of the student, as for train.
    """
    from regard.recipes import ClassificationRecipe
    from regard.runs.settings import check_paths, resolve

    words = (f"teacher={teacher}", *settings)
    student = resolve(model, data, None, None, False, recipe, None, words)
    check_paths(student)
    if not isinstance(student, ClassificationRecipe):
        raise ConfigError(f"{model} is not a classifier", code="C09")
    from regard.runs.classification import cache_logits

    shares = cache_logits(student, output, options or StorageOptions())
    done = 0.0
    for share in shares:
        if share == 1.0 or share >= done + 0.05:
            print(f"{share:.0%}", file=sys.stderr)
            done = share
    print(output)
