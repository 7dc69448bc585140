"""The scores of a model with masks: of its boxes, of its masks, and of the image cut into segments."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from regard.metrics.detection import DetectionScores
from regard.metrics.panoptic import PanopticScores

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class SegmentationScores:
    """The result of an evaluation.

    boxes, masks: COCO's AP of boxes and of masks, both of things alone where the data are panoptic.
    panoptic: PQ, None where the data have no segments.
    """

    boxes: DetectionScores
    masks: DetectionScores
    panoptic: PanopticScores | None

    @property
    def stats(self) -> dict[str, float | None]:
        """All means, 0..1: PQ and its like, `mask_AP` and its like, AP and its like of boxes."""
        found = dict(self.panoptic.stats) if self.panoptic else {}
        return {**found, **{f"mask_{name}": value for name, value in self.masks.stats.items()}, **self.boxes.stats}

    def table(self) -> Table:
        """The scores in percent, for the screen; the one that decides stands last."""
        from rich.table import Table

        table = Table.grid()
        for part in (self.boxes, self.masks, self.panoptic):
            if part is not None:
                table.add_row(part.table())
        return table

    def to_dict(self) -> dict[str, Any]:
        """The scores as plain JSON."""
        panoptic = None if self.panoptic is None else self.panoptic.to_dict()
        return {
            "stats": self.stats,
            "boxes": self.boxes.to_dict(),
            "masks": self.masks.to_dict(),
            "panoptic": panoptic,
        }
