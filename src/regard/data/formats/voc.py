"""Pascal VOC data: images, an XML file for each, and lists of the images of each split.

Found are the folder of the challenge (`JPEGImages`, `Annotations`, `ImageSets/Main/train.txt`), also below
`VOCdevkit/VOC2012`, XML files in a folder beside that of the images, and XML files beside the images with a folder for
each split (Roboflow).

Objects marked `difficult` count as the challenge counts them: a detection of one is neither right nor wrong, and none
is missed. They are crowds in COCO's terms, and are not learned.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from regard.data.class_images.listing import in_natural_order
from regard.data.formats.tables import DetectionTables, TableBuilder, measure
from regard.data.formats.text_lines import read_text
from regard.data.formats.voc_xml import VocImage, read_voc
from regard.data.image_folders import SUFFIXES
from regard.data.report import listed
from regard.data.splits import Part, find_parts
from regard.errors import HAS, IS, DataError, counted

_LISTS = "ImageSets/Main"
# Folders of XML files; {} is the name of the split.
_SPLIT_FOLDERS = ("Annotations/{}", "annotations/{}", "{}/Annotations", "{}/annotations", "{}/labels", "{}")
_WHOLE_FOLDERS = ("Annotations", "annotations", "xmls", "labels", ".")
_IMAGE_FOLDERS = ("JPEGImages", "images", "Images", "imgs", ".")


@dataclass(frozen=True)
class _VocPart:
    """Where the files of a part are. image_list: names of the images, None for all XML files of the folder."""

    annotations: Path
    image_folders: list[Path]
    image_list: Path | None = None

    def __str__(self) -> str:
        return str(self.image_list or self.annotations)


class VocFiles:
    """A folder with Pascal VOC data, see `Source`."""

    format = "Pascal VOC"

    def __init__(self, root: Path, parts: dict[Part, _VocPart]) -> None:
        self.root = root
        self.parts = parts
        self._read: dict[Path, VocImage] = {}
        self._faults: list[DataError] | None = None

    @classmethod
    def find(cls, root: Path) -> VocFiles | None:
        """Return the data of a folder, None if there are none in this format.

        Raises:
            DataError: there are several years of the challenge (A64).
        """
        if not root.is_dir():
            return None
        years = sorted({*root.glob("VOC2*"), *root.glob("VOCdevkit/VOC2*")})
        years = [year for year in years if (year / "Annotations").is_dir()]
        if len(years) > 1:
            what = f"{len(years)} data sets: {listed([year.relative_to(root) for year in years])}"
            raise DataError(what, where=root, remedy=f"name one: --data {years[-1]}", code="A64")
        base = years[0] if years else root
        parts = _challenge_parts(base) or _split_parts(base)
        return cls(base, parts) if parts else None

    def tables(self, part: Part, faults: list[DataError] | None = None) -> DetectionTables:
        """Read the files of a part, see `Source`. The classes are those of all parts, in natural order."""
        self._faults = faults
        names = in_natural_order(
            found.name
            for place in self.parts.values()
            for file in _xml_files(place)
            for found in self._of(file).objects
        )
        builder = TableBuilder(self.root, names, str(self.parts[part]))
        label_of = {name: label for label, name in enumerate(names)}
        place = self.parts[part]
        pairs, unlabelled = self._images(place)
        unstated = [image for file, image in pairs if self._of(file).size is None]
        sizes = measure(unstated, faults)
        difficult = []
        for file, image in pairs:
            read = self._of(file)
            size = read.size or sizes.get(image)
            if size is None:
                continue  # the image cannot be opened, and faults are gathered
            builder.add_image(image, size, str(file))
            for found in read.objects:
                where = f"{file}:{found.line}"
                builder.add_object(label_of[found.name], found.box_xywh, where, crowd=found.is_difficult)
                difficult += [where] * found.is_difficult
        if difficult:
            count = counted(len(difficult), "object", verb=IS)
            what = f"{count} difficult: not learned, and ignored in scores as in VOC"
            builder.note("A34", "skip", what, difficult[0], len(difficult))
        if unlabelled:
            what = f"{counted(len(unlabelled), 'image', verb=HAS)} no XML file: left out"
            builder.note("A63", "warn", what, unlabelled[0], len(unlabelled))
        return builder.build(self.root, gathers=faults is not None)

    def _of(self, file: Path) -> VocImage:
        if file not in self._read:
            self._read[file] = read_voc(file, self._faults)
        return self._read[file]

    def _images(self, place: _VocPart) -> tuple[list[tuple[Path, Path]], list[Path]]:
        """Return each XML file of a part with its image, and the images that have no XML file."""
        listing = _Listing()
        files = _xml_files(place)
        pairs = []
        missing = []
        for file in files:
            stems = (listing.of(folder).get(file.stem) for folder in place.image_folders)
            image = next((found for found in stems if found), None)
            image = image or _named(self._of(file), place.image_folders, listing)
            if image is None:
                missing.append(file)
            else:
                pairs.append((file, image))
        if missing:
            names = listed([f"{file.stem}.jpg" for file in missing])
            what = f"{counted(len(missing), 'image file', of=len(files), verb=IS)} missing: {names}"
            remedy = f"looked in {', '.join(map(str, place.image_folders))}"
            error = DataError(what, where=missing[0], remedy=remedy, code="A31")
            if self._faults is None:
                raise error
            self._faults.append(error)
        if place.image_list is not None:
            return pairs, []
        used = {image for _, image in pairs}
        places = {image.parent for _, image in pairs}
        beside = [image for folder in sorted(places) for image in listing.of(folder).values() if image not in used]
        # Another part may have the images of a folder that several share.
        is_own = len(self.parts) == 1 or places <= {file.parent for file in files}
        return pairs, sorted(beside) if is_own else []


def _named(read: VocImage, folders: Sequence[Path], listing: _Listing) -> Path | None:
    """Return the image that the XML file names, if there is one."""
    name = Path(read.file_name.replace("\\", "/")).name
    found = (listing.of(folder).get(Path(name).stem) for folder in folders)
    return next((image for image in found if image), None) if name else None


def _challenge_parts(base: Path) -> dict[Part, _VocPart]:
    """Return the parts of a folder with lists of images: train and val; trainval alone is a part without splits."""
    annotations = base / "Annotations"
    if not annotations.is_dir():
        return {}
    folders = [base / name for name in _IMAGE_FOLDERS]

    def look(name: str) -> _VocPart | None:
        file = base / _LISTS / f"{name}.txt"
        return _VocPart(annotations, folders, file) if file.is_file() and read_text(file, "A63").strip() else None

    parts = find_parts(look)
    both = look("trainval")
    if "train" not in parts and both is not None:
        parts["train" if "val" in parts else "all"] = both
    return parts


def _split_parts(base: Path) -> dict[Part, _VocPart]:
    """Return the parts of a folder with folders of XML files."""

    def look(name: str) -> _VocPart | None:
        for pattern in _SPLIT_FOLDERS:
            folder = base / pattern.format(name)
            if _has_voc(folder):
                folders = [base / name / inner for inner in _IMAGE_FOLDERS]
                folders += [base / outer / name for outer in _IMAGE_FOLDERS] + [
                    base / outer for outer in _IMAGE_FOLDERS
                ]
                return _VocPart(folder, [folder, *folders])
        return None

    splits = find_parts(look)
    if splits:
        return splits
    for name in _WHOLE_FOLDERS:
        if _has_voc(base / name):
            return {"all": _VocPart(base / name, [base / name, *(base / outer for outer in _IMAGE_FOLDERS)])}
    return {}


def _has_voc(folder: Path) -> bool:
    """Return whether the first XML file of a folder seems to be of Pascal VOC. CVAT writes other ones."""
    file = next(iter(sorted(_xml_in(folder))), None)
    if file is None:
        return False
    try:
        with file.open("rb") as opened:
            head = opened.read(4096)
    except OSError:
        return True  # reading it will say why
    return b"<annotation>" in head or b"<annotation " in head or b"<" not in head


def _xml_in(folder: Path) -> Iterator[Path]:
    if folder.is_dir():
        yield from (f for f in folder.iterdir() if f.suffix.lower() == ".xml" and not f.name.startswith("."))


def _xml_files(place: _VocPart) -> list[Path]:
    """Return the XML files of a part, sorted.

    Raises:
        DataError: a list names images that have no XML file (A31).
    """
    if place.image_list is None:
        return sorted(_xml_in(place.annotations))
    files = []
    missing = []
    known = {file.stem: file for file in _xml_in(place.annotations)}
    for number, line in enumerate(read_text(place.image_list, "A63").splitlines(), start=1):
        name = line.split()[0] if line.split() else ""
        if name and name not in known and Path(name).suffix.lower() in SUFFIXES:
            name = Path(name).stem
        if name in known:
            files.append(known[name])
        elif name:
            missing.append((number, name))
    if missing:
        count = counted(len(missing), "listed image", verb=HAS)
        what = f"{count} no XML file: {listed([name for _, name in missing])}"
        remedy = f"add them to {place.annotations}, or remove the lines"
        raise DataError(what, where=f"{place.image_list}:{missing[0][0]}", remedy=remedy, code="A31")
    return list(dict.fromkeys(files))


class _Listing:
    """The images of folders by their stems. Lists each folder once."""

    def __init__(self) -> None:
        self.folders: dict[Path, dict[str, Path]] = {}

    def of(self, folder: Path) -> dict[str, Path]:
        if folder not in self.folders:
            files = sorted(folder.iterdir()) if folder.is_dir() else []
            self.folders[folder] = {f.stem: f for f in files if f.suffix.lower() in SUFFIXES}
        return self.folders[folder]
