"""`regard data`: check, show, convert and make data sets."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Literal

from regard.cli.groups import Settings, data_app
from regard.cli.places import check_new_file
from regard.errors import DataError
from regard.safe_files import first_free


@data_app.command
def check(folder: str, *, json: Path | None = None) -> None:
    """Check a data set: its annotations or classes, and every image by decoding it. Changes nothing.

    Tells everything that it finds, the most serious first. Ends with 3 if anything would stop a training.

    Args:
        folder: in a layout of COCO, YOLO, Pascal VOC, CSV files, or with a folder per class; or an address of shards.
        json: file for the same as JSON, with the places of all cases.
    """
    from regard.data.paths import check_data

    check_data(folder, ())
    from regard.data.check import check_folder

    findings = check_folder(folder)
    if json is not None:
        findings.write_json(json)
    if findings.only_error is not None:
        raise findings.only_error
    for line in itertools.chain(findings.splits, findings.issues):
        print(line)
    if findings.stops_training:
        raise DataError(findings.verdict, where=folder, remedy="correct the errors listed above")
    print(findings.verdict)


@data_app.command
def show(folder: str, *, output: Path | None = None) -> None:
    """Draw a sheet of images with their boxes or classes, and charts of the classes and the sizes of boxes.

    Args:
        folder: as for check.
        output: picture file; FOLDER-sheet.png in this folder if not given.
    """
    from regard.data.paths import check_data

    check_data(folder, ())
    if output is not None:
        check_new_file(output, ".png", ".jpg", ".jpeg", ".webp")
    from regard.results.reports.data_sheet import draw_data

    print(draw_data(folder, output or first_free(Path(f"{Path(folder).absolute().stem}-sheet.png"))))


@data_app.command
def convert(folder: str, *, to: Literal["coco", "yolo"], output: Path) -> None:
    """Write detection data as COCO or YOLO. Images are linked or copied, the source stays as it is.

    Args:
        folder: in a layout of COCO, YOLO, Pascal VOC or CSV files.
        to: coco or yolo.
        output: folder to create.
    """
    from regard.data.paths import check_data, refuse_address

    refuse_address(folder)
    check_data(folder, ())
    from regard.data.formats.convert import convert as convert_data

    for line in convert_data(Path(folder), to, output):
        print(line)
    print(output)


@data_app.command
def shapes(folder: Path, *settings: Settings) -> None:
    """Generate images of coloured shapes as a COCO folder.

    Args:
        folder: folder to create.
    """
    from regard.config import apply_overrides
    from regard.data.generated.shapes import ShapesConfig, write_shapes

    write_shapes(apply_overrides(ShapesConfig(), settings), folder)
    print(folder)
