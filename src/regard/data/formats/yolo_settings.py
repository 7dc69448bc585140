"""What a `data.yaml` of YOLO says: the names of the classes, and where the images of each split are.

Paths in these files are often those of another machine or folder. Where one does not exist, the same path below the
folder of the data is used.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from regard.config import line_of, read_yaml
from regard.data.report import listed
from regard.data.splits import SPLIT_NAMES, Split, spellings
from regard.errors import ConfigError, DataError, counted

_NO_GAPS = "name every class from 0 on, also those that no label has"  # renumbering would change the labels
_USUAL = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")


@dataclass(frozen=True)
class YoloSettings:
    """The content of a settings file, checked.

    Args:
        root: the folder of the data.
        images: the folders and `.txt` lists of images of each split; an entry that does not exist is a text.
        keypoint_values: numbers of key points on each line, for data of poses.
    """

    path: Path
    root: Path
    names: list[str]
    images: dict[Split, list[Path | str]]
    keypoint_values: int | None

    def at(self, key: str) -> str:
        """Return the place of a key."""
        return line_of(self.path, key)


def find_settings(path: Path) -> YoloSettings | None:
    """Return the settings of a data set, None if there is no file with the names of classes.

    Args:
        path: a folder, or the settings file itself.

    Raises:
        DataError: the settings are wrong (A62, A25).
    """
    for file in _candidates(path):
        try:
            content = read_yaml(file)
        except ConfigError as error:
            if file == path or file.name in _USUAL:
                raise DataError(error.what, where=error.where, remedy=error.remedy, code="A62") from error
            continue
        if "names" in content:
            return _settings(file, content, path)
        if file == path:
            raise _unnamed(file, content)
    return None


def find_unnamed(folder: Path, *, by_name: bool) -> DataError | None:
    """Return the error for a settings file of a folder that does not name the classes; None without such a file.

    by_name: whether a usual name of the file suffices. Else it must say where images are, or have `nc`.
    """
    keys = ["nc", *(key for split in SPLIT_NAMES for key in spellings(split))]
    for file in _candidates(folder):
        with suppress(ConfigError):
            content = read_yaml(file)
            is_named = by_name and file.name in _USUAL
            if is_named or any(isinstance(content.get(key), str | list | int) for key in keys):
                return _unnamed(file, content)
    return None


def _unnamed(file: Path, content: dict[str, Any]) -> DataError:
    """Return the error for settings without names of classes."""
    what, remedy = "no names of the classes in the settings of the data", "add a line such as names: [cat, dog]"
    count, key = content.get("nc"), next((key for key in content if str(key).lower() == "names"), None)
    if key is not None:
        remedy = f"write names in place of {key}"
    elif type(count) is int and count > 0:
        what = f"{what}, only their number: nc is {count}"
        remedy = f"add a line such as names: [{', '.join(['cat', 'dog', '...'][:count])}]"
    return DataError(what, where=file, remedy=remedy, code="A62")


def existing(text: str, bases: Iterable[Path], root: Path) -> Path | None:
    """Return the path that a text means: below one of `bases`, else its longest end that exists below `root`."""
    parts = PurePosixPath(text.strip().replace("\\", "/")).parts
    for base in bases:
        if _exists(base / Path(*parts)):
            return base / Path(*parts)
    while parts and parts[0] in ("..", ".", "/"):
        parts = parts[1:]
    ends = (root.joinpath(*parts[start:]) for start in range(len(parts)) if ".." not in parts[start:])
    return next((end for end in ends if _exists(end)), None)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a text that is too long for a path
        return False


def _candidates(path: Path) -> Iterator[Path]:
    """Yield the files that may be the settings, best first."""
    if path.is_file():
        if path.suffix.lower() in (".yaml", ".yml"):
            yield path
        return
    files = sorted(file for pattern in ("*.yaml", "*.yml") for file in path.glob(pattern) if file.is_file())
    yield from sorted(files, key=lambda file: _USUAL.index(file.name) if file.name in _USUAL else len(_USUAL))
    yield from (file for name in _USUAL for file in sorted(path.glob(f"*/{name}")) if file.is_file())
    beside = path.absolute().parent / f"{path.absolute().name}.yaml"
    if beside.is_file():
        yield beside


def _settings(file: Path, content: dict[str, Any], path: Path) -> YoloSettings:
    names = _names(file, content)
    stated = content.get("path")
    bases = [file.parent]
    if isinstance(stated, str) and stated.strip():
        near = [file.parent / stated, file.parent.parent / stated, Path(stated)]
        bases = [*[base for base in near if _exists(base) and base.is_dir()][:1], *bases]
    root = bases[0] if path.is_file() else path
    images: dict[Split, list[Path | str]] = {}
    for split in SPLIT_NAMES:
        stated_entries = [entries for key in spellings(split) if (entries := _entries(file, content, key))]
        found = [[existing(entry, [*bases, root], root) or entry for entry in entries] for entries in stated_entries]
        whole = [entries for entries in found if not any(isinstance(entry, str) for entry in entries)]
        if found:
            images[split] = (whole or found)[0]
    shape = content.get("kpt_shape")
    poses = isinstance(shape, list) and len(shape) == 2 and all(type(value) is int for value in shape)
    return YoloSettings(file, root, names, images, shape[0] * shape[1] if poses and shape else None)


def _names(file: Path, content: dict[str, Any]) -> list[str]:
    names = content["names"]
    where = line_of(file, "names")
    if isinstance(names, dict):
        names = {int(key) if isinstance(key, str) and key.isdecimal() else key: name for key, name in names.items()}
        if sorted(names, key=str) != sorted(range(len(names)), key=str):
            what = f"classes with the numbers {listed(list(names))}"
            if all(type(label) is int and label >= 0 for label in names):
                gaps = [label for label in range(min(max(names), 1000)) if label not in names]
                raise DataError(f"{what}, without {listed(gaps)}", where=where, remedy=_NO_GAPS, code="A62")
            raise DataError(f"{what}, expected 0, 1, 2, ...", where=where, remedy=_NO_GAPS, code="A62")
        names = [names[label] for label in range(len(names))]
    if not isinstance(names, list) or not names:
        what = f"names is {names!r:.40}, expected a list of class names" if names else "names is empty"
        raise DataError(what, where=where, remedy="write names: [cat, dog]", code="A62")
    wrong = next((name for name in names if isinstance(name, bool | dict | list) or name is None or name == ""), None)
    if wrong is not None or None in names:
        raise DataError(f"the class name {wrong!r}, expected a text", where=where, remedy="quote it", code="A25")
    count = content.get("nc")
    if type(count) is int and count != len(names):
        what = f"nc is {count}, but there {counted(len(names), 'name')}"
        raise DataError(what, where=line_of(file, "nc"), remedy="correct nc or names", code="A62")
    return [str(name) for name in names]


def _entries(file: Path, content: dict[str, Any], key: str) -> Sequence[str]:
    value = content.get(key)
    entries = value if isinstance(value, list) else [] if value is None else [value]
    wrong = next((entry for entry in entries if not isinstance(entry, str)), None)
    if wrong is not None:
        what = f"{key} is {wrong!r:.40}, expected a folder or a list of folders"
        raise DataError(what, where=line_of(file, key), remedy="write paths", code="A62")
    return [entry for entry in entries if entry.strip()]
