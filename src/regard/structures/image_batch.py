"""A batch of images of different sizes, padded at the bottom and on the right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from regard.structures.transfer import upload

# Mean and standard deviation of ImageNet's pixels, RGB, 0..1. Most models are trained with these.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class ImageBatch:
    """B images, padded to one size.

    pixels: (B, C, H, W), uint8 0..255 as decoded, or normalised float. Padding is 0.
    sizes: (height, width) of each image without padding, in pixels.
    """

    pixels: Tensor
    sizes: tuple[tuple[int, int], ...]

    @classmethod
    def from_images(cls, images: Sequence[Tensor]) -> ImageBatch:
        """Pad images (C, H, W) of one dtype to their largest height and width."""
        sizes = tuple((image.shape[-2], image.shape[-1]) for image in images)
        height, width = max(h for h, _ in sizes), max(w for _, w in sizes)
        # Decoders store the channels of a pixel next to each other. Keeping that order triples the speed of the copy.
        packed = all(image.stride(-3) == 1 for image in images)
        pixels = images[0].new_zeros(len(images), images[0].shape[0], height, width)
        if packed:
            pixels = pixels.contiguous(memory_format=torch.channels_last)
        for place, image, (h, w) in zip(pixels, images, sizes, strict=True):
            place[:, :h, :w].copy_(image)
        return cls(pixels, sizes)

    def __len__(self) -> int:
        return len(self.sizes)

    @property
    def is_padded(self) -> bool:
        """Whether any image has padding. This does not wait for the device."""
        return any(size != tuple(self.pixels.shape[-2:]) for size in self.sizes)

    def padding_mask(self) -> Tensor | None:
        """Return (B, H, W) bool, True at padding; None if no image is padded."""
        if not self.is_padded:
            return None
        height, width = self.pixels.shape[-2:]
        sizes = upload(torch.tensor(self.sizes), self.pixels.device)
        rows = torch.arange(height, device=self.pixels.device)
        columns = torch.arange(width, device=self.pixels.device)
        return (rows[None, :, None] >= sizes[:, 0, None, None]) | (columns[None, None, :] >= sizes[:, 1, None, None])

    def scale(self) -> Tensor:
        """Return (B, 4) float32: width, height, width, height of each image without padding, in pixels."""
        sides = torch.tensor([(w, h, w, h) for h, w in self.sizes], dtype=torch.float32)
        return upload(sides, self.pixels.device)

    def normalized(self) -> ImageBatch:
        """Convert uint8 pixels 0..255 to floats with ImageNet's mean and deviation. Float pixels are left as they are.

        Padding is 0 afterwards: DETR's authors pad after normalising.
        """
        if self.pixels.is_floating_point():
            return self
        shift, scale = upload(torch.tensor((IMAGENET_MEAN, IMAGENET_STD)) * 255, self.pixels.device)[..., None, None]
        pixels = (self.pixels - shift).div_(scale)  # in place: new memory costs more than the division
        mask = self.padding_mask()
        if mask is not None:
            pixels.masked_fill_(mask[:, None], 0)
        return replace(self, pixels=pixels)

    def to(self, device: torch.device | str) -> ImageBatch:
        """Return the batch on `device`. Copies from pinned memory are asynchronous."""
        return replace(self, pixels=self.pixels.to(device, non_blocking=True))

    def pin_memory(self) -> ImageBatch:
        """Return the batch in page-locked memory. PyTorch's data loader calls this."""
        return replace(self, pixels=self.pixels.pin_memory())


def renormalized(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Pixels (B, 3, H, W) normalised by ImageNet's mean and deviation -> by others, for a network trained with those.

    Exact, unlike a change of a first convolution that pads with zeros: those stand for the mean.

    Args:
        mean, std: of red, green and blue, for pixels of 0..1.
    """
    ours = torch.tensor([IMAGENET_MEAN, IMAGENET_STD], dtype=pixels.dtype)
    theirs = torch.tensor([[*mean], [*std]], dtype=pixels.dtype)
    change = torch.stack((ours[1] / theirs[1], (ours[0] - theirs[0]) / theirs[1]))
    scale, shift = upload(change, pixels.device)[..., None, None]
    return pixels * scale + shift


def consecutive(indices: Sequence[int], batch_size: int) -> list[list[int]]:
    """Return batches of up to `batch_size` indices, in order."""
    return [list(indices[first : first + batch_size]) for first in range(0, len(indices), batch_size)]


def of_equal_size(indices: Sequence[int], sizes: Sequence[tuple[int, int]], batch_size: int) -> list[list[int]]:
    """Return batches of up to `batch_size` images of one size, so that none is padded, in order of their first images.

    Padding changes what a detector predicts: features at the border see it. Without it, a prediction does not depend on
    the other images of its batch.

    Args:
        indices: the images to use.
        sizes: (height, width) of each of them, as the model sees it.
    """
    groups: dict[tuple[int, int], list[int]] = {}
    for index, size in zip(indices, sizes, strict=True):
        groups.setdefault(size, []).append(index)
    return sorted((batch for group in groups.values() for batch in consecutive(group, batch_size)), key=min)
