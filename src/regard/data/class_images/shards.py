"""Images in tar files, as WebDataset writes them: `train-0000.tar` with `KEY.jpg` and `KEY.cls`, or class folders.

Every image is read on its own, from its place in the file. For that the members are listed once, and files packed
with gzip, in which no place can be found, are unpacked once; both are kept below `$REGARD_HOME`, by path, size and
time of change of the file. Images are never held in memory: the system's file cache serves all workers.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import shutil
import tarfile
import uuid
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from torch import Tensor

from regard.data.class_images.listing import (
    SPLIT_NAMES,
    Listing,
    Split,
    class_name,
    in_natural_order,
    read_labels_file,
)
from regard.data.generated.shapes import cache_folder
from regard.data.image_folders import SUFFIXES
from regard.data.images import decode_image
from regard.errors import DataError, MachineError

VERSION = 2  # part of the cache key: to be raised when an index is made in another way
_SHARD = re.compile(r"(?:.*[-_])?(?P<split>[a-z]+)(?:[-_.]?\d+)?\.(?:tar|tar\.gz|tgz)")
_LONGEST_LABEL = 1000  # bytes of a .cls file


@dataclass(frozen=True)
class Shard:
    """What lies where in one tar file.

    path: the file as the user has it. tar: the file to read from, unpacked. names, labels: of every image the member
    and the text of its `.cls`, or else the name of its folder. offsets, sizes: bytes in `tar`.
    """

    path: Path
    tar: Path
    names: list[str]
    labels: list[str]
    offsets: list[int]
    sizes: list[int]


class Shards:
    """`train-*.tar`, `val-*.tar`, also `.tar.gz` and `.tgz`, with an optional `labels.txt` beside them."""

    notice = None

    def __init__(self, root: Path, files: dict[Split, list[Path]]) -> None:
        self.root = root
        self.files = files
        self.names = read_labels_file(root / "labels.txt")

    @classmethod
    def find(cls, root: Path) -> Shards | None:
        matches = [(path, match["split"]) for path in root.iterdir() if (match := _SHARD.fullmatch(path.name))]
        files: dict[Split, list[Path]] = {}
        for split, names in SPLIT_NAMES.items():
            there = [[path for path, word in matches if word == name and path.is_file()] for name in names]
            chosen = next((paths for paths in there if paths), None)
            if chosen:
                files[split] = [root / name for name in in_natural_order(path.name for path in chosen)]
        return cls(root, files) if files else None

    @property
    def splits(self) -> dict[Split, str]:
        return {split: files[0].name for split, files in self.files.items()}

    def class_names(self, split: Split) -> tuple[str, ...]:
        return self.names or in_natural_order(self.listing(split).class_names)

    def listing(self, split: Split) -> Listing:
        shards = [open_shard(path) for path in self.files[split]]
        places = ((f"{shard.path}:{name}", name, text) for shard in shards for name, text in _labelled(shard))
        classes = [self._class_name(text, name, where) for where, name, text in places]
        return Listing(ShardImages(shards), classes)

    def _class_name(self, text: str, name: str, where: str) -> str:
        found = class_name(text, self.names, where)
        folder = PurePosixPath(name).parent.name
        if self.names and folder in self.names and folder != found:
            what = f"the label {text} means {found!r:.40}, but the folder is that of {folder!r:.40}"
            raise DataError(what, where=where, remedy="is labels.txt in the right order?", code="A48")
        return found


class ShardImages:
    """Images in tar files, by number over all files."""

    def __init__(self, shards: Sequence[Shard]) -> None:
        self.shards = [(shard.path, shard.tar) for shard in shards]
        self.shard_of = np.repeat(np.arange(len(shards)), [len(shard.names) for shard in shards])
        self.names = [name for shard in shards for name in shard.names]
        self.offsets = np.array([offset for shard in shards for offset in shard.offsets], dtype=np.int64)
        self.sizes = np.array([size for shard in shards for size in shard.sizes], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.names)

    def read(self, index: int) -> Tensor:
        tar = self.shards[self.shard_of[index]][1]
        try:
            with tar.open("rb") as file:
                file.seek(int(self.offsets[index]))
                data = file.read(int(self.sizes[index]))
        except OSError as error:
            what = f"the shard cannot be read: {error.strerror}"
            raise DataError(what, where=tar, remedy="start again to have it unpacked again", code="I29") from error
        return decode_image(data, name=self.path(index))

    def path(self, index: int) -> str:
        return f"{self.shards[self.shard_of[index]][0]}:{self.names[index]}"

    def identity(self, index: int) -> str:
        return f"{self.names[index]}\0{self.sizes[index]}"


def open_shard(path: Path) -> Shard:
    """List a tar file, or take the list that is kept of it.

    Raises:
        DataError: the file is damaged, or an image in it has no class. MachineError: no room to unpack it.
    """
    packed = path.suffix != ".tar"
    status = path.stat()
    key = json.dumps([VERSION, str(path.resolve()), status.st_size, status.st_mtime_ns])
    stem = f"{path.name.partition('.')[0]}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    folder = cache_folder() / "data" / "shards"
    index, tar = folder / f"{stem}.json", folder / f"{stem}.tar" if packed else path
    kept = _read_index(index)
    if kept is not None and tar.is_file():
        return Shard(path, tar, **kept)
    try:
        if packed:
            _unpack(path, tar)
        columns = _list_members(path, tar)
    except (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error) as error:
        what = f"damaged tar file ({error})"
        raise DataError(what, where=path, remedy="copy or download it again") from error
    except OSError as error:
        raise MachineError(f"cannot read or unpack {path}: {error.strerror}", where=error.filename or folder) from error
    _write_whole(index, json.dumps(columns))
    return Shard(path, tar, **columns)


def _read_index(path: Path) -> dict | None:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def _unpack(path: Path, tar: Path) -> None:
    temporary = _beside(tar)
    try:
        with gzip.open(path) as source, temporary.open("wb") as target:
            shutil.copyfileobj(source, target, 1 << 20)
        temporary.replace(tar)
    finally:
        temporary.unlink(missing_ok=True)


def _write_whole(path: Path, text: str) -> None:
    temporary = _beside(path)
    try:
        temporary.write_text(text)
        temporary.replace(path)
    except OSError as error:
        raise MachineError(f"cannot write: {error.strerror}", where=path, remedy="make room there") from error
    finally:
        temporary.unlink(missing_ok=True)


def _beside(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.with_name(f"{path.name}.tmp-{uuid.uuid4().hex}")


def _list_members(path: Path, tar: Path) -> dict[str, list]:
    """The columns of a `Shard`."""
    columns: dict[str, list] = {"names": [], "labels": [], "offsets": [], "sizes": []}
    texts: dict[str, str] = {}
    places: dict[str, tuple[int, int]] = {}  # offset and size
    with tarfile.open(tar, "r:") as file:
        for member in file:
            name = member.name.removeprefix("./")
            if member.islnk():  # tar stores the second of two hard links as the name of the first
                place = places.get(member.linkname.removeprefix("./"))
            else:
                place = (member.offset_data, member.size) if member.isreg() else None
            if place is None or PurePosixPath(name).name.startswith("."):
                continue
            places[name] = place
            suffix = PurePosixPath(name).suffix.lower()
            if suffix == ".cls":
                source = file.extractfile(member)
                assert source is not None
                texts[name[: -len(suffix)]] = source.read(_LONGEST_LABEL).decode(errors="replace").strip()
            elif suffix in SUFFIXES:
                columns["names"].append(name)
                columns["offsets"].append(place[0])
                columns["sizes"].append(place[1])
    for name in columns["names"]:
        place_of = PurePosixPath(name)
        # WebDataset's keys end at the first dot: 01.left.jpg belongs to 01.cls.
        keys = (name[: -len(place_of.suffix)], place_of.with_name(place_of.name.partition(".")[0]).as_posix())
        label = next((texts[key] for key in keys if texts.get(key)), place_of.parent.name)
        if not label:
            what = "image without a class: neither a .cls file of the same name nor a folder"
            raise DataError(what, where=f"{path}:{name}", remedy="write its label into the .cls file", code="A48")
        columns["labels"].append(label)
    return columns


def _labelled(shard: Shard) -> zip[tuple[str, str]]:
    return zip(shard.names, shard.labels, strict=True)
