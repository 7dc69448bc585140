"""Words of a command in the wrong place: images before the model, data as the model, a model as the data.

Torch is not imported, so that these are answered at once.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from regard.cli.groups import app
from regard.cli.options import is_there
from regard.data.sources import camera_number, is_many, is_streamed, is_video
from regard.errors import ConfigError
from regard.models.catalog import list_models
from regard.weights.source import check_source

WEIGHTS = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".onnx")
EXAMPLE = "detr_resnet50"  # a model that needs no training


def check_places(words: Sequence[str]) -> None:
    """Check that the words of predict, explain and evaluate stand in their places.

    Raises:
        ConfigError: they are swapped, or the model or the images are missing (C09, K02); the remedy is a command.
        CycloptsError: the words are no command.
    """
    if list(words[:1]) not in (["predict"], ["explain"], ["evaluate"]):
        return
    _, bound, _ = app.parse_args(list(words), exit_on_error=False, print_error=False)
    given = bound.arguments
    if "checkpoint" not in given:  # --help
        return
    if words[0] == "evaluate":
        _check_data(words, given["checkpoint"], given.get("data"))
    else:
        images = given.get("images", (given["image"],) if "image" in given else ())
        _check_images(words, given["checkpoint"], [str(image) for image in images])


def _check_data(words: Sequence[str], first: str, data: str | None) -> None:
    if is_model(first):
        return
    if data is None and Path(first).is_dir():
        what = "no model: the folder is no run and holds no weights"
        remedy = f"name the model first: {_command(_before(words, first, 'RUN', '--data'))}"
        raise ConfigError(what, where=first, remedy=remedy, code="K02")
    if data is not None and is_there(data) and is_model(data):
        raise _swapped(words, first, data, "the model comes first, the data after --data")


def _check_images(words: Sequence[str], first: str, images: Sequence[str]) -> None:
    if is_model(first):
        if not images:
            remedy = f"name it after the model: {_command([*words, 'IMAGE'])}"
            raise ConfigError("which image?", remedy=remedy, code="C09")
        return
    for image in images:
        if is_model(image):
            if not is_image(first):
                return  # the error about the first word says more
            raise _swapped(words, first, image, "the model comes first, then the images")
        if Path(image).suffix.lower() in WEIGHTS:
            check_source(image)  # refuses what is not there
    if is_image(first) and not (Path(first).is_dir() and images):
        remedy = f"name the model first: {_command(_before(words, first, EXAMPLE))}"
        raise ConfigError("an image where the model is expected", where=first, remedy=remedy, code="C09")
    if is_there(first) and not Path(first).is_dir():
        what = "neither a model (a run or a weights file) nor an image"
        remedy = f"name the model first, then images: regard {words[0]} {EXAMPLE} IMAGE"
        raise ConfigError(what, where=first, remedy=remedy, code="C09")


def check_name(model: str) -> None:
    """Check that the model to train is not a path: weights to start from, data or settings.

    Raises:
        ConfigError: it is one (C01).
    """
    path = Path(model)
    if model in list_models() or not is_there(model):
        return
    if is_model(model):
        remedy = f"set start_from={model}" + (f", or resume it: --output {model} --resume" if path.is_dir() else "")
    else:
        remedy = f"did you mean --{'config' if path.name == 'config.yaml' else 'data'} {model}?"
    raise ConfigError("a path where the name of a model is expected", where=model, remedy=remedy, code="C01")


def check_new_file(output: Path, *suffixes: str) -> None:
    """Check that a file to write has one of the suffixes, and that there is nothing of its name.

    Raises:
        ConfigError: there is (C11), or it has another suffix (C09).
    """
    if output.is_dir():
        remedy = f"name a file in it: --output {shlex.quote(str(output / f'NAME{suffixes[0]}'))}"
        raise ConfigError("a folder where a file is expected", where=output, remedy=remedy, code="C11")
    if output.exists():
        raise ConfigError("the file exists", where=output, remedy="name another one", code="C11")
    if output.suffix.lower() not in suffixes:
        remedy = f"name it {', '.join(suffixes[:-1])} or {suffixes[-1]}"
        raise ConfigError("unsupported output suffix", where=output, remedy=remedy, code="C09")


def is_model(word: str) -> bool:
    """Return whether a word names a model: a run, a checkpoint, a folder or file of weights, or a name."""
    path = Path(word)
    if not is_there(word):
        return word in list_models()
    if path.is_dir():
        parts = ("checkpoints", "manifest.json", "model.safetensors", "pytorch_model.bin")
        return any((path / name).exists() for name in parts)
    return path.suffix.lower() in WEIGHTS


def is_image(word: str) -> bool:
    """Return whether a word names images that are there: a file, a folder with images, an address or a camera."""
    from regard.data.image_folders import SUFFIXES  # imports Pillow

    if is_streamed(word) or camera_number(word) is not None:
        return True
    path = Path(word)
    if is_there(word) and path.is_dir():
        return any(entry.suffix.lower() in SUFFIXES for entry in path.iterdir())
    return is_many(word) or (is_there(word) and (path.suffix.lower() in SUFFIXES or is_video(word)))


def _swapped(words: Sequence[str], first: str, model: str, order: str) -> ConfigError:
    """Return the error for words in the wrong order, with the command as it should be."""
    swap = {first: model, model: first}
    command = _command([words[0], *(swap.get(word, word) for word in words[1:])])
    return ConfigError(f"swapped: {order}", remedy=command, code="C09")


def _before(words: Sequence[str], word: str, *others: str) -> list[str]:
    """Return the words with others before one of them."""
    at = list(words).index(word) if word in words else 1
    return [*words[:at], *others, *words[at:]]


def _command(words: Sequence[str]) -> str:
    return shlex.join(["regard", *words])
