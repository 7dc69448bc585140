"""A model over a data set: `regard.evaluate`. Torch is imported when numbers and paths are known to be right."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from regard.errors import ConfigError, DataError
from regard.evaluation.options import ClassificationEvaluationOptions, DetectionEvaluationOptions

if TYPE_CHECKING:
    import torch

    from regard.evaluation.classification import ClassifierEvaluation
    from regard.evaluation.detection import DetectorEvaluation
    from regard.metrics.classification import ClassificationScores
    from regard.metrics.detection import DetectionScores
    from regard.metrics.segmentation import SegmentationScores
    from regard.models.build import Model

    Scores = DetectionScores | SegmentationScores | ClassificationScores


def evaluate(
    source: str | Path | Model,
    data: str | Path | None = None,
    *,
    output: str | Path | None = None,
    device: str = "auto",
    batch_size: int | None = None,
    workers: int = 2,
    precision: str = "auto",
    classes: str | Path | Sequence[str] | None = None,
    options: DetectionEvaluationOptions | ClassificationEvaluationOptions | None = None,
    tell: Callable[[Scores], None] | None = None,
    quiet: bool = False,
) -> Scores:
    """Score a model on the validation images of a data set: COCO's AP for a detector, accuracy for a classifier.

    A classifier may know more classes than the data set has; then only the scores of the data set's classes compete.

    Args:
        source: a model, or what `regard.load` takes.
        data: as for `regard.train`; that of the run if None, else ConfigError (C09).
        output: folder for `metrics.json` and pictures; if None a run that is `source`, whose report is made, or none.
        device: `cpu`, `cuda`, ...; `auto` leaves a model where it is and takes the best device for one that is loaded.
        batch_size: images per forward pass; if None 1 for detectors and 64 for classifiers. Only images of one size
            share a pass of a detector: scores do not depend on it.
        workers: processes that load images.
        precision: `fp32`; `tf32` on GPUs; `bf16` or `fp16`, mixed precision; `auto`: tf32 on CUDA, else fp32.
        classes: names of the classes of a name or path, as `regard.load` takes them.
        options: `DetectionEvaluationOptions` or `ClassificationEvaluationOptions`, else ConfigError (C09).
        tell: called with the scores as soon as they are known, before files are written.
        quiet: print no progress.

    Raises:
        ConfigError: a number is out of range (C03), the precision is unknown (C02) or not that of the device (C10).
        CheckpointError, DataError, MachineError: the model or the data set cannot be used.
    """
    text = _checked(source, data, batch_size, workers, quiet)
    from regard.evaluation.progress import show_progress
    from regard.results.reports.report import write_report
    from regard.safe_files import make_writable
    from regard.structures.precision import check_precision, inference_precision
    from regard.weights.load import load_on

    check_precision(precision)
    run = Path(source) if isinstance(source, (str, Path)) and (Path(source) / "checkpoints").is_dir() else None
    output = run if output is None else Path(output)
    net, place = load_on(source if classes is None else _named(source, classes, device), device)
    _check_words(net, text)
    if output is not None:  # before the work, which may take an hour
        make_writable(output)
    with show_progress(not quiet), inference_precision(precision, place):
        evaluation = _evaluate_on(net, text, options, run=run, device=place, batch_size=batch_size, workers=workers)
    if tell is not None:
        tell(evaluation.scores)
    if output is not None:
        evaluation.write(output, text)
        if (output / "config.yaml").is_file():  # a run: its report shows these scores
            write_report(output)
    return evaluation.scores


def _named(source: str | Path | Model, classes: str | Path | Sequence[str], device: str) -> Model:
    if not isinstance(source, (str, Path)):
        remedy = "name them when it is loaded: regard.load(path, classes=...)"
        raise ConfigError("classes name those of a file, not of a model", remedy=remedy, code="C09")
    from regard.training.distributed import choose_device
    from regard.weights.load import load

    return load(source, classes=classes).to(choose_device(device))


def _checked(
    source: str | Path | Model, data: str | Path | None, batch_size: int | None, workers: int, quiet: bool
) -> str:
    """Check numbers and paths, without torch. Returns the data as text."""
    if (batch_size is not None and batch_size < 1) or workers < 0:
        what = f"batch_size={batch_size} and workers={workers}, expected at least 1 and at least 0"
        raise ConfigError(what, code="C03")
    from regard.data.paths import check_data, data_text
    from regard.weights.source import check_source

    if isinstance(source, (str, Path)):
        check_source(source)
    if data is None:
        return _data_of(source, quiet)
    text = data_text(data)
    check_data(text)
    return text


def _data_of(source: str | Path | Model, quiet: bool) -> str:
    """Return the data that a run was trained on, and tell which they are."""
    from regard.data.paths import check_data
    from regard.results.reports.run_files import RunFiles

    path = Path(source) if isinstance(source, (str, Path)) else None
    runs = [] if path is None or not path.is_dir() else [path, path.parent.parent]  # of a checkpoint too
    run = next((run for run in runs if (run / "config.yaml").is_file()), None)
    if run is None:
        raise ConfigError("which data?", remedy="add --data FOLDER, or --data shapes", code="C09")
    data = str(RunFiles(run).settings.get("data"))
    try:
        check_data(data)
    except DataError as error:
        what = f"the data of the run are not there: {error.what}"
        remedy = "add --data FOLDER, or change to the folder where the training was started"
        raise DataError(what, where=error.where, remedy=remedy, code=error.code) from error
    if not quiet:
        print(f"data of the run: {data}", file=sys.stderr)
    return data


def _check_words(net: Model, data: str) -> None:
    """Check that generated data suit the model. Raises ConfigError (C09)."""
    from regard.models.build import Detector

    if isinstance(net, Detector) and data.partition(":")[0] == "digits":
        remedy = "use --data shapes, or a folder with boxes"
        raise ConfigError("digits have classes, and a detector needs boxes", where=data, remedy=remedy, code="C09")


def _evaluate_on(
    net: Model,
    data: str,
    options: DetectionEvaluationOptions | ClassificationEvaluationOptions | None,
    *,
    run: Path | None,
    device: torch.device,
    batch_size: int | None,
    workers: int,
) -> DetectorEvaluation | ClassifierEvaluation:
    from regard.evaluation import classification, detection
    from regard.models.build import Detector

    if isinstance(net, Detector):
        if isinstance(options, ClassificationEvaluationOptions):
            what = "probe, throughput, real and all_images are for classifiers"
            raise ConfigError(what, where=net.card.name, remedy="leave them out", code="C09")
        options = options or DetectionEvaluationOptions()
        return detection.evaluate_on(
            net, data, options, run=run, device=device, batch_size=batch_size or 1, workers=workers
        )
    if isinstance(options, DetectionEvaluationOptions):
        raise ConfigError("submission is for detectors", where=net.card.name, remedy="leave it out", code="C09")
    options = options or ClassificationEvaluationOptions()
    return classification.evaluate_on(net, data, options, device=device, batch_size=batch_size or 64, workers=workers)
