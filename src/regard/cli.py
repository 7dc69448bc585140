"""The command line: the verbs of the Python API and nothing more. Torch is imported when a verb runs."""

from __future__ import annotations

import inspect
import itertools
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Literal, TextIO

from cyclopts import App, Parameter
from cyclopts.exceptions import CycloptsError

from regard import __version__
from regard.errors import ConfigError, RegardError, escape

app = App(
    name="regard",
    help="Vision models built on attention. With `--debug` any command shows where in the code an error arose.",
    version=__version__,
    suppress_keyboard_interrupt=False,
)
data_app = App(name="data", help="Make and check data sets.")
app.command(data_app)
study_app = App(name="study", help="Comparisons, each as one command.")
app.command(study_app)
distill_app = App(name="distill", help="Prepare the training of a student.")
app.command(distill_app)

Settings = Annotated[str, Parameter(help="Settings as key=value, such as lr=2e-4 model.num_queries=300.")]


@app.command
def quickstart(*, minutes: float = 4.0, output: Path = Path("runs/quickstart"), device: str = "auto") -> None:
    """Train a small detector on generated images, evaluate it and draw what it sees. No data, no download.

    Args:
        minutes: training time.
        output: folder of the run.
        device: auto, cpu, cuda, cuda:0 or mps.
    """
    from regard.studies.quickstart import quickstart

    quickstart(minutes, output, device)


@app.command
def train(
    model: str | None = None,
    *settings: Settings,
    data: str | None = None,
    epochs: int | None = None,
    output: Path | None = None,
    resume: bool = False,
    recipe: str | None = None,
    config: Path | None = None,
    teacher: str | None = None,
    quiet: bool = False,
) -> None:
    """Train a detector or a classifier: regard train detr_resnet50 --data my_coco/ --epochs 50 lr=1e-4.

    Args:
        model: a name from `regard models`.
        data: folder in COCO's layout, or with a folder for each class; `shapes`, or `digits` for classifiers.
        epochs: passes over the training images.
        output: the run's folder; runs/MODEL-N if not given.
        resume: go on with the run in --output.
        recipe: paper, finetune, fast, panoptic_boxes, panoptic_masks, small; of classifiers see the README.
        config: config.yaml of an earlier run, to train in the same way.
        teacher: what a classifier learns from: a model, run or file, regnety_160, timm/NAME, torchvision/NAME.
        quiet: print no progress.
    """
    from regard.runs import train

    # Words come in any order, and without a model for --resume and --config.
    words = [word for word in (model, *settings) if word is not None]
    names = [word for word in words if "=" not in word]
    if len(names) > 1:
        remedy = f"did you mean --data {names[1]}?" if data is None else None
        raise ConfigError(f"expected key=value, got {names[1]!r}", remedy=remedy, code="C01")
    settings = tuple(word for word in words if "=" in word)
    run = train(
        names[0] if names else None, data, epochs=epochs, output=output, resume=resume, recipe=recipe, config=config,
        teacher=teacher, overrides=settings, quiet=quiet,
    )  # fmt: skip
    print(run.folder)


@app.command
def evaluate(
    checkpoint: str,
    *,
    data: str,
    output: Path | None = None,
    device: str = "auto",
    batch_size: int | None = None,
    workers: int = 2,
    probe: bool = False,
    throughput: bool = False,
    real: Path | None = None,
    all_images: bool = False,
    submission: Path | None = None,
) -> None:
    """Scores on the validation images of a data set: COCO's of a detector, accuracy and the like of a classifier.

    Args:
        checkpoint: a run, a weights file, or the name of a model with released weights.
        data: as for train.
        output: folder for metrics.json and pictures; the run itself if not given.
        device: auto, cpu, cuda, cuda:0 or mps.
        batch_size: images at once; 1 for detectors and 64 for classifiers if not given.
        workers: processes that load images.
        probe: also how well a classifier's features tell the classes apart: nearest neighbours, a linear classifier.
        throughput: also a classifier's images per second.
        real: real.json, for the ReaL accuracy on ImageNet's validation images.
        all_images: judge on all images of class folders without train and val, not on the fifth for validation.
        submission: file for what a detector finds, boxes, masks or segments in COCO's format, with the data's own ids.
    """
    from rich.console import Console

    from regard.runs.run import evaluate

    evaluate(
        checkpoint,
        data,
        output=output,
        device=device,
        batch_size=batch_size,
        workers=workers,
        probe=probe,
        throughput=throughput,
        real=real,
        all_images=all_images,
        submission=submission,
        tell=lambda scores: Console().print(scores.table()),
    )


@app.command
def predict(
    checkpoint: str,
    *images: Path,
    output: Path | None = None,
    json: Path | None = None,
    threshold: float | None = None,
    segments: Literal["published", "clean"] = "published",
    top: int = 5,
    batch_size: int = 1,
    device: str = "auto",
) -> None:
    """Find objects in images, cut them into segments, or say what they show.

    Args:
        checkpoint: a run, a weights file, or the name of a model with released weights.
        images: image files and folders of them.
        output: folder for the images with boxes, segments or classes drawn.
        json: file for the results: COCO's format of detections or of segments, or the classes of each image.
        threshold: least score of an object, 0 to 1; 0.5 if not given, 0.85 or 0.3 for segments.
        segments: published, as in the authors' code, or clean: at full resolution and with stuff in one piece.
        top: how many classes a classifier gives.
        batch_size: images at once.
        device: auto, cpu, cuda, cuda:0 or mps.
    """
    from regard.prediction.files import predict_files

    for line in predict_files(
        checkpoint,
        images,
        output=output,
        json_file=json,
        threshold=threshold,
        segments=segments,
        top=top,
        batch_size=batch_size,
        device=device,
    ):
        print(line)


@app.command
def explain(
    checkpoint: str,
    image: Path,
    *,
    what: str | None = None,
    point: Annotated[tuple[float, float] | None, Parameter(negative="")] = None,
    layer: int | None = None,
    head: int | None = None,
    threshold: float | None = None,
    output: Path | None = None,
    device: str = "auto",
) -> None:
    """Show where a model looks: maps of attention over an image, or of a DETR where each query looks in a folder's.

    DETR: decoder, heads, encoder, layers, relevance. ViT and DeiT: rollout, heads, tokens, patch, relevance.
    Attention-augmented networks: layers, heads, relevance.

    Args:
        checkpoint: a run, a weights file, or the name of a model with released weights.
        image: an image file, or a folder of them for the places of a detector's queries.
        what: the kind of maps; the first above if not given.
        point: x and y in pixels of the image, from where to look: --point 120 80.
        layer: its number, from 0; the last if not given.
        head: its number, from 0; the mean of all if not given.
        threshold: least score of a detection that is explained, 0 to 1.
        output: picture, or .npz for the arrays; explanations/IMAGE-WHAT.png if not given.
        device: auto, cpu, cuda, cuda:0 or mps.
    """
    from regard.explanations.explain import explain, explain_queries

    if output is not None:
        if output.exists():
            raise ConfigError("this file is there already", where=output, remedy="name another one", code="C11")
        if output.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp", ".npz"):
            raise ConfigError("this is no picture and no .npz", where=output, remedy="name it .png or .npz", code="C09")
    if image.is_dir():
        options = {"what": what, "point": point, "layer": layer, "head": head, "threshold": threshold}
        if given := [name for name, value in options.items() if value is not None]:
            what = f"{given[0]} does not go with a folder, which shows where queries find their objects"
            raise ConfigError(what, remedy="leave it out, or name one image", code="C09")
        print(
            explain_queries(checkpoint, image, device=device).save(output or _free(f"{image.resolve().name}-queries"))
        )
        return
    found = explain(checkpoint, image, what, point=point, layer=layer, head=head, threshold=threshold, device=device)
    output = output or _free(f"{image.stem}-{found.what}")
    found.save(output)
    print(output)


def _free(name: str) -> Path:
    """A picture in `explanations` that is not there yet: `cat-decoder.png`, then `cat-decoder-2.png`."""
    names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
    return next(path for name in names if not (path := Path("explanations", f"{name}.png")).exists())


@app.command
def models(pattern: str = "*") -> None:
    """Every named model: parameters, weights, published scores.

    Args:
        pattern: which ones, such as "detr*".
    """
    from rich.console import Console

    from regard.models.catalog import table

    Console().print(table(pattern))


@distill_app.command
def cache(
    model: str,
    *settings: Settings,
    data: str,
    teacher: str,
    output: Path,
    views: int = 10,
    top: int | None = None,
    dtype: str = "float16",
    batch_size: int = 64,
    recipe: str | None = None,
) -> None:
    """Store a teacher's answers once, for any number of trainings: regard train MODEL --teacher OUTPUT ...

    Training on them sees `views` augmented views of each image, in turn. The same command goes on with one that was
    stopped.

    Args:
        model: the student, a name from `regard models`; its recipe says how images are augmented.
        data: as for train.
        teacher: a model, run or file, regnety_160, timm/NAME, torchvision/NAME.
        output: folder of the answers.
        views: of each image.
        top: keep the answers for so many likeliest classes, such as 10 of 1000; for all if not given.
        dtype: float16 or float32.
        batch_size: images at once.
        recipe: of the student, as for train.
    """
    from regard.recipes import ClassificationRecipe
    from regard.runs.classification import cache_answers
    from regard.runs.settings import resolve

    words = (f"teacher={teacher}", *settings)
    student = resolve(model, data, None, None, False, recipe, None, words)
    if not isinstance(student, ClassificationRecipe):
        raise ConfigError(f"{model} is no classifier", code="C09")
    shares = cache_answers(student, output, views=views, top=top, dtype=dtype, batch_size=batch_size)
    done = 0.0
    for share in shares:
        if share == 1.0 or share >= done + 0.05:
            print(f"{share:.0%}", file=sys.stderr)
            done = share
    print(output)


@study_app.command
def convergence(*, minutes: float = 4.0, output: Path = Path("runs/study-convergence")) -> None:
    """What anchors, denoising and focal loss do for DETR, on the same data in the same time.

    Args:
        minutes: training time of each model.
        output: folder of the study.
    """
    from regard.studies.convergence import convergence

    convergence(minutes, output)


@study_app.command
def attention(
    *,
    data: str = "digits",
    epochs: int = 12,
    train_images: int | None = None,
    seeds: int = 3,
    output: Path = Path("runs/study-attention"),
) -> None:
    """What attention and its position encodings do for a ResNet-20: accuracy over several seeds.

    Args:
        data: images with a class each, as for train.
        epochs: passes over the training images.
        train_images: train on so many, evenly from all classes; on all if not given.
        seeds: runs of each network.
        output: folder of the study; the same command goes on with one that was stopped.
    """
    from regard.studies.attention import attention

    attention(data, epochs, train_images, seeds, output)


@study_app.command
def distillation(
    *,
    data: str = "digits",
    epochs: int = 12,
    train_images: int | None = None,
    seeds: int = 3,
    output: Path = Path("runs/study-distillation"),
) -> None:
    """What a small transformer learns from a teacher, and how: tables 2 and 3 of the DeiT paper in small.

    Args:
        data: images with a class each, as for train.
        epochs: passes over the training images, of the teacher too.
        train_images: train on so many, evenly from all classes; on all if not given.
        seeds: runs of each student.
        output: folder of the study; the same command goes on with one that was stopped.
    """
    from regard.studies.distillation import distillation

    distillation(data, epochs, train_images, seeds, output)


@study_app.command
def explanations(*, minutes: float = 4.0, images: int = 60, output: Path = Path("runs/study-explanations")) -> None:
    """Whether maps of attention mean anything: deletion and insertion for what a small DETR finds.

    Args:
        minutes: training time.
        images: validation images whose detections are looked at.
        output: folder of the study; the same command goes on with one that was stopped.
    """
    from regard.studies.explanations import explanations

    explanations(minutes, images, output)


@study_app.command
def padding(*, data: str, batch_sizes: tuple[int, ...] = (1, 2, 8)) -> None:
    """What padding does to panoptic quality: perfect masks in batches, the padding cut off or squeezed in.

    Args:
        data: folder with panoptic annotations, as for train.
        batch_sizes: images of a batch, a row of the table for each.
    """
    from regard.studies.padding import padding

    padding(data, batch_sizes)


@study_app.command
def gallery(*, output: Path = Path("runs/gallery"), page: Path | None = None) -> None:
    """A page of pictures of what small models find and where they look, trained and drawn anew.

    Args:
        output: folder of the runs; the same command goes on with what was stopped.
        page: Markdown file to write, its pictures in a folder of its name; OUTPUT/gallery.md if not given.
    """
    from regard.studies.gallery import gallery

    gallery(output, page)


@app.command
def benchmark(name: str = "losses", *, data: Path | None = None, rounds: int = 10) -> None:
    """Speed next to the peers, in alternating rounds of one process.

    Args:
        name: `losses` (matching and losses of DETR), `masks` (its mask head), `loading` (decoding and augmentation),
            `attention` (all mechanisms on maps of four sizes), `vit` (vision transformers, and with merged tokens) or
            `distillation` (training with stored answers of a teacher next to a live one).
        data: folder of images for `loading`; generated photographs if not given.
        rounds: measurements of each.
    """
    from regard.benchmarks import run_benchmark

    run_benchmark(name, data, rounds)


@data_app.command
def check(folder: Path) -> None:
    """What is wrong with a data set: annotations or classes and, decoding each, images. Changes nothing.

    Args:
        folder: in COCO's layout, or with a folder for each class and the like.
    """
    from regard.data.check import check_folder

    for line in check_folder(folder):
        print(line)


@data_app.command
def shapes(folder: Path, *settings: Settings) -> None:
    """Generate images of shapes as a COCO folder.

    Args:
        folder: to make.
    """
    from regard.config import apply_overrides
    from regard.data.generated.shapes import ShapesConfig, write_shapes

    write_shapes(apply_overrides(ShapesConfig(), settings), folder)
    print(folder)


def main(arguments: list[str] | None = None) -> None:
    """Run a command. Errors with a known cause are one line on stderr and an exit code; `--debug` shows more."""
    words = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _warn
            warnings.filterwarnings("ignore", module="PIL")  # of odd metadata, which do not count here
            app(_plain_settings(words), exit_on_error=False, print_error=False)
    except RegardError as error:
        _leave(error.line, error.exit_code, debug)
    except CycloptsError as error:
        _leave(escape(f"error: {' '.join(str(error).split())}"), 2, debug)
    except KeyboardInterrupt:
        _leave("error: interrupted", 130, debug)
    except BrokenPipeError:  # the reader of our output, such as head, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        place = "" if error.filename is None else f" — {error.filename}"
        _leave(escape(f"error: {error.strerror or error}{place}"), 6, debug)
    except Exception as error:
        # The second is torch's for GPUs; for the CPU it has none of its own.
        known = type(error).__name__ in ("MemoryError", "OutOfMemoryError")
        if known or "can't allocate memory" in str(error):
            _leave("error: out of memory — use a smaller batch_size or smaller images", 6, debug)
        if debug:
            raise
        what = escape(f"{type(error).__name__}: {error}")
        _leave(f"error: {what} — this is not expected: please report it with the output of --debug", 1, debug)


def _plain_settings(words: Sequence[str]) -> list[str]:
    """`--lr=1e-4` and `--lr 1e-4` as `lr=1e-4` where the command takes settings and has no option of that name."""
    commands: dict[str, Callable[..., None]] = {"train": train, "data shapes": shapes, "distill cache": cache}
    command = commands.get(" ".join(words[: 2 if words[:1] in (["data"], ["distill"]) else 1]))
    if command is None:
        return list(words)
    options = {f"--{name}" for name in inspect.signature(command).parameters}
    options |= {f"--no-{name[2:]}" for name in options} | {"--help", "--version"}
    plain = []
    rest = iter(words)
    for word in rest:
        key, equals, value = word.partition("=")
        if not key.startswith("--") or key == "--" or key in options:
            plain.append(word)
            continue
        plain.append(f"{key[2:].replace('-', '_')}={value if equals else next(rest, '')}")
    return plain


def _warn(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """A warning as a line, without the place in the code."""
    print(escape(f"warning: {message}"), file=sys.stderr)


def _leave(line: str, code: int, debug: bool) -> None:
    if _is_first_to_tell():
        if debug:
            import traceback

            traceback.print_exc()
        print(line, file=sys.stderr)
    sys.exit(code)


def _is_first_to_tell() -> bool:
    """Of the processes that torchrun started one tells what is wrong; mostly it is the same with all."""
    own = os.environ.get("TORCHELASTIC_ERROR_FILE")  # in a folder of this process, in one of all
    if own is None:
        return True
    try:
        (Path(own).parent.parent / "told").touch(exist_ok=False)
    except FileExistsError:
        return False
    except OSError:
        return True
    return True


if __name__ == "__main__":
    main()
