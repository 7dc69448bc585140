"""Name the classes of a model from a text file or a list: files of other projects hold no names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from regard.config import near_path
from regard.data.report import listed
from regard.errors import CheckpointError, DataError, counted
from regard.models.build import Detector, Model

_EXPECTED = "name a text file with one class name a line"
_MAX_BYTES = 16 << 20
_UNUSED = ("N/A", "-", "__background__", "")  # usual marks of ids without a class


def name_classes(net: Model, classes: str | Path | Sequence[str]) -> None:
    """Name the classes of a model, in place.

    The number of names must be that of the model's classes. Labels of detectors of the DETR authors' code are category
    ids, which often begin at 1, so that label 0 is unused. A detector therefore also takes one name less: the first
    name is then that of label 1. `N/A`, `-`, `__background__` or an empty line stand for an id without a class.

    Args:
        net: the model.
        classes: a text file in UTF-8 with one name a line, in the order of the labels; or the names.

    Raises:
        CheckpointError: there is no such file (K01), or the number of names does not fit (K08).
        DataError: two classes have one name (A25).
    """
    if isinstance(classes, (str, Path)):
        where, names = str(classes), _read(Path(classes))
    else:
        where, names = "classes", [str(name).strip() for name in classes]
    count = len(net.card.categories)
    shifted = isinstance(net, Detector) and len(names) == count - 1
    if len(names) != count and not shifted:
        wanted = f"{count} (or {count - 1} if label 0 is unused)" if isinstance(net, Detector) else str(count)
        found = counted(len(names), "class name")
        what = f"{found}, expected {wanted} for {net.card.name}: one a line, in the order of the labels"
        own = [category.name for category in net.card.categories]
        is_named = any(not name.isdecimal() for name in own)
        remedy = f"leave them out: the model knows {listed(own)}" if is_named else _EXPECTED
        raise CheckpointError(what, where=where, remedy=remedy, code="K08")
    names = ["", *names] if shifted else names
    names = [f"unused {label}" if name in _UNUSED else name for label, name in enumerate(names)]
    name, most = Counter(names).most_common(1)[0]
    if most > 1:
        what = f"{most} classes have the name {name!r:.60}"
        raise DataError(what, where=where, remedy="give each class its own name", code="A25")
    categories = (replace(old, name=name) for old, name in zip(net.card.categories, names, strict=True))
    net.card = replace(net.card, categories=tuple(categories))


def _read(path: Path) -> list[str]:
    """Return the lines of a text file without spaces around them and without empty lines at the end."""
    try:
        if not path.is_file():
            if path.exists():
                raise CheckpointError("no text file", where=path, remedy=_EXPECTED, code="K01")
            raise CheckpointError("no such file", where=path, remedy=near_path(path, otherwise=_EXPECTED), code="K01")
        if path.stat().st_size > _MAX_BYTES:
            raise CheckpointError("too large for a list of names", where=path, code="K08")
        text = path.read_text(encoding="utf-8-sig").rstrip()
    except (OSError, UnicodeDecodeError) as error:
        remedy = "save it as text in UTF-8"
        raise CheckpointError("no text in UTF-8", where=path, remedy=remedy, code="K01") from error
    return [line.strip() for line in text.splitlines()] if text else []
