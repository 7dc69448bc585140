"""The largest batch that a GPU can train: `batch_size=auto`."""

from __future__ import annotations

import gc

import torch

from regard.data.batches.detection import DetectionBatch, collate
from regard.data.samples import Sample
from regard.evaluation.detection import ObjectDataset
from regard.models.build import build
from regard.models.detr import DETR
from regard.models.memory_order import move_to_device
from regard.recipes.detection import DetectionRecipe
from regard.runs.detection_task import DetectionTask
from regard.structures.precision import autocast
from regard.training.distributed import Processes
from regard.training.optimizer import create_optimizer

MARGIN = 0.8  # of the memory that is free; fragments, other losses and the moving average take some of the rest
MAX_BATCH = 64  # of the DETR paper; learning rates that grow with the batch hold no longer for larger ones


def largest_batch(
    settings: DetectionRecipe, train: ObjectDataset, val: ObjectDataset, objects: int, processes: Processes, most: int
) -> int:
    """Return the largest of 1, 2, 4, ..., `most` images whose training step fits into the memory of the GPU.

    It tries a step of each size on made-up images of the largest size that the settings allow. Random numbers are left
    as they were, so that a run is the same as one that was given this number.

    Args:
        settings: of the training; its batch size does not matter.
        train, val: the data, for their classes and masks. No image is read.
        objects: the most of an image.
        processes: this process, with its device. Of several processes the smallest number counts.
        most: images to try at most.

    Returns:
        The number, at least 1.
    """
    device = processes.device
    found = 1
    with torch.random.fork_rng([device] if device.type == "cuda" and torch.cuda.is_available() else []):
        for size in _sizes(most):
            batch = made_up_batch(settings, len(train.categories), objects, size, masks=train.masks)
            try:
                training_step(settings, train, val, batch, processes)
                share = memory_share(device)
            except torch.OutOfMemoryError:
                break
            finally:
                _free(device)
            if share > MARGIN:
                break
            found = size
    return min(processes.gather(found))


def _sizes(most: int) -> list[int]:
    sizes = [2**k for k in range(max(1, most).bit_length()) if 2**k <= most]
    return sizes if not sizes or sizes[-1] == most else [*sizes, most]


def made_up_batch(
    settings: DetectionRecipe, classes: int, objects: int, size: int, *, masks: bool = False
) -> DetectionBatch:
    """Return `size` images of `max_size` pixels a side, to which wide and high images together are padded."""
    side = settings.max_size
    corners = torch.rand(objects, 2) * 0.4
    sample = Sample(
        image=torch.zeros(3, side, side, dtype=torch.uint8),
        boxes=torch.cat((corners, corners + 0.5), 1) * side,
        labels=torch.randint(classes, (objects,)),
        masks=torch.ones(1, side, side, dtype=torch.bool).expand(objects, -1, -1) if masks else None,
        original_size=(side, side),
    )
    return collate([sample] * size)


def training_step(
    settings: DetectionRecipe,
    train: ObjectDataset,
    val: ObjectDataset,
    batch: DetectionBatch,
    processes: Processes,
) -> None:
    """Train a new model by one step, as the training loop does.

    Raises:
        torch.OutOfMemoryError: the memory of the GPU does not suffice.
    """
    task = DetectionTask(settings, train, val, processes)
    task.together = False  # a process that runs out of memory must not leave the others waiting
    net = build(settings.model, settings.name, train.categories, (settings.short_side, settings.max_size))
    net = move_to_device(net, settings.channels_last, processes.device).train()
    if settings.freeze_detector:
        assert isinstance(net, DETR)
        net.freeze_detector()
    optimizer = create_optimizer(net, settings, fused=processes.device.type in ("cpu", "cuda"))
    with autocast(settings.amp, processes.device):
        loss, _ = task.loss(net, batch)
    loss.backward()
    optimizer.step()


def memory_share(device: torch.device) -> float:
    """Return the greatest memory of the last step as a share of what this process can have; 0 without a GPU."""
    if device.type != "cuda":
        return 0.0
    free, _ = torch.cuda.mem_get_info(device)
    return torch.cuda.max_memory_reserved(device) / (free + torch.cuda.memory_reserved(device))


def _free(device: torch.device) -> None:
    """Give memory back, so that the next step is measured alone."""
    gc.collect()
    if device.type == "cuda" and torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
