"""YOLO data: images, a text file of labels for each, and the names of the classes.

Found are the trees of Ultralytics (`images/train`, `labels/train`) and Roboflow (`train/images`, `train/labels`), trees
without splits (`images`, `labels`), images with their labels beside them (Darknet, CVAT), and whatever a `data.yaml`
names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from regard.data.formats.tables import DetectionTables, TableBuilder, measure
from regard.data.formats.text_lines import read_class_names, read_text
from regard.data.formats.yolo_labels import read_labels
from regard.data.formats.yolo_settings import YoloSettings, existing, find_settings, find_unnamed
from regard.data.image_folders import SUFFIXES, find_images
from regard.data.report import listed
from regard.data.splits import Part, find_parts
from regard.errors import HAS, IS, DataError, counted

# Folders of images and of labels; {} is the name of the split.
_TREES = (("images/{}", "labels/{}"), ("{}/images", "{}/labels"), ("images/{}2017", "labels/{}2017"), ("{}", "{}"))
_WHOLE_TREES = (("images", "labels"), ("obj_train_data", "obj_train_data"), (".", "labels"), (".", "."))
_NAME_FILES = ("classes.txt", "obj.names", "labels/classes.txt", "labels.txt", "*.names", "*/classes.txt")
_NOT_LABELS = frozenset({"classes", "labels", "notes", "train", "val", "valid", "test", "README"})


class YoloFiles:
    """A folder with YOLO data, see `Source`.

    Args:
        images: the folders and `.txt` lists of images of each part; an entry that does not exist is a text.
        names: of the classes. names_at: their place.
    """

    format = "YOLO"

    def __init__(
        self,
        root: Path,
        images: Mapping[Part, Sequence[Path | str]],
        names: Sequence[str],
        names_at: str,
        settings: YoloSettings | None,
    ) -> None:
        self.root = root
        self.images = images
        self.names = names
        self.names_at = names_at
        self.settings = settings

    @classmethod
    def find(cls, path: Path) -> YoloFiles | None:
        """Return the data of a folder or of a `data.yaml`, None if there are none in this format.

        Raises:
            DataError: the settings file is wrong (A62), or there are labels but no names of classes (A62).
        """
        if path.is_file() and path.suffix.lower() not in (".yaml", ".yml"):
            return None
        settings = find_settings(path)
        root = path if settings is None else settings.root
        files = [] if settings else [file for name in _NAME_FILES for file in sorted(root.glob(name))]
        trees = _trees(root, named=bool(settings or files))
        if settings is not None:
            images: dict[Part, Sequence[Path | str]] = {}
            for part in ("train", "val"):
                stated = settings.images.get(part)
                chosen = stated if stated and not _is_missing(stated) else trees.get(part, stated)
                if chosen:
                    images[part] = chosen
            if _is_missing(images.get("train")) and images.get("val") and not _is_missing(images["val"]):
                del images["train"]  # data to evaluate on
            images = images or {**trees}
            return cls(root, images, settings.names, settings.at("names"), settings) if images else None
        error = None if files and trees else find_unnamed(path, by_name=bool(trees))
        if error is not None:
            raise error
        if not trees:
            return None
        if not files:
            what = "YOLO labels, but no names of the classes; looked for data.yaml, classes.txt and obj.names"
            remedy = f"write one class name a line into {root / 'classes.txt'}"
            raise DataError(what, where=root, remedy=remedy, code="A62")
        return cls(root, {**trees}, read_class_names(files[0]), str(files[0]), None)

    @property
    def parts(self) -> dict[Part, str]:
        return {part: ", ".join(map(str, entries)) for part, entries in self.images.items()}

    def tables(self, part: Part, faults: list[DataError] | None = None) -> DetectionTables:
        """Read the labels of a part, see `Source`."""
        images, listed_only = self._images(part)
        path = self.root if self.settings is None else self.settings.path
        builder = TableBuilder(path, self.names, self.names_at)
        values = None if self.settings is None else self.settings.keypoint_values
        labels = _LabelFiles(self.root)
        without = []
        sizes = measure(images, faults)
        for image in images:
            file, size = labels.of(image), sizes.get(image)
            if size is None:
                continue  # the image cannot be opened, and faults are gathered
            builder.add_image(image, size, str(file or image))
            if file is None:
                without.append(image)
                continue
            for found in read_labels(file, size, self.names, keypoint_values=values, faults=faults):
                place = f"{file}:{found.line}"
                builder.add_object(found.label, found.box_xywh, place, polygons=found.polygons, area=found.area)
        if images and len(without) == len(images):
            looked = ", ".join(map(str, labels.looked_in(images[0])))
            what = f"no label file for {counted(len(images), 'image')}; looked for {images[0].stem}.txt in {looked}"
            raise DataError(what, where=images[0].parent, remedy="add the labels", code="A64")
        if without:
            what = f"{counted(len(without), 'image', of=len(images), verb=HAS)} no label file: taken as without objects"
            builder.note("A62", "warn", what, without[0], len(without))
        orphans = [] if listed_only else labels.unused()
        if orphans:
            what = f"{counted(len(orphans), 'label file', verb=HAS)} no image"
            builder.note("A30", "warn", what, orphans[0], len(orphans))
        return builder.build(self.root, gathers=faults is not None)

    def _images(self, part: Part) -> tuple[list[Path], bool]:
        """Return the images of a part, and whether they come from lists, which may leave some out."""
        images: list[Path] = []
        lists = False
        for entry in self.images[part]:
            if isinstance(entry, str):
                where = self.settings.at(part) if self.settings else str(self.root)
                remedy = "correct the path, or remove the line"
                raise DataError(f"{part}: {entry} does not exist", where=where, remedy=remedy, code="A64")
            if entry.is_dir():
                images += find_images(entry)
            elif entry.suffix.lower() == ".txt":
                images += _listed_images(entry, self.root)
                lists = True
            else:
                images.append(entry)
        return list(dict.fromkeys(images)), lists


def _is_missing(entries: Sequence[Path | str] | None) -> bool:
    """Return whether an entry of the settings does not exist."""
    return entries is not None and any(isinstance(entry, str) for entry in entries)


def _trees(root: Path, *, named: bool) -> dict[Part, list[Path]]:
    """Return the folders of images of each part. named: whether the names of the classes are known.

    Without them, a folder is only taken for YOLO if its labels have a folder of their own.
    """
    if not root.is_dir():
        return {}
    listed_parts = _darknet_lists(root) if named else {}
    if listed_parts:
        return listed_parts

    def look(name: str) -> list[Path] | None:
        return _tree([(images.format(name), labels.format(name)) for images, labels in _TREES], root, named)

    splits = find_parts(look)
    if splits:
        return splits
    whole = _tree(list(_WHOLE_TREES), root, named)
    return {"all": whole} if whole else {}


def _tree(pairs: list[tuple[str, str]], root: Path, named: bool) -> list[Path] | None:
    for images, labels in pairs:
        if images == labels and not named:
            continue
        folder, texts = root / images, root / labels
        if folder.is_dir() and texts.is_dir() and _has_labels(folder, texts):
            return [folder]
    return None


def _has_labels(images: Path, labels: Path) -> bool:
    """Return whether an image has a label file, seen from the first of both folders."""
    for text in labels.glob("*.txt") if images == labels else labels.rglob("*.txt"):
        if text.stem not in _NOT_LABELS:
            folder = images / text.parent.relative_to(labels)
            if any((folder / f"{text.stem}{suffix}").is_file() for suffix in _both_cases()):
                return True
    return False


def _both_cases() -> list[str]:
    return [*SUFFIXES, *(suffix.upper() for suffix in SUFFIXES)]


def _darknet_lists(root: Path) -> dict[Part, list[Path]]:
    """Return the lists `train.txt` and `valid.txt` of a folder whose labels are beside its images."""
    found = find_parts(lambda name: [file] if (file := root / f"{name}.txt").is_file() else None)
    return found if (root / "obj.data").is_file() else {}


def _listed_images(file: Path, root: Path) -> list[Path]:
    """Return the images that a text file names, one a line."""
    images = []
    missing = []
    for number, line in enumerate(read_text(file, "A62").splitlines(), start=1):
        if not line.strip():
            continue
        image = existing(line, [file.parent, root], root)
        if image is None or not image.is_file():
            missing.append((number, line.strip()))
        else:
            images.append(image)
    if missing:
        names = listed([name for _, name in missing])
        count = counted(len(missing), "listed image", of=len(images) + len(missing), verb=IS)
        what = f"{count} missing: {names}"
        remedy = f"write paths relative to {root}"
        raise DataError(what, where=f"{file}:{missing[0][0]}", remedy=remedy, code="A31")
    return images


class _Folder(NamedTuple):
    stems: dict[str, Path]  # of its text files
    used: set[str]


class _LabelFiles:
    """Finds the label file of each image, and those that no image has. Lists each folder once."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folders: dict[Path, _Folder] = {}
        self.places: dict[Path, list[Path]] = {}
        self.beside: set[Path] = set()

    def of(self, image: Path) -> Path | None:
        for place in self.looked_in(image):
            folder = self._listing(place)
            if image.stem in folder.stems:
                folder.used.add(image.stem)
                if place == image.parent:
                    self.beside.add(place)
                return folder.stems[image.stem]
        return None

    def looked_in(self, image: Path) -> list[Path]:
        """Return the folders that may hold the label file: `images` replaced by `labels`, and near the image."""
        folder = image.parent
        if folder not in self.places:
            self.places[folder] = self._places(folder)
        return self.places[folder]

    def _places(self, folder: Path) -> list[Path]:
        places = []
        parts = folder.parts
        at = next((k for k in reversed(range(len(parts))) if parts[k].lower() in ("images", "jpegimages")), None)
        if at is not None:
            places.append(Path(*parts[:at], "labels", *parts[at + 1 :]))
        places += [folder, folder / "labels"]
        if folder.is_relative_to(self.root):
            places.append(self.root / "labels" / folder.relative_to(self.root))
        return list(dict.fromkeys(places))

    def unused(self) -> list[Path]:
        return [
            file
            for place, folder in self.folders.items()
            if folder.used and place not in self.beside
            for stem, file in folder.stems.items()
            if stem not in folder.used and stem not in _NOT_LABELS
        ]

    def _listing(self, place: Path) -> _Folder:
        if place not in self.folders:
            texts = sorted(place.glob("*.txt")) if place.is_dir() else []
            self.folders[place] = _Folder({text.stem: text for text in texts}, set())
        return self.folders[place]
