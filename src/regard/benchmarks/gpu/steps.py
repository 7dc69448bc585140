"""Whole training steps on images that are in memory: milliseconds, memory, waits, and what a setting is worth."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from regard.benchmarks.gpu.session import Session
from regard.data.batches.detection import DetectionBatch
from regard.losses import SetCriterion
from regard.models.build import build, create
from regard.models.configs import CONFIGS
from regard.models.configs.detr import DETRConfig
from regard.models.detr import DETR
from regard.models.memory_order import move_to_device
from regard.structures.image_batch import ImageBatch
from regard.structures.precision import inference_precision, tf32
from regard.training.config import TrainingConfig
from regard.training.distributed import Processes
from regard.training.loop import Trainer
from regard.training.reports import Reporter

Order = Literal["auto", "on", "off"]


class _Detection:
    """A task that learns from one batch, over and over."""

    batches_per_epoch = 100
    score = "AP"

    def __init__(self, config: DETRConfig, batch: DetectionBatch, device: torch.device) -> None:
        self.batch, self.device = batch, device
        self.criterion = SetCriterion(config.num_classes, classification="focal" if config.sigmoid else "softmax")

    def batches(self, start: int) -> Iterator[DetectionBatch]:
        return itertools.repeat(self.batch)

    def loss(self, model: nn.Module, batch: DetectionBatch) -> tuple[Tensor, Mapping[str, Tensor]]:
        output = model(batch.images.to(self.device).normalized(), batch.targets)
        masks = partial(model.masks, output) if isinstance(model, DETR) and model.config.masks else None
        losses = self.criterion(output, batch.targets, masks=masks, together=False)
        return self.criterion.total(losses), losses

    def describe(self, batch: Any) -> str:
        return "random pixels"

    def evaluate(self, model: nn.Module, step: int) -> dict[str, float]:
        return {}


def training_steps(session: Session) -> None:
    """Measure DETR-R50 in each precision and memory order, and a lite one with proposals and masks."""
    tries: list[tuple[str, Literal["off", "bf16"], bool, Order, int]] = [
        ("detr_resnet50", "off", False, "off", 2), ("detr_resnet50", "off", True, "off", 2),
        ("detr_resnet50", "bf16", True, "off", 2), ("detr_resnet50", "bf16", True, "on", 2),
        ("detr_resnet50", "bf16", True, "on", 16), ("detr_lite_panoptic", "bf16", True, "on", 8),
    ]  # fmt: skip
    if session.is_small:
        tries = [("detr_tiny", "off", False, "off", 2), ("detr_tiny", "bf16", True, "on", 2)]
    for name, amp, with_tf32, order, size in tries:
        with tf32(session.device, with_tf32):
            session.row("training_steps", **detection_step(session, name, amp, order, size), tf32=with_tf32)


def detection_step(session: Session, name: str, amp: Literal["off", "bf16"], order: Order, size: int) -> dict[str, Any]:
    """Measure a step of a detector on `size` images."""
    config = CONFIGS[name]
    assert isinstance(config, DETRConfig)
    if not session.is_small:
        config = replace(config, num_classes=91)
    torch.manual_seed(0)
    net = move_to_device(build(config, name), order, session.device)
    settings = TrainingConfig(amp=amp, batch_size=size, ema=0.999)
    reporter = Reporter(None, log_every=20, images_per_step=size, quiet=True)
    task = _Detection(config, _batch(session, config, size), session.device)
    alone = Processes(0, 1, session.device)
    trainer = Trainer(net, task, settings, session.output, alone, {}, reporter)
    batches = task.batches(0)
    taken = session.time(lambda: trainer._step(batches, 0.0), least=5)
    waits = _waits(session, lambda: trainer._step(batches, 0.0))
    found = {"model": name, "amp": amp, "channels_last": order, "images": size, **taken}
    return {**found, "images_per_s": round(1000 * size / taken["ms"], 1), "waits": len(waits), "at": " ".join(waits)}


def _batch(session: Session, config: DETRConfig, size: int) -> DetectionBatch:
    """Return images of 800 x 1066 pixels, every other one padded, of eight objects each; small ones on a CPU."""
    height, width = (64, 96) if session.is_small else (800, 1066)
    sizes = tuple((height - 32 * (number % 2), width) for number in range(size))
    images = ImageBatch(torch.randint(0, 255, (size, 3, height, width), dtype=torch.uint8), sizes)
    targets = []
    for h, w in sizes:
        target = {"labels": torch.randint(0, config.num_classes, (8,)), "boxes": torch.rand(8, 4) * 0.4 + 0.3}
        targets.append(target | ({"masks": torch.rand(8, h, w) > 0.5} if config.masks else {}))
    batch = DetectionBatch(images, targets, [])
    return batch if session.is_small else batch.pin_memory()


def _waits(session: Session, step: Any) -> list[str]:
    """Return the places where a step waits for the GPU, as torch tells them."""
    if session.is_small:
        return []
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return [f"{Path(w.filename).name}:{w.lineno}" for w in told if "synchroniz" in str(w.message)]


def memory_orders(session: Session) -> None:
    """Measure training of convolutional networks in bf16 with both memory orders."""
    sizes = {"resnet50": 128, "aa_resnet50": 64, "efficientnet_lite0": 128, "san10_pairwise": 32}
    if session.is_small:
        sizes = {"aa_resnet20": 2}
    orders: tuple[Order, ...] = ("off", "on")
    for name, size in sizes.items():
        side = 32 if session.is_small else 224
        for order in orders:
            net = move_to_device(create(name), order, session.device).train()
            images = torch.randn(size, 3, side, side, device=session.device)
            images = images.contiguous(memory_format=torch.channels_last)  # as batches come

            def step(net: nn.Module = net, images: Tensor = images) -> None:
                net.zero_grad()
                with inference_precision("bf16", session.device):
                    loss = net(images).float().logsumexp(1).mean()
                loss.backward()

            taken = session.time(step, least=5)
            session.row(
                "memory_orders",
                model=name,
                channels_last=order,
                images_per_s=round(1000 * size / taken["ms"], 1),
                **taken,
            )
