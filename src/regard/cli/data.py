"""`regard data`: make and check data sets."""

from __future__ import annotations

from pathlib import Path

from regard.cli.groups import Settings, data_app


@data_app.command
def check(folder: Path) -> None:
    """Check a data set: its annotations or classes, and every image by decoding it. Changes nothing.

    Args:
        folder: in a layout of COCO, YOLO, Pascal VOC, CSV files, or with a folder per class.
    """
    from regard.data.paths import check_data

    check_data(str(folder), ())
    from regard.data.check import check_folder

    for line in check_folder(folder):
        print(line)


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
