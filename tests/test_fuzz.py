"""Mutated files for each reader: an answer or one line of an error, never another exception, and memory within a limit.

`uv run pytest -m slow tests/test_fuzz.py` tries 20,000 files a reader. A failure names the number of the file, which
gives the same bytes again.
"""

from __future__ import annotations

import json
import random
import re
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from image_corpus import bad_images, good_images
from regard.config import to_mapping
from regard.data.coco.annotations import read_annotations
from regard.data.coco.panoptic_annotations import read_panoptic
from regard.data.images import decode_image
from regard.errors import CheckpointError, ConfigError, DataError, RegardError
from regard.recipes import recipe_for, recipe_from_file
from regard.training.checkpoint_writer import save_checkpoint
from regard.training.checkpoints import read_checkpoint
from regard.weights.state_dict import read_weights

FILES = 20_000  # of each reader
MEMORY = 2**30  # bytes by which a reader may raise the most memory of this process
NUMBERS = (
    b"0", b"-1", b"1e400", b"NaN", b"2147483648", b"9" * 400, b"1e308", b"-0.0", b"0x7f", b"null", b'"1"', b"[]", b"{}",
)  # fmt: skip
BYTES = (0, 1, 127, 128, 255)


def mutated(data: bytes, chance: random.Random) -> bytes:
    """`data` with one to four changes, mostly one, and mostly where headers are."""
    found = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        size = len(found)
        if not size:
            break
        place = chance.randrange(min(size, chance.choice((16, 64, 512, size))))
        match chance.randrange(11):
            case 0:
                found[place] ^= 1 << chance.randrange(8)
            case 1:
                found[place] = chance.choice(BYTES)
            case 2:
                del found[place:]
            case 3:
                del found[place : place + chance.randint(1, 40)]
            case 4:
                other = chance.randrange(size)
                found[place:place] = found[other : other + chance.randint(1, 200)]
            case 5:
                found[place : place + 4] = chance.choice((2**31 - 1, 2**32 - 1, 2**31, 0, 65535)).to_bytes(
                    4, chance.choice(("big", "little"))
                )
            case 6:
                found[place:place] = chance.randbytes(chance.randint(1, 20))
            case _:
                found = _other_number(found, chance)
    return bytes(found)


def _other_number(data: bytearray, chance: random.Random) -> bytearray:
    """`data` with one of its decimal numbers replaced, as it stands in JSON and YAML."""
    found = re.compile(rb"[0-9.]+").search(data, chance.randrange(len(data)))
    if found:
        data[slice(*found.span())] = chance.choice(NUMBERS)
    return data


def images(folder: Path) -> tuple[list[bytes], Callable[[bytes], object], type[RegardError]]:
    seeds = [case.data for case in (*good_images(), *bad_images()) if len(case.data) < 40_000]
    return seeds, lambda data: decode_image(data, name="a.jpg", max_pixels=10**6), DataError


def annotations(folder: Path) -> tuple[list[bytes], Callable[[bytes], object], type[RegardError]]:
    rows = [
        {"id": 1, "image_id": 1, "category_id": 3, "bbox": [1, 2, 10, 12.5], "area": 125, "iscrowd": 0,
         "segmentation": [[1, 2, 11, 2, 11, 14, 1, 14]]},
        {"id": 2, "image_id": 2, "category_id": 7, "bbox": [0, 0, 16, 16], "area": 256, "iscrowd": 1,
         "segmentation": {"size": [32, 40], "counts": [0, 512, 768]}},
        {"id": 3, "image_id": 2, "category_id": 7, "bbox": [4, 4, 6, 6], "area": 36, "iscrowd": 0,
         "segmentation": {"size": [32, 40], "counts": "0P`0Ph0"}},
    ]  # fmt: skip
    head = {
        "images": [{"id": k, "file_name": f"{k}.png", "width": 40, "height": 32} for k in (1, 2)],
        "categories": [{"id": 3, "name": "cat", "isthing": 1}, {"id": 7, "name": "dög", "isthing": 0}],
    }
    segments = [
        {"image_id": k, "file_name": f"{k}.png",
         "segments_info": [{"id": 5, "category_id": 3, "area": 4, "bbox": [0, 0, 2, 2], "iscrowd": 0}]}
        for k in (1, 2)
    ]  # fmt: skip
    path = folder / "annotations.json"

    def read(data: bytes) -> None:
        path.write_bytes(data)
        if b"segments_info" in data:
            read_panoptic(path, segment_folder=folder, image_folders=[folder])
        else:
            read_annotations(path, image_folders=[folder])

    for number in (1, 2):
        shutil.copy(folder / "seed.png", folder / f"{number}.png")
    return [json.dumps({**head, "annotations": part}).encode() for part in (rows, segments)], read, DataError


def settings(folder: Path) -> tuple[list[bytes], Callable[[bytes], object], type[RegardError]]:
    names = ("detr_tiny", "deit_tiny_patch16_224", "aa_resnet20", "retinanet_tiny")
    path = folder / "config.yaml"

    def read(data: bytes) -> None:
        path.write_bytes(data)
        recipe_from_file(path)

    return [yaml.safe_dump(to_mapping(recipe_for(name))).encode() for name in names], read, ConfigError


def weights(folder: Path) -> tuple[list[bytes], Callable[[bytes], object], type[RegardError]]:
    tensors = {"a.weight": torch.rand(4, 3), "a.bias": torch.rand(4).half(), "count": torch.tensor(3)}
    checkpoint = save_checkpoint(folder, 1, {"model": tensors}, {"step": 1})
    torch.save({"model": tensors, "epoch": 3}, folder / "zip.pth")
    torch.save(tensors, folder / "legacy.pth", _use_new_zipfile_serialization=False)
    files = [folder / "zip.pth", folder / "legacy.pth", *checkpoint.iterdir()]
    kept = {file: file.read_bytes() for file in files}
    turn = iter(range(10**9))

    def read(data: bytes) -> None:
        file = files[next(turn) % len(files)]  # in the order of the seeds
        file.write_bytes(data)
        try:
            if file.parent == checkpoint:
                read_checkpoint(checkpoint)
            if file.suffix != ".json":
                read_weights(file)
        finally:
            file.write_bytes(kept[file])

    return list(kept.values()), read, CheckpointError


@pytest.mark.slow
@pytest.mark.parametrize("reader", [images, annotations, settings, weights])
def test_mutated_files(reader, tmp_path):
    resource = pytest.importorskip("resource")
    (tmp_path / "seed.png").write_bytes(next(case.data for case in good_images() if case.id == "I10-PNG"))
    seeds, read, refusal = reader(tmp_path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused = 0
    if reader is not images:  # of which some are bad already
        for seed in seeds:
            read(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number in range(FILES):
            data = mutated(seeds[number % len(seeds)], random.Random(f"{reader.__name__} {number}"))
            try:
                read(data)
            except refusal as error:
                assert error.line.isprintable() and len(error.line) < 2000, number
                refused += 1
            except Exception as error:
                raise AssertionError(f"file {number}: {type(error).__name__}: {error}") from error
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    print(f"{reader.__name__}: {FILES:,} files, {refused:,} refused, {grown / 2**20:.0f} MiB more")
    assert grown < MEMORY
