"""The validation split of data that have none: a fifth, by content."""

from __future__ import annotations

import shutil
from pathlib import Path

from detection_files import draw_pictures, write_voc
from regard.data.coco.dataset import open_detection
from regard.data.formats.held_out import choose_validation


def files(folder: Path, count: int) -> list[Path]:
    folder.mkdir()
    for number in range(count):
        (folder / f"{number}.jpg").write_bytes(f"image {number}".encode())
    return sorted(folder.iterdir())


def test_a_fifth_that_stays(tmp_path: Path) -> None:
    found = files(tmp_path / "a", 2000)
    chosen = dict(zip(found, choose_validation(found), strict=True))
    assert 0.17 < sum(chosen.values()) / 2000 < 0.23
    some = found[100:700]
    assert choose_validation(some) == [chosen[file] for file in some]


def test_names_do_not_matter_and_copies_stay_together(tmp_path: Path) -> None:
    found = files(tmp_path / "a", 50)
    copies = [shutil.copyfile(file, tmp_path / "a" / f"copy of {file.name}") for file in found]
    chosen = choose_validation([*found, *copies])
    assert chosen[:50] == chosen[50:] == choose_validation(found)


def test_both_splits_get_an_image(tmp_path: Path) -> None:
    found = files(tmp_path / "a", 60)
    for start in range(58):
        assert len(set(choose_validation(found[start : start + 2]))) == 2
    assert choose_validation(found[:1]) == [False]


def test_the_split_of_data_is_told_and_complete(tmp_path: Path) -> None:
    pictures = draw_pictures(tmp_path / "a", 30)
    write_voc(pictures, tmp_path / "data" / "images", tmp_path / "data" / "annotations")
    parts = [open_detection(tmp_path / "data", split) for split in ("train", "val")]  # type: ignore[arg-type]
    names = [set(part.names) for part in parts]
    assert not names[0] & names[1] and len(names[0] | names[1]) == 30 and 0 < len(names[1]) < 15
    assert [part.categories for part in parts] == [parts[0].categories] * 2
    for part in parts:
        (issue,) = part.annotations.report.issues
        assert issue.code == "A61" and f"{len(names[1])} of 30 images" in issue.what
    objects = {p.file.name: len(p.objects) for p in pictures}
    for part in parts:
        for index, name in enumerate(part.names):
            assert len(part[index].labels) == objects[Path(name).name]
