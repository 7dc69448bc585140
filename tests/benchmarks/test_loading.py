"""The loading benchmark compares like with like, and measures what it says."""

import io
from pathlib import Path

import pytest
import torch
from rich.console import Console

from regard.benchmarks.loading import _pillow_evaluation, _pillow_train, run, table
from regard.benchmarks.photographs import generate_photographs
from regard.data.images import read_image
from regard.data.samples import Sample
from regard.data.transforms.detection import EvaluationResize, paper_augmentation
from regard.errors import DataError
from regard.structures.image_batch import ImageBatch


def test_both_sides_give_the_same_images(tmp_path: Path) -> None:
    (path,) = generate_photographs(tmp_path, [(480, 640)])
    sides = ((_pillow_train, paper_augmentation()), (_pillow_evaluation, EvaluationResize()))
    for pillow, transform in sides:
        for seed in range(6):
            expected = pillow(path, torch.Generator().manual_seed(seed))
            image = transform(Sample(read_image(path)), torch.Generator().manual_seed(seed)).image
            assert image.shape == expected.shape
            normalized = ImageBatch.from_images([image]).normalized().pixels[0]
            assert (normalized - expected).abs().mean() < 0.01


def test_run_and_table(tmp_path: Path) -> None:
    generate_photographs(tmp_path, [(480, 640)] * 3)
    rows = run(tmp_path, num_images=2, rounds=1)
    assert [row.pipeline for row in rows] == ["train", "eval"]
    assert all(row.ratio == row.regard / row.pillow > 0 for row in rows)
    text = io.StringIO()
    Console(file=text, width=100).print(table(rows))
    assert f"{rows[0].ratio:.2f}x" in text.getvalue()


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        run(tmp_path)
