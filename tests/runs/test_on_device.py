"""What a GPU would refuse or wait for in a training step, found on a pretended one: see `pretended_device`.

The numbers of waits are the least that is possible: a step reads once whether loss and gradient are finite, a DETR also
its matching costs, and those of its proposals. They may fall and must not rise.
"""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from torch import nn

from pretended_device import LOG, pretended_device
from regard.data.batches.classification import ClassificationBatch
from regard.data.batches.detection import DetectionBatch
from regard.data.coco.dataset import open_detection
from regard.data.generated.shapes import ShapesConfig, write_shapes
from regard.data.transforms.mixing import Mixing
from regard.distillation.teachers import Teacher
from regard.evaluation.detection import evaluate_detector
from regard.losses import AnchorCriterion, DistillationLoss, SetCriterion
from regard.models.backbone import create_backbone
from regard.models.build import build
from regard.models.configs.detr import DETRConfig
from regard.models.configs.retinanet import RetinaNetConfig
from regard.models.configs.vit import ViTConfig
from regard.models.detr import DETR
from regard.models.retinanet import RetinaNet
from regard.models.vit import VisionTransformer
from regard.prediction.predict import predict
from regard.recipes.classification import ClassificationRecipe
from regard.runs.classification_task import ClassificationTask
from regard.runs.detection_task import DetectionTask
from regard.structures.image_batch import ImageBatch
from regard.training import checkpoint_writer, loop
from regard.training.checkpoints import read_checkpoint
from regard.training.distributed import Processes
from regard.training.loop import Trainer, TrainingConfig
from regard.training.optimizer import create_optimizer
from regard.training.reports import Reporter

pytestmark = [pytest.mark.own_process, pytest.mark.filterwarnings("ignore")]  # of torch's, about such devices

TINY = DETRConfig(
    num_classes=5, backbone="small", embed_dim=16, num_heads=2, encoder_layers=1, decoder_layers=2,
    feedforward_dim=16, num_queries=4,
)  # fmt: skip
ANCHORS = replace(TINY, anchors=True, sigmoid=True, query_groups=2, denoising_groups=2)
# Each with the number of times that a step waits.
DETECTORS = {
    "paper": (TINY, 2),
    "groups": (replace(TINY, norm_first=True, position_encoding="learned", query_groups=3), 2),
    "denoising": (ANCHORS, 2),
    "proposals": (replace(ANCHORS, proposals=True), 3),
    "masks": (replace(TINY, masks=True), 2),
    "masks of proposals": (replace(ANCHORS, proposals=True, masks=True, mask_dim=16), 3),
}
VIT = ViTConfig(num_classes=10, image_size=16, patch_size=8, embed_dim=16, num_heads=2, depth=1)


def detection_batch(masks):
    """Two images of other sizes, so that one is padded, with two and three objects."""
    sizes = (32, 48), (40, 32)
    images = ImageBatch.from_images([torch.randint(0, 255, (3, *size), dtype=torch.uint8) for size in sizes])
    targets = [{"labels": torch.randint(0, 5, (n,)), "boxes": torch.rand(n, 4) * 0.4 + 0.3} for n in (2, 3)]
    for target, size in zip(targets, sizes, strict=True):
        target |= {"masks": torch.rand(len(target["labels"]), *size) > 0.5} if masks else {}
    return DetectionBatch(images, targets, [])


def detection_task(device, criterion, *, masks=False):
    task = object.__new__(DetectionTask)  # without data
    task.__dict__.update(
        processes=Processes(0, 1, device), masks=masks, together=True, criterion=criterion, batches_per_epoch=9
    )
    return task


def step_twice(model, task, batches, folder, monkeypatch, **settings):
    """Run two steps as on CUDA, with fused optimizers. The log then has the second one, whose numbers are returned."""
    make, device = loop.create_optimizer, task.processes.device
    monkeypatch.setattr(loop, "create_optimizer", lambda model, config, fused: make(model, config, True))
    reporter = Reporter(None, log_every=20, images_per_step=2, quiet=True)
    config = TrainingConfig(ema=0.9, **settings)
    run = Trainer(model.to(device), task, config, folder, task.processes, {}, reporter)
    run._step(batches, 0.0)
    run.progress.step += 1
    LOG.reset()
    return run._step(batches, 0.0)


@pytest.mark.parametrize("name", DETECTORS)
def test_a_step_of_a_detr(name, tmp_path, monkeypatch):
    config, waits = DETECTORS[name]
    with pretended_device() as device:
        criterion = SetCriterion(5, classification="focal" if config.sigmoid else "softmax")
        task = detection_task(device, criterion, masks=config.masks)
        batches = (detection_batch(config.masks) for _ in itertools.count())
        logs = step_twice(DETR(config), task, batches, tmp_path, monkeypatch, amp="bf16")
        assert not LOG.found("mix", "float64")
        assert LOG.waits() <= waits, LOG.found("wait")
        assert all(value.device == device and value.isfinite().item() for value in logs.values())


def test_a_step_of_a_retinanet(tmp_path, monkeypatch):
    """It waits for the numbers of matched anchors and for the check."""
    with pretended_device() as device:
        net = RetinaNet(RetinaNetConfig(num_classes=5, backbone="small", channels=32, feature_maps=2, anchor_size=8))
        batches = (detection_batch(False) for _ in itertools.count())
        step_twice(net, detection_task(device, AnchorCriterion(5)), batches, tmp_path, monkeypatch)
        assert not LOG.found("mix", "float64")
        assert LOG.waits() <= 2, LOG.found("wait")


@pytest.mark.parametrize("kind", ["labels", "mixed", "teacher", "stored answers"])
def test_a_step_of_a_vit_waits_once(kind, tmp_path, monkeypatch):
    def batches():
        for number in itertools.count():
            answers = torch.randn(4, 10).half() if kind == "stored answers" else None
            images = ImageBatch(torch.randint(0, 255, (4, 3, 16, 16), dtype=torch.uint8), ((16, 16),) * 4)
            yield ClassificationBatch(images, torch.randint(0, 10, (4,)), ("a",) * 4, number, answers)

    with pretended_device() as device:
        task = object.__new__(ClassificationTask)
        teacher = Teacher(VisionTransformer(VIT), 24, mean=(0.5,) * 3, order=[*range(9, -1, -1)]).to(device)
        task.__dict__.update(
            settings=ClassificationRecipe(name="vit", model=VIT, label_smoothing=0.1),
            processes=Processes(0, 1, device), batches_per_epoch=9,
            mixing=Mixing(num_classes=10) if kind in ("mixed", "teacher") else None,
            distillation=None if kind in ("labels", "mixed") else DistillationLoss("soft"),
            teacher=teacher if kind == "teacher" else None,
        )  # fmt: skip
        net = VisionTransformer(replace(VIT, distilled=True, drop_path=0.1))
        optimizer = "lamb" if kind == "mixed" else "adamw"
        step_twice(net, task, batches(), tmp_path, monkeypatch, amp="bf16", optimizer=optimizer)
        assert not LOG.found("mix", "float64")
        assert LOG.waits() <= 1, LOG.found("wait")


def test_predictions_of_a_batch_are_copied_at_once():
    images = [torch.randint(0, 255, (3, 32, 48), dtype=torch.uint8) for _ in range(3)]
    with pretended_device() as device:
        for config, waits in ((TINY, 1), (ANCHORS, 1), (VIT, 1)):
            net = build(config, "mine", None, (32, 48)).to(device)
            LOG.reset()
            found = predict(net, images, threshold=0.0, batch_size=3)
            assert len(found) == 3 and not LOG.found("mix", "float64")
            assert LOG.waits() <= waits, LOG.found("wait")


def test_an_evaluation_waits_twice_a_batch(tmp_path):
    """For the matching costs and the detections; and once for the losses of all batches."""
    write_shapes(ShapesConfig(size=32, train=1, val=5), tmp_path)
    dataset = open_detection(tmp_path, "val")
    with pretended_device() as device:
        net = build(replace(TINY, num_classes=3), "mine", dataset.categories, (32, 32)).to(device)
        LOG.reset()
        evaluate = evaluate_detector.__wrapped__  # tensors of `inference_mode` cannot be wrapped
        with torch.no_grad():
            evaluate(net, dataset, SetCriterion(3), batch_size=2, workers=0, processes=Processes(0, 1, device))
        assert not LOG.found("mix", "float64")
        assert LOG.waits() <= 2 * 3 + 1, LOG.found("wait")


def test_the_device_notices_what_a_gpu_would():
    with pretended_device() as device:
        x = torch.ones(3, 4, device=device)
        mixed = (
            lambda: x + torch.ones(4), lambda: torch.cat((x, torch.ones(1, 4))), lambda: torch.ones(4)[x[0].long()],
            lambda: x.new_zeros(3) @ torch.ones(3),
        )  # fmt: skip
        for wrong in mixed:
            LOG.reset()
            wrong()
            assert LOG.found("mix")
        slow = (
            lambda: x.sum().item(), lambda: bool(x.sum() > 0), lambda: x[x > 0], lambda: x.nonzero(), lambda: x.cpu(),
            lambda: torch.tensor([1.0], device=device), lambda: torch.ones(2).to(device), lambda: x[[0, 1]],
            lambda: x.tolist(), lambda: x.new_tensor([1.0]), lambda: torch.accelerator.synchronize(device),
        )  # fmt: skip
        for wait in slow:
            LOG.reset()
            wait()
            assert LOG.waits() == 1
        LOG.reset()
        x + 1, x * torch.tensor(2.0), torch.ones(2).to(device, non_blocking=True), x.masked_fill(x > 0, 0)
        torch.full_like(x, 3)
        assert not LOG.found("mix", "wait") and LOG.found("upload")


@pytest.mark.parametrize("name", ["adamw", "sgd", "lamb"])
def test_a_first_step_that_overflows_leaves_no_trace(name, monkeypatch):
    """fp16 begins with a scale of 65536, so that the first gradients are often infinite and the scaler skips the step.

    The memory of the optimizer's state then holds whatever it held before.
    """
    with pretended_device() as device:
        model = nn.Linear(8, 8).to(device)
        config = TrainingConfig(optimizer=name, lr=0.1, momentum=0.9)
        optimizer = create_optimizer(model, config, fused=True)
        scaler = torch.amp.GradScaler(device.type, init_scale=4.0)
        before = [parameter.detach().clone() for parameter in model.parameters()]
        for factor in (float("inf"), 1.0):
            scaler.scale(model(torch.ones(2, 8, device=device)).sum() * factor).backward()
            scaler.unscale_(optimizer)
            with monkeypatch.context() as patch:
                patch.setattr(torch, "empty_like", lambda x, **_: torch.full_like(x, torch.nan))
                scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            if factor != 1.0:
                for old, parameter in zip(before, model.parameters(), strict=True):
                    assert torch.equal(old.inner, parameter.detach().inner)
        for old, parameter in zip(before, model.parameters(), strict=True):
            assert parameter.detach().inner.isfinite().all() and not torch.equal(old.inner, parameter.detach().inner)


def test_a_frozen_backbone_computes_in_half_precision():
    with pretended_device() as device, torch.autocast(device.type, dtype=torch.bfloat16), torch.no_grad():
        net = create_backbone("resnet18").to(device)
        LOG.reset()
        maps = net(torch.zeros(1, 3, 32, 32, device=device))
        assert LOG.products() == {("convolution", "bfloat16")} and {m.dtype for m in maps} == {torch.bfloat16}


def test_a_checkpoint_is_copied_in_groups(tmp_path, monkeypatch):
    """Two of a limit of 100 numbers and a rest, in whatever order; the file has all."""
    monkeypatch.setattr(checkpoint_writer, "GROUP_SIZE", 400)
    values = {f"tensor_{number}": torch.randn(60) for number in range(5)}
    with pretended_device() as device:
        there = {name: value.to(device) for name, value in values.items()}
        LOG.reset()
        path = checkpoint_writer.save_checkpoint(tmp_path, 3, {"model": there}, {})
        assert LOG.waits() == 3, LOG.found("wait")
    found = read_checkpoint(path).tensors["model"]
    assert found.keys() == values.keys() and all(torch.equal(found[name], value) for name, value in values.items())
