"""Scores of a model with masks: AP of boxes, AP of masks, panoptic quality of segments."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from regard.metrics.detection import DetectionScores
from regard.metrics.panoptic import PanopticScores

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class SegmentationScores:
    """Scores of a model with masks on a data set.

    boxes, masks: COCO's AP of boxes and of masks; of panoptic data, those of things.
    panoptic: panoptic quality; None if the data are not panoptic.
    """

    boxes: DetectionScores
    masks: DetectionScores
    panoptic: PanopticScores | None

    @property
    def stats(self) -> dict[str, float | None]:
        """All means, 0..1 or None: `PQ`, ... of segments, `mask_AP`, ... of masks, `AP`, ... of boxes."""
        panoptic = dict(self.panoptic.stats) if self.panoptic else {}
        return {**panoptic, **{f"mask_{name}": value for name, value in self.masks.stats.items()}, **self.boxes.stats}

    def table(self) -> Table:
        """Return a table for the terminal, in percent; the main score comes last."""
        from rich.table import Table

        table = Table.grid()
        for part in (self.boxes, self.masks, self.panoptic):
            if part is not None:
                table.add_row(part.table())
        return table

    def to_dict(self) -> dict[str, Any]:
        """Return the scores as values for JSON."""
        panoptic = None if self.panoptic is None else self.panoptic.to_dict()
        return {
            "stats": self.stats,
            "boxes": self.boxes.to_dict(),
            "masks": self.masks.to_dict(),
            "panoptic": panoptic,
        }
