"""`regard data`: make and check data sets."""

from __future__ import annotations

from pathlib import Path

from regard.cli.groups import Settings, data_app


@data_app.command
def check(folder: Path) -> None:
    """What is wrong with a data set: annotations or classes and, decoding each, images. Changes nothing.

    Args:
        folder: in COCO's layout, or with a folder for each class and the like.
    """
    from regard.data.paths import check_folder as check_path

    check_path(folder)
    from regard.data.check import check_folder

    for line in check_folder(folder):
        print(line)


@data_app.command
def shapes(folder: Path, *settings: Settings) -> None:
    """Generate images of shapes as a COCO folder.

    Args:
        folder: to make.
    """
    from regard.config import apply_overrides
    from regard.data.generated.shapes import ShapesConfig, write_shapes

    write_shapes(apply_overrides(ShapesConfig(), settings), folder)
    print(folder)
