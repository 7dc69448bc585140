"""Pictures of a run show the pixels that the boxes belong to."""

import numpy as np
import torch
from PIL import Image

from image_files import encode, exif
from regard.data.samples import Sample
from regard.drawing.boxes import class_color
from regard.evaluation.detection_pictures import draw_comparison
from regard.structures.categories import Category

CATEGORIES = (Category(1, "cat"),)


def test_comparison_of_an_image_that_was_annotated_unrotated(tmp_path):
    """The file would be turned when it is read again: its sample has the pixels as they were annotated."""
    pixels = np.full((400, 800, 3), 200, np.uint8)
    (tmp_path / "photo.png").write_bytes(encode(Image.fromarray(pixels), "PNG", exif=exif(6)))
    image = torch.from_numpy(pixels).permute(2, 0, 1)
    box = torch.tensor([[600.0, 50.0, 700.0, 350.0]])
    label = torch.tensor([0])
    sample = Sample(image, box, label, path=str(tmp_path / "photo.png"))
    drawn = draw_comparison([sample], [(torch.tensor([0.9]), label, box)], CATEGORIES)
    colored = (np.abs(np.asarray(drawn).astype(int) - class_color(0)).max(2) < 60).nonzero()
    assert drawn.width > 3 * drawn.height  # two wide pictures side by side, none of them upright
    height = colored[0].max() - colored[0].min()
    assert height > 0.6 * drawn.height  # and the box is whole
