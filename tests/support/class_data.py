"""Small classification data for tests: images that say by their pixels which they are."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

LABELS = ("ape", "bear", "cow")
Members = dict[str, bytes]


def pixels(number: int, height: int = 6, width: int = 8) -> np.ndarray:
    """(H, W, 3) uint8, different for every number."""
    return np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)


def png(number: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels(number)).save(file, "PNG")
    return file.getvalue()


def write_tree(root: Path, images: dict[str, int]) -> Path:
    """Files `name: number` below a folder."""
    for name, number in images.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(png(number))
    return root


def members(numbers: range) -> Members:
    """Images in class folders, with `.cls` files."""
    found: Members = {}
    for number in numbers:
        label = number % 3
        found[f"{LABELS[label]}/{number:04d}.png"] = png(number)
        found[f"{LABELS[label]}/{number:04d}.cls"] = f"{label}\n".encode()
    return found


def write_shard(path: Path, content: Members) -> Path:
    """A tar file of the members, packed unless its suffix is `.tar`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w" if path.suffix == ".tar" else "w:gz", format=tarfile.PAX_FORMAT) as file:
        for name, data in content.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            file.addfile(member, io.BytesIO(data))
    return path


def write_shards(root: Path, ending: str = ".tar.gz") -> Path:
    """Nine training images in two files, four for validation in one, and the names of the classes."""
    write_shard(root / f"train-0000{ending}", members(range(5)))
    write_shard(root / f"train-0001{ending}", members(range(5, 9)))
    write_shard(root / f"test-0000{ending}", members(range(9, 13)))
    (root / "labels.txt").write_text("\n".join(LABELS) + "\n")
    return root


def photo(height: int, width: int, seed: int = 0) -> Tensor:
    """Smooth colours with some grain, channels last: (3, H, W) uint8."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(30, 220, (4, 5, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    grain = rng.integers(-3, 4, smooth.shape)
    return torch.from_numpy((smooth + grain).clip(0, 255).astype(np.uint8)).permute(2, 0, 1)
