"""The mask head: against transformers, its plain form and itself with all queries; files with it."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import masks_to_boxes

from detr_cases import SMALL, randomized, reference_image
from refusals import refused
from regard.errors import ConfigError
from regard.models.build import build, create
from regard.models.configs.detr import DETRConfig
from regard.models.detr import DETR
from regard.models.panoptic import AttentionMap, MaskHead, ellipse_logits, relative_places
from regard.structures.categories import Category
from regard.structures.image_batch import ImageBatch
from regard.weights.detr import load_file, official_name, transfer

MASKED = dataclasses.replace(SMALL, masks=True)
PAIRS = (torch.tensor([1, 0, 1, 1]), torch.tensor([4, 0, 2, 4]))


def batch() -> ImageBatch:
    return ImageBatch.from_images([reference_image(1, 64, 48), reference_image(2, 40, 64)])


def test_parameters_of_the_published_model():
    with torch.device("meta"):
        net = create("detr_resnet50_panoptic")
    assert sum(p.numel() for p in net.parameters()) == 42_899_288
    assert sum(p.numel() for p in net.mask_head.parameters()) == 1_202_073
    assert sum(p.numel() for p in net.bbox_attention.parameters()) == 131_584
    names = [c.name for c in net.card.categories]
    assert len(names) == 250 and names[1] == "person" and names[200] == "rug-merged"
    assert [c.is_thing for c in net.card.categories] == [i <= 90 for i in range(250)]


def sharp(mask_dim: int = 0) -> DETR:
    """A model whose attention maps are peaked and count, so that queries differ."""
    net = randomized(dataclasses.replace(MASKED, mask_dim=mask_dim))
    with torch.no_grad():
        net.query_embed.weight.mul_(100)
        net.bbox_attention.q_linear.weight.mul_(30)
        net.mask_head.lay1.weight[:, mask_dim or SMALL.embed_dim :].mul_(1000)
    return net


def randomize(module: nn.Module) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))


@torch.no_grad()
@pytest.mark.parametrize("padded", [False, True])
def test_equals_transformers(padded):
    modeling = pytest.importorskip("transformers.models.detr.modeling_detr")
    torch.manual_seed(0)
    b, q, c, heads, size, fpn = 2, 3, 32, 8, (5, 7), (40, 24, 12)
    looking, head = AttentionMap(c, heads), MaskHead(c, heads, fpn)
    randomize(looking)
    randomize(head)
    their_looking = modeling.DetrMHAttentionMap(c, heads)
    their_head = modeling.DetrMaskHeadSmallConv(c + heads, list(fpn), c, "relu")
    their_looking.load_state_dict({k.replace("_linear", "_proj"): v for k, v in looking.state_dict().items()})
    renamed = {}
    for (ours, value), theirs in zip(_in_order(head), their_head.state_dict(), strict=True):
        assert value.shape == their_head.state_dict()[theirs].shape, (ours, theirs)
        renamed[theirs] = value
    their_head.load_state_dict(renamed)
    queries, memory, projected = torch.randn(b, q, c), torch.randn(b, c, *size), torch.randn(b, c, *size)
    finer = [torch.randn(b, channels, 5 * 2**i, 7 * 2**i - i) for i, channels in enumerate(fpn, start=1)]
    seen = torch.ones(b, 1, 1, 35, dtype=torch.bool)
    if padded:
        seen[0, ..., 20:] = False
    bias = torch.zeros(b, 1, 1, *size).masked_fill(~seen.unflatten(3, size), -torch.inf)
    attention = their_looking(queries, memory, bias)
    expected = their_head(projected, attention, finer).unflatten(0, (b, q))[:, :, 0]

    image, query = torch.tensor([0, 0, 0, 1, 1, 1]), torch.tensor([0, 1, 2, 0, 1, 2])
    ours = looking(queries[image, query], memory.flatten(2).transpose(1, 2), image, seen if padded else None)
    torch.testing.assert_close(ours.unflatten(2, size), attention.flatten(0, 1), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(ours.sum((1, 2)), torch.ones(6))
    found = head(ours.unflatten(2, size), projected, finer, image).unflatten(0, (b, q))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def _in_order(head: MaskHead) -> list[tuple[str, Tensor]]:
    """Tensors in the order in which an image passes them, as transformers registers them."""
    order = ["lay1", "gn1", "lay2", "gn2"]
    for number in (1, 2, 3):
        order += [f"adapter{number}", f"lay{number + 2}", f"gn{number + 2}"]
    state = head.state_dict()
    return [(f"{name}.{kind}", state[f"{name}.{kind}"]) for name in (*order, "out_lay") for kind in ("weight", "bias")]


def test_the_split_convolution_is_the_plain_one():
    """Values and gradients, for queries of several images in any order."""
    torch.manual_seed(0)
    head = MaskHead(16, 4, (12, 8))
    randomize(head)
    image = torch.tensor([1, 0, 1, 1])
    attention, projected = torch.rand(4, 4, 5, 6), torch.randn(2, 16, 5, 6, requires_grad=True)
    finer = [torch.randn(2, 12, 9, 12), torch.randn(2, 8, 18, 24)]
    results = []
    for run in (head.forward, head.plain):
        head.zero_grad()
        projected.grad = None
        masks = run(attention, projected, finer, image)
        masks.square().sum().backward()
        assert projected.grad is not None
        results.append((masks, projected.grad.clone(), [p.grad.clone() for p in head.parameters()]))
    torch.testing.assert_close(results[0], results[1], atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("mask_dim", [0, 16])
def test_chosen_queries_have_the_masks_of_all(mask_dim):
    net = sharp(mask_dim)
    output = net(batch())
    assert output.masks.shape == (2, 5, 16, 16)
    image, query = PAIRS
    torch.testing.assert_close(net.masks(output, image, query), output.masks[image, query], atol=1e-5, rtol=1e-4)
    assert net(batch(), masks=False).masks is None
    assert net.train()(batch()).masks is None
    assert output.masks.std(dim=1).mean() > 2e-3  # queries differ, by more than the tolerance


@torch.no_grad()
@pytest.mark.parametrize("others", [(), (reference_image(2, 128, 128),)], ids=["alone", "padded"])
def test_a_smaller_head_sees_the_place_of_the_box(others):
    """By hand for a cell, whose place is a fraction of the image without padding."""
    net, maps = randomized(dataclasses.replace(MASKED, mask_dim=16)), []
    net.mask_head.register_forward_pre_hook(lambda module, inputs: maps.append(inputs[0]))
    output = net([reference_image(1, 64, 64), *others], masks=False)
    net.masks(output, torch.tensor([0, 0]), torch.tensor([1, 3]))
    cx, cy, w, h = output.boxes[0, 3].tolist()
    cells = 64 // (128 // maps[0].shape[-1] if others else 64 // maps[0].shape[-1])
    expected = [((2 + 0.5) / cells - cx) / w, ((1 + 0.5) / cells - cy) / h]
    assert maps[0].shape[1] == SMALL.num_heads + 2 and min(map(abs, expected)) < 2
    assert maps[0][1, -2:, 1, 2].tolist() == pytest.approx([max(-2, min(2, x)) for x in expected], abs=1e-4)


@torch.no_grad()
def test_the_head_sees_what_the_authors_give_it():
    """DETRsegm.forward: the last decoder layer over the encoder's memory, then projected features and finer maps."""
    net, images = sharp(), batch()
    seen = {}
    for name in ("backbone", "transformer.encoder", "transformer.decoder"):
        net.get_submodule(name).register_forward_hook(lambda m, i, o, name=name: seen.__setitem__(name, o))
    output = net(images)
    *finer, features = seen["backbone"]
    projected = net.input_proj(features)
    hidden, memory = seen["transformer.decoder"], seen["transformer.encoder"]
    assert not torch.allclose(hidden[-1], hidden[0], atol=1e-2) and len(hidden) > 1
    padding = torch.nn.functional.interpolate(images.padding_mask()[:, None].float(), size=features.shape[-2:])
    visible = ~padding[:, 0].bool().flatten(1)[:, None, None]
    for image in (0, 1):
        rows = torch.full((5,), image)
        maps = net.bbox_attention(hidden[-1, image], memory, rows, visible).unflatten(2, features.shape[-2:])
        masks = net.mask_head(maps, projected, tuple(finer[::-1][: net.mask_maps]), rows)
        torch.testing.assert_close(output.masks[image], masks, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_few_masks_at_once_are_the_same(monkeypatch):
    net = sharp().eval()
    output = net(batch(), masks=False)
    whole = net.masks(output, *PAIRS)
    counts = []
    net.mask_head.register_forward_pre_hook(lambda module, inputs: counts.append(len(inputs[0])))
    monkeypatch.setattr("regard.models.detr.MASKS_AT_ONCE", 3)
    torch.testing.assert_close(net.masks(output, *PAIRS), whole, rtol=1e-5, atol=1e-5)
    assert counts == [3, 1] and whole.std() > 0.01


def test_masks_do_not_depend_on_neighbours_or_change_boxes():
    net = sharp()
    plain = randomized(SMALL)
    plain.load_state_dict({k: v for k, v in net.state_dict().items() if k in plain.state_dict()})
    both, alone = net(batch()), net([reference_image(1, 64, 48)])
    torch.testing.assert_close(both.boxes, plain(batch()).boxes)
    torch.testing.assert_close(both.logits, plain(batch()).logits)
    other = ImageBatch.from_images([reference_image(1, 64, 48), reference_image(3, 40, 64)])
    torch.testing.assert_close(net(other).masks[0], both.masks[0], atol=1e-5, rtol=1e-4)
    assert alone.masks.shape == (1, 5, 16, 12)


def test_masks_start_as_the_ellipse_inside_the_box():
    box = torch.tensor([[0.5, 0.375, 0.5, 0.25]])
    rows = (torch.arange(64) + 0.5) / 64
    centres = torch.stack(torch.meshgrid(rows, rows, indexing="xy"), -1)
    for step in (1, 4):  # at the size of the cells, and four times as fine
        places = relative_places(centres.unfold(0, step, step).unfold(1, step, step).mean((-1, -2))[None], box)
        inside = ellipse_logits(places, (64, 64))[0] > 0
        assert inside.sum() / 64**2 == pytest.approx(math.pi / 4 * 0.5 * 0.25, rel=0.03)
        assert masks_to_boxes(inside[None])[0].tolist() == pytest.approx([16, 16, 47, 31], abs=1)
    assert ellipse_logits(places, (64, 64)).min() == -6


def test_models_without_a_mask_head_say_so():
    net = randomized(SMALL)
    with refused(ConfigError, "model.masks=true", code="C09"):
        net.masks(net(batch()), *PAIRS)


def test_the_authors_files_have_the_detector_inside(tmp_path):
    """With the prefix `detr.`; sizes, classes and masks are read off the tensors."""
    config = DETRConfig(
        backbone="resnet18", num_classes=6, embed_dim=32, encoder_layers=1, decoder_layers=2, feedforward_dim=40,
        num_queries=7, masks=True,
    )  # fmt: skip
    net = randomized(config)
    outside = ("mask_head.", "bbox_attention.")
    names = {k: k if k.startswith(outside) else f"detr.{official_name(k)}" for k in net.state_dict()}
    torch.save({"model": {names[k]: v for k, v in net.state_dict().items()}}, tmp_path / "p.pth")
    loaded = load_file(tmp_path / "p.pth")
    assert loaded.config == config and loaded.card.name == "detr_resnet18_panoptic"
    with torch.no_grad():
        torch.testing.assert_close(loaded(batch()).masks, net(batch()).masks)


def test_a_detector_gets_a_mask_head():
    """The second stage of training starts from the first."""
    categories = [Category(i, str(i)) for i in range(4)]
    source, net = build(SMALL, "small", categories), build(MASKED, "masked", categories)
    fresh = {k: v.clone() for k, v in net.state_dict().items() if k.startswith(("mask_head.", "bbox_attention."))}
    assert "a new mask head" in transfer(source, net)
    state = net.state_dict()
    assert all(torch.equal(state[key], value) for key, value in source.state_dict().items())
    assert all(torch.equal(state[key], value) for key, value in fresh.items())
    again = build(MASKED, "masked", categories)
    assert "mask head" not in transfer(net, again)
    assert all(torch.equal(again.state_dict()[key], value) for key, value in state.items())
    assert "mask head" not in transfer(net, build(SMALL, "small", categories))  # and loses it


@torch.no_grad()
def test_small_members():
    net = create("detr_tiny_panoptic", num_classes=5).eval()
    output = net([torch.randn(3, 64, 64)])
    assert output.masks.shape == (1, 15, 16, 16)
