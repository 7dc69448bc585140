"""Images in tar files, as WebDataset writes them: `train-0000.tar` with `KEY.jpg` and `KEY.cls`, or class folders.

Each image is read from its position in the file. For that the members are listed once, and gzip files, which allow no
random access, are unpacked once. Both are cached below `$REGARD_HOME` by path, size and modification time of the file.
Images are not held in memory: the file cache of the operating system serves all workers.

At an address (see `regard.data.remote`) each image is one read of a range, and gzip files are refused.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import random
import re
import shlex
import shutil
import tarfile
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import numpy as np
from torch import Tensor

from regard.data.class_images.listing import LabelledImages, class_name, in_natural_order, read_labels_file
from regard.data.generated.cache import cache_folder
from regard.data.image_folders import SUFFIXES
from regard.data.images import decode_image
from regard.data.remote import RemoteFile, RemoteFolder
from regard.data.splits import Split, find_splits
from regard.errors import DataError, ImageError, MachineError
from regard.safe_files import atomic_file, replace_text

VERSION = 3  # part of the cache key: raise it when the content of an index changes
_SHARD = re.compile(r"(?:.*[-_])?(?P<split>[a-z]+)(?:[-_.]?\d+)?\.(?:tar|tar\.gz|tgz)")
_MAX_LABEL = 1000  # bytes of a .cls file
AT_ONCE = 16  # requests of a process for an address that wait for their answers at the same time


@dataclass(frozen=True)
class Shard:
    """The images of one tar file.

    Args:
        path: the user's file.
        tar: the unpacked file to read from.
        names: the member name of each image.
        labels: the text of its `.cls`, or the name of its folder.
        offsets, sizes: in `tar`, in bytes.
    """

    path: Path | RemoteFile
    tar: Path | RemoteFile
    names: list[str]
    labels: list[str]
    offsets: list[int]
    sizes: list[int]


class Shards:
    """`train-*.tar` and `val-*.tar`, also `.tar.gz` and `.tgz`, with an optional `labels.txt` in the same folder."""

    notice = None

    def __init__(self, root: Path | RemoteFolder, files: dict[Split, list[Path | RemoteFile]]) -> None:
        self.files = files
        self.names = read_labels_file(root / "labels.txt")

    @classmethod
    def find(cls, root: Path | RemoteFolder) -> Shards | None:
        """Return the tar files of a folder, None if it has none."""
        matches = [(path, match["split"]) for path in root.iterdir() if (match := _SHARD.fullmatch(path.name))]

        def look(name: str) -> list[Path | RemoteFile]:
            names = in_natural_order(path.name for path, word in matches if word == name and path.is_file())
            return [root / name for name in names]

        files = find_splits(look)
        return cls(root, files) if files else None

    @property
    def splits(self) -> dict[Split, str]:
        return {split: files[0].name for split, files in self.files.items()}

    def class_names(self, split: Split, faults: list[DataError] | None = None) -> tuple[str, ...]:
        return self.names or in_natural_order(self.labelled_images(split).class_names)

    def labelled_images(self, split: Split, faults: list[DataError] | None = None) -> LabelledImages:
        shards = open_shards(self.files[split])
        places = ((f"{shard.path}:{name}", name, text) for shard in shards for name, text in _labelled(shard))
        classes = [self._class_name(text, name, where) for where, name, text in places]
        return LabelledImages(ShardImages(shards), classes)

    def _class_name(self, text: str, name: str, where: str) -> str:
        found = class_name(text, self.names, where)
        folder = PurePosixPath(name).parent.name
        if self.names and folder in self.names and folder != found:
            what = f"label {text} is class {found!r:.40}, but the folder is that of class {folder!r:.40}"
            raise DataError(what, where=where, remedy="is labels.txt in the right order?", code="A48")
        return found


class ShardImages:
    """Images in tar files, numbered over all files."""

    def __init__(self, shards: Sequence[Shard]) -> None:
        self.shards = [(shard.path, shard.tar) for shard in shards]
        self.shard_of = np.repeat(np.arange(len(shards)), [len(shard.names) for shard in shards])
        self.names = [name for shard in shards for name in shard.names]
        self.offsets = np.array([offset for shard in shards for offset in shard.offsets], dtype=np.int64)
        self.sizes = np.array([size for shard in shards for size in shard.sizes], dtype=np.int64)

    @property
    def at_once(self) -> int:
        return AT_ONCE if isinstance(self.shards[0][1], RemoteFile) else 1

    def __len__(self) -> int:
        return len(self.names)

    def read(self, index: int) -> Tensor:
        tar, start, size = self.shards[self.shard_of[index]][1], int(self.offsets[index]), int(self.sizes[index])
        if isinstance(tar, RemoteFile):
            return decode_image(tar.read(start, start + size, self.path(index)), name=self.path(index))
        try:
            with tar.open("rb") as file:
                file.seek(start)
                data = file.read(size)
        except OSError as error:
            what = f"cannot read the shard: {error.strerror}"
            raise ImageError(what, where=tar, remedy="run again to unpack it again", code="I29") from error
        return decode_image(data, name=self.path(index))

    def path(self, index: int) -> str:
        return f"{self.shards[self.shard_of[index]][0]}:{self.names[index]}"

    def identity(self, index: int) -> str:
        return f"{self.names[index]}\0{self.sizes[index]}"


def open_shards(paths: Sequence[Path | RemoteFile]) -> list[Shard]:
    """Return the shards in the order of `paths`, see `open_shard`.

    Those at an address are listed several at once, in an order of chance: processes that share the cache then each list
    another part, and find the rest there.
    """
    if not isinstance(paths[0], RemoteFile):
        return [open_shard(path) for path in paths]
    order = random.Random().sample(range(len(paths)), len(paths))
    with ThreadPoolExecutor(AT_ONCE) as pool:
        found = dict(zip(order, pool.map(open_shard, [paths[number] for number in order]), strict=True))
    return [found[number] for number in range(len(paths))]


def open_shard(path: Path | RemoteFile) -> Shard:
    """List the images of a tar file, or read its cached list.

    Raises:
        DataError: the file is damaged or packed at an address, or an image in it has no class (A48).
        MachineError: the file cannot be read (I33 at an address), or the cache cannot be written.
    """
    packed = not path.name.endswith(".tar")
    key = json.dumps([VERSION, *_state(path)])
    stem = f"{path.name.partition('.')[0]}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    folder = cache_folder() / "shards"
    index = folder / f"{stem}.json"
    tar = folder / f"{stem}.tar" if packed else path
    cached = _read_index(index)
    if cached is not None and tar.is_file():
        return Shard(path, tar, **cached)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if isinstance(path, Path) and isinstance(tar, Path) and packed:
            with gzip.open(path) as source, atomic_file(tar) as temporary, temporary.open("wb") as target:
                shutil.copyfileobj(source, target, 1 << 20)
        with tar.open() if isinstance(tar, RemoteFile) else tar.open("rb") as file:
            columns = _list_members(str(path), file)
        replace_text(index, json.dumps(columns))
    except (tarfile.TarError, gzip.BadGzipFile, EOFError, zlib.error) as error:
        what = f"damaged tar file ({error})"
        raise DataError(what, where=str(path), remedy="copy or download it again") from error
    except MachineError:
        raise
    except OSError as error:
        what, remedy = f"cannot unpack or list {path}: {error.strerror}", "check permissions and free space there"
        raise MachineError(what, where=error.filename or folder, remedy=remedy) from error
    return Shard(path, tar, **columns)


def _state(path: Path | RemoteFile) -> tuple[object, ...]:
    """Return what changes with a shard: its address or path, its size, and when it was written.

    Raises:
        DataError: it is packed, at an address (A48).
        MachineError: the server of an address does not answer (I33).
    """
    if isinstance(path, Path):
        status = path.stat()
        return str(path.resolve()), status.st_size, status.st_mtime_ns
    if not path.name.endswith(".tar"):
        what = "a packed shard: at an address images are read from their places, which gzip does not allow"
        raise DataError(what, where=str(path), remedy=f"store plain tar: gunzip {shlex.quote(path.name)}", code="A48")
    return str(path), *path.state()


def _read_index(path: Path) -> dict | None:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def _list_members(path: str, tar: BinaryIO) -> dict[str, list]:
    """Return the columns of a `Shard`: names, labels, offsets and sizes."""
    columns: dict[str, list] = {"names": [], "labels": [], "offsets": [], "sizes": []}
    texts: dict[str, str] = {}
    places: dict[str, tuple[int, int]] = {}  # offset and size
    with tarfile.open(fileobj=tar, mode="r:") as file:
        for member in file:
            name = member.name.removeprefix("./")
            if member.islnk():  # tar stores the second of two hard links as a reference to the first
                place = places.get(member.linkname.removeprefix("./"))
            else:
                place = (member.offset_data, member.size) if member.isreg() else None
            if place is None or PurePosixPath(name).name.startswith("."):
                continue
            suffix = PurePosixPath(name).suffix.lower()
            if name in places and suffix in (".cls", *SUFFIXES):
                what = "two files of this name: which image has which class is not known"
                raise DataError(what, where=f"{path}:{name}", remedy="pack the shard anew, each name once", code="A48")
            places[name] = place
            if suffix == ".cls":
                source = file.extractfile(member)
                assert source is not None
                texts[name[: -len(suffix)]] = source.read(_MAX_LABEL).decode(errors="replace").strip()
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
            what = "image without a class: no .cls file of the same name and no folder"
            raise DataError(what, where=f"{path}:{name}", remedy="write its label into the .cls file", code="A48")
        columns["labels"].append(label)
    return columns


def _labelled(shard: Shard) -> zip[tuple[str, str]]:
    return zip(shard.names, shard.labels, strict=True)
