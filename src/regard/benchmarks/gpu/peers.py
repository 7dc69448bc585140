"""Inference and training beside transformers and timm with the same weights or the same sizes, and compiled."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.benchmarks.gpu.session import Session
from regard.models.build import create
from regard.models.classifiers import build_classifier
from regard.models.configs import CONFIGS
from regard.models.configs.vit import ViTConfig
from regard.structures.image_batch import ImageBatch
from regard.structures.precision import inference_precision


def detr_beside_transformers(session: Session) -> None:
    """Measure DETR-R50 next to that of transformers, both with random weights."""
    net = create("detr_tiny" if session.is_small else "detr_resnet50").eval().to(session.device)
    height, width = (64, 96) if session.is_small else (800, 1066)

    def ours(pixels: Tensor) -> Tensor:
        return net(ImageBatch(pixels, ((pixels.shape[-2], pixels.shape[-1]),) * len(pixels))).logits

    calls: dict[str, Callable[[Tensor], Tensor]] = {"regard": ours}
    theirs = None if session.is_small else _transformers_detr(session.device)
    if theirs is not None:
        calls["transformers"] = theirs
    _inference(session, "detr_beside_transformers", calls, (height, width), (1,) if session.is_small else (1, 16))


def _transformers_detr(device: torch.device) -> Callable[[Tensor], Tensor] | None:
    try:
        from transformers import DetrConfig, DetrForObjectDetection, ResNetConfig
    except ImportError:
        return None
    backbone: Any = ResNetConfig(out_features=["stage4"])  # type: ignore[call-arg]
    net = DetrForObjectDetection(DetrConfig(backbone_config=backbone)).eval().to(device)

    def call(pixels: Tensor) -> Tensor:
        mask = torch.ones(len(pixels), *pixels.shape[-2:], dtype=torch.long, device=pixels.device)
        return net(pixels, pixel_mask=mask).logits

    return call


def vit_beside_timm(session: Session) -> None:
    """Measure vision transformers next to timm's with the same weights, compiled ones too."""
    for name in ("deit_tiny_patch16_224",) if session.is_small else ("deit_small_patch16_224", "vit_base_patch16_224"):
        config = CONFIGS[name]
        assert isinstance(config, ViTConfig)
        net = build_classifier(replace(config, depth=2) if session.is_small else config).eval().to(session.device)
        calls: dict[str, Callable[[Tensor], Any]] = {"regard": net}
        other = _timm_vit(name, net, session)
        if other is not None:
            calls["timm"] = other
        if not session.is_small:
            calls["regard_compiled"] = torch.compile(net)
        _inference(session, "vit_beside_timm", calls, (224, 224), (1,) if session.is_small else (1, 256), model=name)
        for who, model in (("regard", net), ("timm", other)):
            if model is not None:
                _training(session, who, name, model.train())


def _timm_vit(name: str, net: nn.Module, session: Session) -> nn.Module | None:
    """Return timm's network with the same weights, whose logits have to agree."""
    try:
        import timm
    except ImportError:
        return None
    other = timm.create_model(name, depth=2) if session.is_small else timm.create_model(name)
    other = other.eval().to(session.device)
    other.load_state_dict(net.state_dict())
    images = torch.randn(2, 3, 224, 224, device=session.device)
    with inference_precision("fp32", session.device), torch.no_grad():
        session.row("vit_beside_timm", model=name, difference=float((net(images) - other(images)).abs().max()))
    return other


def _training(session: Session, who: str, name: str, net: nn.Module) -> None:
    """Measure forward, loss, backward and AdamW in bf16."""
    size = 2 if session.is_small else 128
    optimizer = torch.optim.AdamW(net.parameters(), fused=True)
    images = torch.randn(size, 3, 224, 224, device=session.device)
    labels = torch.randint(0, 1000, (size,), device=session.device)

    def step() -> None:
        with inference_precision("bf16", session.device):
            loss = F.cross_entropy(net(images).float(), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    taken = session.time(step)
    session.row("vit_training", model=name, who=who, images_per_s=round(1000 * size / taken["ms"], 1), **taken)


def _inference(
    session: Session,
    part: str,
    calls: dict[str, Callable[[Tensor], Any]],
    side: tuple[int, int],
    sizes: tuple[int, ...],
    **more: Any,
) -> None:
    """Measure all calls on the same images, one after the other; one that needs too much memory says so."""
    for precision in ("fp32", "bf16") if session.is_small else ("tf32", "bf16"):
        for size in sizes:
            images = torch.randn(size, 3, *side, device=session.device)
            for who, call in calls.items():
                with inference_precision(precision, session.device), torch.inference_mode():
                    try:
                        taken = session.time(partial(call, images))
                    except torch.OutOfMemoryError:
                        session.row(part, who=who, precision=precision, images=size, failed="out of memory")
                        continue
                speed = round(1000 * size / taken["ms"], 1)
                session.row(part, who=who, precision=precision, images=size, images_per_s=speed, **taken, **more)


def compiled_step(session: Session) -> None:
    """Measure forward and backward of DETR-R50 in bf16, plain and compiled."""
    if session.is_small:
        session.row("compiled_step", skipped="compiling takes minutes on a CPU")
        return
    net = create("detr_resnet50").to(session.device).train()
    images = ImageBatch(torch.randn(4, 3, 800, 1066, device=session.device), ((800, 1066),) * 4)
    for who, call in (("plain", net), ("compiled", torch.compile(net))):

        def step(call: Any = call) -> None:
            net.zero_grad()
            with inference_precision("bf16", session.device):
                output = call(images)
            (output.logits.float().square().mean() + output.boxes.mean()).backward()

        session.row("compiled_step", who=who, **session.time(step, least=5))
