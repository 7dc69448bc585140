"""Makers of small models and of runs on disk, for tests."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from regard.models.build import build
from regard.models.configs.detr import DETRConfig
from regard.models.detr import DETR
from regard.structures.categories import Category
from regard.training.checkpoint_writer import save_checkpoint
from regard.weights.model_state import model_state

SMALL = DETRConfig(
    num_classes=3, backbone="small", embed_dim=16, num_heads=2, encoder_layers=1, decoder_layers=2,
    feedforward_dim=24, num_queries=5,
)  # fmt: skip
PETS = (Category(3, "cat"), Category(7, "dog"), Category(90, "owl"))  # ids are not the labels


def small_detector(seed: int = 0) -> DETR:
    """A detector of three classes for images of 32 pixels."""
    torch.manual_seed(seed)
    net = build(SMALL, "mine", PETS, (32, 64))
    assert isinstance(net, DETR)
    return net.eval()


def write_run(folder: Path, net: DETR, steps: dict[int, float], average: bool = False) -> None:
    """A run with a checkpoint for each step, whose class biases are the step; the values are its scores."""
    best = max(steps, key=lambda step: steps[step])
    for step, score in steps.items():
        with torch.no_grad():
            net.class_embed.bias.fill_(step)
        tensors = {"model": {name: tensor.clone() for name, tensor in net.state_dict().items()}}
        if average:
            tensors["ema"] = {**tensors["model"], "class_embed.bias": tensors["model"]["class_embed.bias"] + 0.5}
        progress = {"best_step": best if step >= best else step, "scores": {"AP": score}}
        state = {"model_state": model_state(net), "progress": progress}
        save_checkpoint(folder / "checkpoints", step, tensors, json.loads(json.dumps(state)), protect=range(100))
