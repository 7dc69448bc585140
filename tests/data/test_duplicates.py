"""Almost the same images: copies in another quality, size or brightness are found, other photographs are not."""

import io

import numpy as np
import torch
from PIL import Image

from class_data import photo
from regard.data.duplicates import near_pairs, sketch


def saved(image, **options):
    """As JPEG and back."""
    file = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(file, "JPEG", **options)
    return torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1)


def resized(image, height, width):
    return torch.from_numpy(np.array(Image.fromarray(image.permute(1, 2, 0).numpy()).resize((width, height)))).permute(
        2, 0, 1
    )


def test_copies_are_found_among_others():
    train = [photo(96, 120, seed) for seed in range(60)]
    copies = [saved(train[3], quality=60), resized(train[17], 64, 80), train[40], (train[41] * 0.98).to(torch.uint8)]
    val = [*(photo(96, 120, 100 + seed) for seed in range(60)), *copies]
    pairs = near_pairs(*([sketch(image) for image in side] for side in (train, val)))
    assert pairs == [(3, 60), (17, 61), (40, 62), (41, 63)]


def test_a_part_or_a_mirror_image_is_another_image():
    image = photo(96, 120)
    others = [sketch(image.flip(2)), sketch(image[:, :48]), sketch(255 - image)]
    assert near_pairs([sketch(image)], others) == []


def test_plain_and_small_images_have_no_sketch():
    plain = torch.full((3, 64, 64), 200, dtype=torch.uint8)
    assert sketch(plain) is None and sketch(photo(31, 64)) is None and sketch(photo(32, 32)) is not None
    assert near_pairs([None], [sketch(photo(64, 64))]) == near_pairs([], [None]) == []


def test_one_object_at_different_places_of_a_plain_background():
    """As in a studio: most of each image is the same, the images are not."""
    images = []
    for k in range(12):
        image = torch.full((3, 80, 80), 230, dtype=torch.uint8)
        image[:, 5 * k : 5 * k + 20, 60 - 5 * k : 80 - 5 * k] = photo(20, 20, k)
        images.append(sketch(image))
    assert near_pairs(images[:6], images[6:]) == []
