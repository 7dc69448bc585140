"""The benchmark of `regard predict` compares results first and prints shares."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from regard.benchmarks.photographs import generate_photographs
from regard.benchmarks.predict import Measured, run, table
from regard.errors import DataError
from regard.prediction.predict import ReadyModel

SMALL = (
    Measured("detr_tiny", (32, 64), 3),
    Measured("detr_tiny_panoptic", (32, 64), 3, panoptic=True),
    Measured("deit_nano_patch4_32", (32, 32), 3),
)


def test_run_and_table(tmp_path: Path) -> None:
    generate_photographs(tmp_path, [(48, 64), (64, 48), (48, 64)])
    rows = run(tmp_path, 1, models=SMALL)
    assert [row.images for row in rows] == [3, 3, 3]
    for row in rows:
        assert row.alone > 0 and all(
            0 < s.least <= s.median <= s.most and s.by_cpu > 0 for s in (row.json, row.pictures)
        )
    text = io.StringIO()
    Console(file=text, width=160).print(table(rows))
    assert f"{rows[0].json.median:.0%}" in text.getvalue()


def test_other_results_are_not_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generate_photographs(tmp_path, [(48, 64)] * 2)
    read = ReadyModel.read
    seen: list[str] = []

    def darker(self, source):
        seen.append(str(source))
        image = read(self, source)
        return image if seen.count(str(source)) < 3 else image._replace(resized=image.resized // 2)

    monkeypatch.setattr(ReadyModel, "read", darker)
    with pytest.raises(AssertionError, match="differ"):
        run(tmp_path, 1, models=[SMALL[0]._replace(images=2)])


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        run(tmp_path, 1, models=SMALL)
