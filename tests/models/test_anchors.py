"""Anchor queries: the decoder written out, what training adds, and that none of it is seen where it must not be."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection._utils import BoxCoder

from detr_cases import SMALL, plain_attention, plain_feed_forward, plain_norm, randomized, reference_image
from loss_cases import Targets, random_targets
from refusals import refused
from regard.errors import ConfigError
from regard.losses import SetCriterion
from regard.models.anchors import (
    AnchorQueries,
    Proposals,
    QuerySet,
    cell_boxes,
    group_mask,
    inverse_sigmoid,
    move_by_size,
    move_logits,
    noise_boxes,
)
from regard.models.detr import DETR
from regard.structures.boxes import cxcywh_to_xyxy
from regard.structures.outputs import DetectionOutput

PLAIN = dataclasses.replace(SMALL, anchors=True, sigmoid=True, norm_first=True)
CONFIG = dataclasses.replace(PLAIN, query_groups=3, denoising_groups=2)


def images() -> list[Tensor]:
    return [reference_image(1, 64, 48), reference_image(2, 40, 64)]


def training(net: DETR) -> DETR:
    """In training mode, but for the backbone: whatever its norm, images of a batch are apart."""
    net.train()
    net.backbone.eval()
    return net


def train_output(net: DETR, targets: Targets | None, batch: list[Tensor] | None = None) -> DetectionOutput:
    torch.manual_seed(0)
    return training(net)(images() if batch is None else batch, targets)


# --- the decoder ---


def plain_sines(coordinate: Tensor, count: int) -> Tensor:
    waves = [20 ** (2 * i / count) for i in range(count // 2)]
    both = [f(2 * math.pi * coordinate / wave) for wave in waves for f in (torch.sin, torch.cos)]
    return torch.stack(both, dim=-1)


def plain_mlp(mlp: nn.Module, x: Tensor) -> Tensor:
    for layer in mlp.layers[:-1]:
        x = F.relu(layer(x))
    return mlp.layers[-1](x)


def plain_cross_attention(m: nn.Module, x: Tensor, look: Tensor, memory: Tensor, place: Tensor, seen: Tensor) -> Tensor:
    """Content and place each have their product; the sum is scaled by the width of both."""
    a, c = m.multihead_attn, x.shape[-1]
    inputs = zip((x, memory, memory), a.in_proj_weight.split(c), a.in_proj_bias.split(c), strict=True)
    parts = [y @ w.T + b for y, w, b in inputs] + [look @ m.query_place.weight.T, place @ m.memory_place.weight.T]
    q, k, v, qp, kp = (y.unflatten(-1, (a.num_heads, -1)) for y in parts)
    scores = torch.einsum("bnhd,bmhd->bhnm", q, k) + torch.einsum("bnhd,bmhd->bhnm", qp, kp.expand_as(k))
    scores = (scores / math.sqrt(2 * c / a.num_heads)).masked_fill(~seen[:, None, None], -1e9)
    return a.out_proj(torch.einsum("bhnm,bmhd->bnhd", scores.softmax(-1), v).flatten(2))


@torch.no_grad()
def test_the_decoder_written_out() -> None:
    net = randomized(PLAIN)
    g = torch.Generator().manual_seed(3)
    memory, place = torch.randn(2, 12, 16, generator=g), torch.randn(1, 12, 16, generator=g)
    seen = torch.rand(2, 12, generator=g) > 0.3
    content, anchors = torch.randn(2, 5, 16, generator=g), 0.1 + 0.8 * torch.rand(2, 5, 4, generator=g)
    decoder = net.transformer.decoder
    hidden, boxes = decoder.decode(
        QuerySet(content, anchors), net.bbox_embed, memory, place, move=move_logits, memory_mask=seen[:, None, None]
    )
    x = content
    for number, layer in enumerate(decoder.layers):
        cx, cy, w, h = anchors.unbind(-1)
        position = plain_mlp(decoder.position_mlp, torch.cat([plain_sines(p, 8) for p in (cx, cy, w, h)], -1))
        size = plain_mlp(decoder.size_mlp, x).sigmoid()
        look = torch.cat((plain_sines(cy, 8) * (size[..., 1] / h)[..., None],
                          plain_sines(cx, 8) * (size[..., 0] / w)[..., None]), -1)  # fmt: skip
        look = look * plain_mlp(decoder.scale_mlp, x)
        y = plain_norm(layer.norm1, x)
        x = x + plain_attention(layer.self_attn, y + position, y + position, y)
        x = x + plain_cross_attention(layer, plain_norm(layer.norm2, x), look, memory, place, seen)
        x = x + plain_feed_forward(layer, plain_norm(layer.norm3, x))
        y = plain_norm(decoder.norm, x)
        anchors = (torch.logit(anchors) + plain_mlp(net.bbox_embed, y)).sigmoid()
        torch.testing.assert_close(hidden[number], y, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(boxes[number], anchors, atol=1e-4, rtol=1e-4)
    assert boxes.std(dim=2).min() > 0.01


@torch.no_grad()
def test_boxes_start_at_their_anchors() -> None:
    torch.manual_seed(0)
    net = DETR(PLAIN).eval()
    output = net(images())
    expected = net.query_embed.anchors.weight.sigmoid().expand(2, -1, -1)
    for layer in (*output.auxiliary, output):
        torch.testing.assert_close(layer.boxes, expected)


@torch.no_grad()
def test_queries_first_look_at_their_own_place() -> None:
    torch.manual_seed(0)
    config = dataclasses.replace(PLAIN, embed_dim=64, num_queries=40, encoder_layers=0)
    net = DETR(config).eval()
    maps = net.attention([0.01 * reference_image(1, 128, 96)])
    h, w = maps.feature_size
    seen = maps.decoder_cross[0, 0].mean(0).unflatten(-1, (h, w))  # (Q, h, w)
    x = (seen.sum(1) * (torch.arange(w) + 0.5) / w).sum(-1)
    y = (seen.sum(2) * (torch.arange(h) + 0.5) / h).sum(-1)
    cx, cy = net.query_embed.anchors.weight.sigmoid()[:, :2].unbind(-1)
    assert torch.corrcoef(torch.stack((x, cx)))[0, 1] > 0.9
    assert torch.corrcoef(torch.stack((y, cy)))[0, 1] > 0.9
    factor = net.transformer.decoder.scale_mlp(torch.zeros(64))  # of the sines, before anything is learned
    assert 0.8 < factor.mean() < 1.2


@torch.no_grad()
def test_attention_maps() -> None:
    net = randomized(CONFIG)
    maps = net.attention(images())
    torch.testing.assert_close(maps.output.boxes, net(images()).boxes)
    assert maps.decoder_self.shape == (3, 2, 4, 5, 5)
    for weights in (maps.decoder_self, maps.decoder_cross):
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))


# --- what training adds ---


def assert_same(a: DetectionOutput, b: DetectionOutput, tolerance: float = 1e-5) -> None:
    for x, y in zip((*a.auxiliary, a), (*b.auxiliary, b), strict=True):
        torch.testing.assert_close(x.logits, y.logits, atol=tolerance, rtol=tolerance)
        torch.testing.assert_close(x.boxes, y.boxes, atol=tolerance, rtol=tolerance)


@torch.no_grad()
def test_parts_for_training_change_nothing_at_inference() -> None:
    trained, plain = randomized(CONFIG), randomized(PLAIN, seed=1)
    weights = trained.state_dict()
    del weights["query_embed.labels.weight"]
    for name in ("query_embed.content.weight", "query_embed.anchors.weight"):
        weights[name] = weights[name][:5]
    plain.load_state_dict(weights)
    output = trained(images())
    assert output.num_groups == 1 and output.denoising is None and output.logits.shape == (2, 5, 4)
    assert_same(output, plain(images()), tolerance=0)
    assert_same(trained(images(), random_targets([2, 1], 4)), output, tolerance=0)


def test_inference_uses_the_first_group_only() -> None:
    net = randomized(CONFIG)
    output = net(images())
    (output.logits.sum() + output.boxes.sum()).backward()
    unused = {name for name, p in net.named_parameters() if p.grad is None}
    assert unused == {"query_embed.labels.weight"}
    for table in (net.query_embed.content, net.query_embed.anchors):
        used = table.weight.grad.abs().sum(1) > 0
        assert used.tolist() == [True] * 5 + [False] * 10


@torch.no_grad()
def test_targets_do_not_leak_into_the_queries() -> None:
    net = randomized(CONFIG)
    a, b = (train_output(net, random_targets([3, 1], 4, seed)) for seed in range(2))
    c = train_output(net, random_targets([1, 4], 4))
    without = train_output(net, None)
    assert a.denoising is not None and b.denoising is not None and without.denoising is None
    assert not torch.allclose(a.denoising.boxes, b.denoising.boxes)
    for other in (b, c, without):
        assert other.num_groups == 3 and other.logits.shape == (2, 15, 4)
        assert_same(a, other)


@torch.no_grad()
def test_groups_do_not_see_each_other() -> None:
    net, targets = randomized(CONFIG), random_targets([3, 1], 4)
    before = train_output(net, targets)
    net.query_embed.content.weight[5:10] *= -30
    after = train_output(net, targets)
    changed = (before.logits - after.logits).abs().amax((0, 2)) > 1e-4
    assert changed.tolist() == [False] * 5 + [True] * 5 + [False] * 5
    assert before.denoising is not None and after.denoising is not None
    torch.testing.assert_close(before.denoising.logits, after.denoising.logits, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_copies_of_one_target_do_not_see_each_other() -> None:
    """Each round of copies sees itself only: here the label of one copy in the second round is another one."""
    net = randomized(dataclasses.replace(CONFIG, label_noise=0.0, box_noise=0.0))
    targets = random_targets([3, 3], 4)
    before = train_output(net, targets)
    look_up = net.query_embed.labels.forward

    def other(labels: Tensor) -> Tensor:
        labels = labels.clone()
        labels[:, 4] = (labels[:, 4] + 1) % 4
        return look_up(labels)

    net.query_embed.labels.forward = other
    after = train_output(net, targets)
    assert before.denoising is not None and after.denoising is not None
    changed = (before.denoising.logits - after.denoising.logits).abs().amax((0, 1, 3)) > 1e-4
    assert changed.tolist() == [False] * 3 + [True] * 3


@torch.no_grad()
def test_padded_copies_change_nothing() -> None:
    net = randomized(dataclasses.replace(CONFIG, label_noise=0.0, box_noise=0.0))
    targets = random_targets([1, 3], 4)
    batch = [reference_image(seed, 48, 64) for seed in (1, 2)]
    both, alone = train_output(net, targets, batch), train_output(net, targets[:1], batch[:1])
    assert both.denoising is not None and alone.denoising is not None
    assert both.denoising.target.tolist() == [[0, -1, -1] * 2, [0, 1, 2] * 2]
    assert alone.denoising.target.tolist() == [[0, 0]]
    real = both.denoising.target[0] >= 0
    torch.testing.assert_close(both.denoising.logits[:, :1, real], alone.denoising.logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(both.denoising.boxes[:, :1, real], alone.denoising.boxes, atol=1e-5, rtol=1e-5)
    # Without noise, what the first layer starts from is the target itself.
    net.bbox_embed.last.weight.zero_()
    net.bbox_embed.last.bias.zero_()
    copies = train_output(net, targets, batch).denoising
    assert copies is not None
    torch.testing.assert_close(copies.boxes[0, 1], targets[1]["boxes"].repeat(2, 1), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("counts", [[2, 3], [0, 2], [0, 0]])
@pytest.mark.parametrize("sigmoid", [True, False])
def test_a_step_lowers_the_loss_and_every_parameter_takes_part(counts: list[int], sigmoid: bool) -> None:
    """DistributedDataParallel waits for the gradient of every parameter, on batches without objects as well."""
    torch.manual_seed(0)
    net = DETR(dataclasses.replace(CONFIG, sigmoid=sigmoid, label_noise=0.0, box_noise=0.0))
    criterion = SetCriterion(4, classification="focal" if sigmoid else "softmax")
    targets = random_targets(counts, 4)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    values = []
    for _ in range(3):
        loss = criterion.total(criterion(train_output(net, targets), targets))
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
        optimizer.step()
        values.append(loss.item())
    assert values[0] > values[1] > values[2]


def test_targets_without_area_give_finite_losses() -> None:
    net = randomized(CONFIG)
    targets = random_targets([3, 1], 4)
    targets[0]["boxes"][0, 2:] = 0
    targets[0]["boxes"][1, 3] = 0
    criterion = SetCriterion(4, classification="focal")
    loss = criterion.total(criterion(train_output(net, targets), targets))
    loss.backward()
    assert loss.isfinite() and all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


# --- queries, noise and masks ---


def queries_of(**changes: float) -> AnchorQueries:
    torch.manual_seed(0)
    settings = {"num_groups": 3, "denoising_groups": 2, "label_noise": 0.2, "box_noise": 0.4, **changes}
    return AnchorQueries(num_queries=5, num_classes=4, embed_dim=8, **settings)  # type: ignore[arg-type]


def test_mask_cell_by_cell() -> None:
    found = queries_of()(2, random_targets([3, 1], 4))
    assert found.mask is not None and found.mask.shape == (2, 1, 21, 21) and found.noised_target is not None
    assert found.noised_target.tolist() == [[0, 1, 2] * 2, [0, -1, -1] * 2]
    for image, count in enumerate((3, 1)):
        for a in range(21):
            for b in range(21):
                same = (a // 5 == b // 5) if max(a, b) < 15 else min(a, b) >= 15 and (a - 15) // 3 == (b - 15) // 3
                real = b < 15 or (b - 15) % 3 < count
                assert found.mask[image, 0, a, b].item() == (a == b or (same and real))


def test_queries_without_targets() -> None:
    queries = queries_of()
    for targets in (None, random_targets([0, 0], 4)):
        found = queries(2, targets)
        assert found.content.shape == (2, 15, 8) and found.noised_target is None and found.mask is not None
        assert torch.equal(found.content[1], queries.content.weight)
    assert queries_of(num_groups=1, denoising_groups=0)(2, None).mask is None
    assert queries.eval()(2, random_targets([3, 1], 4)).content.shape == (2, 5, 8)


def test_label_noise() -> None:
    queries, targets = queries_of(denoising_groups=500), [{"labels": torch.tensor([2]), "boxes": torch.rand(1, 4)}]
    with torch.no_grad():
        queries.labels.weight.copy_(torch.eye(4, 8))
    labels = queries(1, targets).content[0, 15:].argmax(-1)
    kept = (labels == 2).float().mean().item()
    assert kept == pytest.approx(0.8 + 0.2 / 4, abs=0.05)  # a random label may be the right one
    assert set(labels.tolist()) == {0, 1, 2, 3}


def test_box_noise() -> None:
    g = torch.Generator().manual_seed(0)
    centre, size = 0.3 + 0.4 * torch.rand(1000, 2, generator=g), 0.05 + 0.4 * torch.rand(1000, 2, generator=g)
    boxes = torch.cat((centre, size), -1)
    torch.manual_seed(0)
    shift = (cxcywh_to_xyxy(noise_boxes(boxes, 0.4)) - cxcywh_to_xyxy(boxes)) / boxes[:, 2:].repeat(1, 2)
    assert 0.19 < shift.abs().max() <= 0.2 + 1e-4  # 0.4 of half a side
    assert shift.mean(0).abs().max() < 0.02
    torch.testing.assert_close(noise_boxes(boxes, 0.0), boxes)
    at_the_border = noise_boxes(torch.tensor([[0.02, 0.98, 0.04, 0.04]]).expand(500, 4), 0.9)
    corners = cxcywh_to_xyxy(at_the_border)
    assert corners.min() >= -1e-6 and corners.max() <= 1 + 1e-6 and (at_the_border[:, 2:] > 0).all()


def test_group_mask_and_inverse_sigmoid() -> None:
    group = torch.tensor([0, 0, 1])
    assert group_mask(group)[0, 0].tolist() == [[True, True, False], [True, True, False], [False, False, True]]
    x = torch.tensor([0.0, 0.0005, 0.3, 0.9, 1.0])
    expected = [math.log(p / (1 - p)) for p in (0.001, 0.001, 0.3, 0.9, 0.999)]
    torch.testing.assert_close(inverse_sigmoid(x), torch.tensor(expected))


PROPOSED = dataclasses.replace(PLAIN, proposals=True, query_groups=2, denoising_groups=1, feature_maps=2)


def test_cells_start_with_boxes_around_them() -> None:
    padding = torch.zeros(2, 4, 6, dtype=torch.bool)
    padding[1, :, 4:] = True
    padding[1, 3:] = True
    boxes = cell_boxes(padding, 0.2)
    assert boxes[0, 1, 2].tolist() == pytest.approx([2.5 / 6, 1.5 / 4, 0.2, 0.2])
    assert boxes[1, 1, 2].tolist() == pytest.approx([2.5 / 4, 1.5 / 3, 0.2, 0.2])  # fractions of the unpadded image


def test_the_best_proposals_become_queries() -> None:
    proposals = Proposals(num_classes=2, embed_dim=3, anchor_size=0.1)
    logits = torch.tensor([[[-1.0, -9], [-9, 3], [0.5, -9], [-9, -9]]])
    boxes, tokens = torch.arange(16.0).view(1, 4, 4), torch.arange(12.0).view(1, 4, 3).requires_grad_()
    chosen = proposals.best(DetectionOutput(logits, boxes), tokens, 2)
    assert torch.equal(chosen.anchors, boxes[:, [1, 2]]) and torch.equal(chosen.content, tokens[:, [1, 2]])
    assert chosen.content.requires_grad and not chosen.anchors.requires_grad
    more = proposals.best(DetectionOutput(logits, boxes), tokens, 9)  # more queries than cells
    assert more.anchors.shape == (1, 9, 4) and more.content.shape == (1, 9, 3)


def test_boxes_move_by_their_size_as_in_torchvision() -> None:
    torch.manual_seed(0)
    boxes = torch.cat((0.4 + 0.2 * torch.rand(50, 2), 0.05 + 0.1 * torch.rand(50, 2)), -1)
    change = 0.5 * torch.randn(50, 4)
    decoded = BoxCoder((1.0, 1.0, 1.0, 1.0)).decode_single(change, cxcywh_to_xyxy(boxes))
    torch.testing.assert_close(cxcywh_to_xyxy(move_by_size(boxes, change)), decoded, atol=1e-6, rtol=1e-5)
    for move in (move_by_size, move_logits):
        torch.testing.assert_close(move(boxes, torch.zeros_like(boxes)), boxes)
        far = move(boxes, torch.full_like(boxes, 1e4))
        assert far.isfinite().all() and far.min() >= 0 and far.max() <= 1
    assert move_by_size(boxes, change.bfloat16()).dtype == torch.float32


def test_padding_is_not_proposed() -> None:
    net = randomized(PROPOSED).eval()
    alone = net([images()[1]])
    padded = net(images())
    assert padded.boxes[1].shape == alone.boxes[0].shape and padded.boxes.isfinite().all()
    proposals, _ = net.proposals(torch.randn(1, 6, 16), torch.tensor([[[False, True, True], [False, True, True]]]))
    assert sorted(proposals.logits[0].amax(-1).argsort(descending=True)[:2].tolist()) == [0, 3]


def test_proposals_are_learned_and_every_parameter_takes_part() -> None:
    torch.manual_seed(0)
    net, targets = DETR(PROPOSED), random_targets([2, 3], PROPOSED.num_classes)
    criterion = SetCriterion(PROPOSED.num_classes, classification="focal")
    output = train_output(net, targets)
    losses = criterion(output, targets)
    cells = output.proposals
    assert cells is not None and cells.logits.shape == (2, 16 * 16, PROPOSED.num_classes)  # cells of 4 pixels
    criterion.total(losses).backward()
    assert not [name for name, p in net.named_parameters() if p.requires_grad and p.grad is None]
    assert net.eval()(images()).proposals is None


def test_maps_of_two_strides_are_added_by_hand() -> None:
    net = randomized(dataclasses.replace(SMALL, feature_maps=2, encoder_layers=0)).eval()
    maps = net.backbone(images()[0][None])
    coarse, fine = net.input_proj(maps[-1]), net.finer_proj[0](maps[-2])
    summed = fine + F.interpolate(coarse, size=fine.shape[-2:], mode="nearest")
    summed = summed + net.fusion(summed.relu())
    tokens, features = net._tokens(maps[-1], list(maps[:-1]))
    assert features.shape[-2:] == fine.shape[-2:]
    torch.testing.assert_close(tokens, summed.flatten(2).transpose(1, 2), atol=1e-5, rtol=1e-5)


def test_settings_that_do_not_go_together() -> None:
    with refused(ConfigError, "model.proposals", "model.anchors=true", code="C09"):
        dataclasses.replace(SMALL, proposals=True)
    with refused(ConfigError, "feature_maps=9", "small", code="C03"):
        DETR(dataclasses.replace(SMALL, feature_maps=9))
