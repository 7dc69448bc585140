"""Errors that a user can act on.

Every message is one line: what was found, where, and what to do. The command line prints this line and ends with
`exit_code`; `--debug` adds the traceback.
"""

from __future__ import annotations

import difflib
import importlib.util
import shlex
from collections.abc import Sequence
from pathlib import Path

# What each code means; `docs/error_page.py` makes a page from it.
CODES = {
    "I01": "The image file is empty.",
    "I02": "The image file ends within its header.",
    "I03": "The file is not an image.",
    "I04": "The image file is cut off.",
    "I05": "The JPEG file lacks its last bytes.",
    "I06": "The progressive JPEG file is cut off.",
    "I07": "The image file is damaged.",
    "I08": "A checksum in the PNG file is wrong.",
    "I09": "The PNG file is cut off.",
    "I13": "The grey image has 32-bit or signed integers, which define no white.",
    "I14": "The image has floating-point pixels outside 0 to 1.",
    "I16": "The GIF file declares more pixels than are accepted.",
    "I17": "The image declares more pixels than are accepted.",
    "I18": "The image has more pixels than are accepted.",
    "I19": "The PNG file holds more compressed text than is accepted.",
    "I20": "The image has no pixels.",
    "I21": "The image file has more than one frame; the first is used.",
    "I22": "EXIF turns the image, and boxes may have been drawn before that.",
    "I24": "The image has a side of a few pixels.",
    "I27": "The path cannot be read as a regular file.",
    "I29": "The image file does not exist, or changed while it was read.",
    "I30": "The same image, or almost the same, is there more than once.",
    "I31": "An array or tensor given as an image has the wrong shape, type or values.",
    "I32": "The image format is not supported.",
    "I33": "What is behind an address cannot be fetched.",
    "I34": "The file is not a video, or is damaged.",
    "A01": "The annotation file is empty.",
    "A02": "The annotation file is not valid JSON.",
    "A03": "The annotation file starts with a byte-order mark.",
    "A04": "The annotation file holds NaN, Infinity or a number that is too large.",
    "A05": "The annotation file is nested too deeply or holds a number with too many digits.",
    "A06": "A JSON object of the annotation file has a duplicate key.",
    "A07": "The annotation file does not have the structure of COCO.",
    "A08": "The annotation file lists no image.",
    "A09": "No image of a training split has an annotation.",
    "A11": "A box reaches outside its image and is clipped to it.",
    "A12": "A box lies outside its image and is not used.",
    "A14": "A box has a negative width or height.",
    "A15": "A box has no area and is not used.",
    "A16": "A box holds a value that is not finite.",
    "A17": "A box is not a list of four numbers.",
    "A18": "Boxes look like corners (x1, y1, x2, y2); COCO has (x, y, width, height).",
    "A19": "Boxes look like fractions of the image; COCO has pixels.",
    "A20": "An annotation has a category id or label that does not exist.",
    "A21": "Category ids of objects count from 0, those of categories from 1.",
    "A22": "An id is not a whole number.",
    "A24": "Two categories have the same id.",
    "A25": "A class name is missing or not unique.",
    "A26": "The classes of two splits, or of model and data, differ.",
    "A27": "An annotation has the id 0.",
    "A28": "Two annotations have the same id.",
    "A29": "Two images have the same id or file.",
    "A30": "An annotation belongs to an image that does not exist.",
    "A31": "Image files that the annotations name are missing.",
    "A32": "A file name leads outside the data folder.",
    "A33": "An image has another size than the annotations say.",
    "A34": "`iscrowd` is missing or not 0 or 1.",
    "A36": "An area is missing or does not fit its segment.",
    "A37": "A polygon or mask cannot be used.",
    "A38": "A polygon reaches far outside its image.",
    "A39": "The run lengths of a mask do not fit its size.",
    "A40": "A mask has another size than its image.",
    "A41": "Boxes and masks of objects disagree.",
    "A42": "Panoptic annotations and their PNG files disagree.",
    "A43": "An image has more objects than the model has queries.",
    "A45": "There is only one class.",
    "A46": "A class has no example in a split.",
    "A47": "Predictions cannot be scored: wrong values, images or classes.",
    "A48": "The folder does not hold a classification data set that can be used.",
    "A49": "A row of a CSV list or a list of labels is wrong.",
    "A50": "The annotation file is larger than is accepted.",
    "A52": "Two objects of an image have the same class and box.",
    "A61": "There is no validation split; a fifth of the images, chosen by their content, is used for it.",
    "A62": "A line of a YOLO label file, or a YOLO settings file, is wrong.",
    "A63": "A Pascal VOC file is wrong.",
    "A64": "The folder does not hold a detection data set that can be used.",
    "C01": "A name or setting is unknown.",
    "C02": "A setting has the wrong type or an unknown value.",
    "C03": "A number is out of range.",
    "C04": "The image size is not a multiple of the patch size.",
    "C05": "Widths and heads do not fit each other.",
    "C07": "The classes of teacher and student differ.",
    "C08": "A size of a detector is less than 1.",
    "C09": "Settings or options contradict each other.",
    "C10": "The device, or the precision on it, is not available.",
    "C11": "The output exists already.",
    "C12": "The settings file is not plain YAML, or is too large.",
    "C13": "The run, or the shards to join, began with other settings, data or processes.",
    "K01": "There is no such model, run or weights file.",
    "K02": "The folder does not hold what is loaded from it.",
    "K03": "The weights file is empty.",
    "K04": "The weights file is cut off.",
    "K05": "A checksum is wrong: the file is damaged.",
    "K06": "The file does not hold weights.",
    "K07": "The weights belong to another model.",
    "K08": "The weights are for another number of classes.",
    "K09": "The weights are for another image size.",
    "K10": "Two tensors have the same name once prefixes are removed.",
    "K11": "The weights hold values that are not finite.",
    "K12": "The file would run code when it is loaded, which Regard refuses.",
    "K13": "The file is a pickled module, which Regard does not load.",
    "K14": "The weights file would unpack to more than is accepted.",
    "K15": "The weights file holds more tensors than are accepted.",
    "K17": "A checkpoint lacks its manifest.",
    "K18": "A checkpoint is incomplete.",
    "K19": "A newer version of Regard wrote the file.",
    "K20": "The classes of model and data differ.",
    "K21": "An exported file does not compute what its model does, or scores too low.",
    "T05": "The disk is full.",
    "T06": "A file or folder cannot be written.",
    "T07": "The loss or a gradient is no longer finite.",
    "T08": "The gradient overflows fp16 in every step.",
    "T09": "Matching got costs that are not finite.",
    "T10": "A process that loads images was killed.",
    "T12": "No image came from the processes that load them.",
    "T13": "Another process of the training was killed, or its machine does not answer.",
    "T14": "Another process is training in the same folder.",
    "T15": "A tracker of `log_to` is not installed or cannot start.",
    "T16": "`compile=true` needs a C++ compiler on a CPU.",
    "T18": "Memory ran out.",
    "T19": "The data are no longer those that the run began with.",
}


IS, HAS, WAS = ("is", "are"), ("has", "have"), ("was", "were")  # for `counted`


class RegardError(Exception):
    """A failure with a known cause.

    Args:
        what: what was found and what was expected, without a full stop.
        where: the file and the place in it (`ann.json:/annotations/3/bbox`, `cfg.yaml:12`), or the setting (`lr`).
        remedy: what the user can do.
        code: a key of `CODES`, printed as `error I04`.
    """

    exit_code = 1

    def __init__(
        self,
        what: str,
        *,
        where: str | Path | None = None,
        remedy: str | None = None,
        code: str | None = None,
    ) -> None:
        self.what = what
        self.where = None if where is None else str(where)
        self.remedy = remedy
        self.code = code
        parts = [part for part in (what, self.where, remedy) if part]
        super().__init__(escape(" — ".join(parts)))

    @property
    def line(self) -> str:
        """The line that the command line prints."""
        return f"error {self.code}: {self}" if self.code else f"error: {self}"

    def __reduce__(self) -> tuple:
        # Data-loading workers send exceptions to the main process; the default drops keyword arguments.
        return _rebuild, (type(self), self.what, self.where, self.remedy, self.code)


class ConfigError(RegardError, ValueError):
    """A setting, a name or a combination of them is wrong."""

    exit_code = 2


class DataError(RegardError, ValueError):
    """An image, an annotation or a data set is wrong."""

    exit_code = 3


class ImageError(DataError):
    """One image file cannot be used; the rest of its data set may be fine."""


class CheckpointError(RegardError):
    """A file with weights or training state is wrong."""

    exit_code = 4


class ArchitectureError(CheckpointError):
    """The tensors of a file do not tell the model they belong to, or belong to another one."""


class NewerVersionError(CheckpointError):
    """A newer version of Regard wrote the file."""


class DivergedError(RegardError, FloatingPointError):
    """A prediction, a loss or a gradient is no longer finite."""

    exit_code = 5


class MachineError(RegardError, OSError):
    """The machine cannot do it: device, disk, port, network or missing package."""

    exit_code = 6


class Stopped(RegardError):
    """A signal stopped a training, whose state is saved: no failure.

    The exit code is 128 + the number of the signal.

    Args:
        number: of the signal.
        step: optimizer steps done.
        run: the run's folder.
        processes: how many train together; another number would have other batches.
    """

    def __init__(self, number: int, step: int, run: Path, processes: int = 1) -> None:
        launcher = "" if processes == 1 else f"torchrun --nproc-per-node {processes} -m "
        remedy = f"{launcher}regard train --output {shlex.quote(str(run))} --resume"
        super().__init__(f"stopped at step {step}, continue with:", remedy=remedy)
        self.exit_code = 128 + number

    @property
    def line(self) -> str:
        """Two lines: the second is a command to paste."""
        return f"{escape(self.what)}\n{self.remedy}"


def install_command(*packages: str) -> str:
    """Return the command that installs packages into this environment: environments made by uv have no pip."""
    pip = "pip" if importlib.util.find_spec("pip") else "uv pip"
    return f"{pip} install {' '.join(packages)}"


def cause(error: object) -> str:
    """Return why something failed, such as "Connection refused", without the errors that are wrapped around it."""
    inner = getattr(error, "reason", None)
    if isinstance(inner, (Exception, str)) and inner:
        return cause(inner)
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return text.splitlines()[0][:120]


def counted(
    number: float, one: str, many: str | None = None, *, of: int | None = None, verb: tuple[str, str] | None = None
) -> str:
    """Return a number with its noun, and with a verb that agrees: `1 class`, `2 classes are`, `1 of 3 classes is`.

    Numbers that are not whole have three digits: `2.5 minutes`.

    Args:
        one: the noun.
        many: the noun for other numbers than 1; `one` with an s if None.
        of: the whole that the number is a part of.
        verb: for one and for many, such as `IS`.
    """
    noun = one if (number if of is None else of) == 1 else many or f"{one}s"
    shown = f"{number:,}" if isinstance(number, int) else f"{number:.3g}"
    text = f"{shown} {noun}" if of is None else f"{shown} of {of:,} {noun}"
    return text if verb is None else f"{text} {verb[number != 1]}"


def escape(text: str) -> str:
    """Return `text` as one line without control characters: file names may hold newlines and terminal codes."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _rebuild(
    kind: type[RegardError], what: str, where: str | None, remedy: str | None, code: str | None
) -> RegardError:
    return kind(what, where=where, remedy=remedy, code=code)


def unknown_name(
    kind: str,
    name: str,
    known: Sequence[str],
    *,
    where: str | Path | None = None,
    code: str | None = None,
    remedy: str | None = None,
) -> ConfigError:
    """Return the error for an unknown name. It offers the nearest known one, else `remedy`, else all of them."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.55)
    if near:
        remedy = f"did you mean {near[0]!r}?"
    elif remedy is None:
        remedy = f"known: {', '.join(known)}"
    return ConfigError(f"unknown {kind} {name!r}", where=where, remedy=remedy, code=code)


def two_digits(score: float) -> str:
    """Return a score 0..1 with two decimals, and one below 0.1 with two digits: `0.30`, `0.034`, `0.0042`."""
    return f"{score:.2f}" if score >= 0.1 or score == 0 else f"{score:.2g}"
