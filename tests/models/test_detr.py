"""DETR against the authors' numbers, transformers, and the paper's figure written out; what must not change it."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import torchvision
from safetensors.torch import load_file as load_safetensors
from torch import Tensor, nn

from detr_cases import (
    GOLDEN,
    SMALL,
    plain_decoder_layer,
    plain_encoder_layer,
    plain_norm,
    randomized,
    reference_image,
    reference_weights,
)
from loss_cases import golden_targets, random_targets
from refusals import refused
from regard.benchmarks.detr import from_transformers
from regard.errors import CheckpointError, ConfigError
from regard.losses import SetCriterion
from regard.models.build import create
from regard.models.configs.detr import DETRConfig, DETRDemoConfig
from regard.models.detr import DETR, nearest_pixels
from regard.models.detr_demo import DETRDemo
from regard.structures.image_batch import ImageBatch
from regard.structures.outputs import DetectionOutput
from regard.weights.detr import load_file, official_name


def images(*sizes: tuple[int, int]) -> list[Tensor]:
    return [reference_image(seed, *size) for seed, size in enumerate(sizes, start=1)]


def assert_same(a: DetectionOutput, b: DetectionOutput, tolerance: float = 1e-5) -> None:
    assert len(a.auxiliary) == len(b.auxiliary)
    for x, y in zip((*a.auxiliary, a), (*b.auxiliary, b), strict=True):
        torch.testing.assert_close(x.logits, y.logits, atol=tolerance, rtol=tolerance)
        torch.testing.assert_close(x.boxes, y.boxes, atol=tolerance, rtol=tolerance)


# --- the authors' code ---


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return reference_weights()


@pytest.fixture(scope="module")
def resnet50(weights: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> DETR:
    """DETR-R50 with the reference weights, read from a file as the authors write it."""
    path = tmp_path_factory.mktemp("weights") / "reference.pth"
    torch.save({"model": weights}, path)
    net = load_file(path)
    path.unlink()
    assert isinstance(net, DETR) and not net.training
    return net


class TestAuthors:
    SIZES = ((192, 256), (224, 200))

    def test_every_tensor_of_the_file_has_its_place(self, weights: dict[str, Tensor], resnet50: DETR) -> None:
        found = {official_name(name): value for name, value in resnet50.state_dict().items()}
        assert len(weights) == 458 and found.keys() == weights.keys()
        assert all(torch.equal(found[name], value) for name, value in weights.items())
        assert resnet50.config == DETRConfig() and resnet50.card.name == "detr_resnet50"

    @torch.no_grad()
    def test_outputs(self, resnet50: DETR) -> None:
        golden = load_safetensors(GOLDEN / "detr_resnet50.outputs.safetensors")
        output = resnet50(images(*self.SIZES))
        assert len(output.auxiliary) == 5 and output.num_groups == 1 and output.denoising is None
        for prefix, layer in zip([f"aux{i}." for i in range(5)] + [""], [*output.auxiliary, output], strict=True):
            torch.testing.assert_close(layer.logits, golden[f"{prefix}pred_logits"], atol=2e-4, rtol=0)
            torch.testing.assert_close(layer.boxes, golden[f"{prefix}pred_boxes"], atol=2e-4, rtol=0)

    def test_gradients(self, resnet50: DETR) -> None:
        golden = json.loads((GOLDEN / "detr_resnet50.gradients.json").read_text())
        learned = {name: p.requires_grad for name, p in resnet50.named_parameters()}
        resnet50.requires_grad_(True)
        criterion = SetCriterion(91)
        total = criterion.total(criterion(resnet50(images(*self.SIZES)), golden_targets(golden)))
        total.backward()
        assert total.item() == pytest.approx(golden["total"], rel=1e-4)
        norms = {official_name(n): p.grad.norm().item() for n, p in resnet50.named_parameters() if p.grad is not None}
        assert norms.keys() == golden["grad_norms"].keys()
        for name, expected in golden["grad_norms"].items():
            # The first self-attention sees equal values only, so its weights have no gradient but rounding.
            assert norms[name] == pytest.approx(expected, rel=2e-3, abs=1e-4), name
        resnet50.zero_grad(set_to_none=True)
        for name, parameter in resnet50.named_parameters():
            parameter.requires_grad_(learned[name])

    @pytest.mark.parametrize(
        ("name", "trainable", "total"),
        [("detr_resnet50", 41_302_368, 41_524_768), ("detr_resnet101", 60_242_272, 60_464_672)],
    )
    def test_number_of_parameters(self, name: str, trainable: int, total: int) -> None:
        with torch.device("meta"):
            net = create(name)
        assert sum(p.numel() for p in net.parameters()) == total
        assert sum(p.numel() for p in net.parameters() if p.requires_grad) == trainable

    @torch.no_grad()
    def test_padding_hardly_matters(self, resnet50: DETR) -> None:
        """It leaks in through the borders of convolutions, and nowhere else."""
        image = images((224, 200))[0]
        padded = ImageBatch(nn.functional.pad(image, (0, 56, 0, 32))[None], ((224, 200),))
        alone, leaked = resnet50([image]), resnet50(padded)
        unmasked = resnet50([padded.pixels[0]])
        assert 0 < (alone.boxes - leaked.boxes).abs().max() < 0.05
        assert (alone.boxes - unmasked.boxes).abs().max() > 0.1


class TestFiles:
    def write(self, path: Path, **changes: Tensor | None) -> Path:
        """The authors' file, with 250 classes, 7 queries and one layer in encoder and decoder. All is zero."""
        shapes = json.loads((GOLDEN / "detr_resnet50.shapes.json").read_text())
        kept = {n: torch.zeros(s) for n, s in shapes.items() if not re.search(r"coder\.layers\.[1-5]\.", n)}
        kept["class_embed.weight"], kept["class_embed.bias"] = torch.ones(251, 256), torch.ones(251)
        kept["query_embed.weight"] = torch.ones(7, 256)
        for name, value in changes.items():
            kept.pop(name, None)
            if value is not None:
                kept[name] = value
        torch.save({"model": kept}, path)
        return path

    def test_sizes_are_read_off_the_tensors(self, tmp_path: Path) -> None:
        path = self.write(tmp_path / "mine.pth")
        expected = DETRConfig(num_classes=250, num_queries=7, encoder_layers=1, decoder_layers=1)
        assert load_file(path).config == expected
        dilated = load_file(path, model="detr_resnet50_dc5")
        assert dilated.config == dataclasses.replace(expected, dilation=True)
        with refused(ConfigError, "detr_resnet50_dc4", "detr_resnet50_dc5", code="C01"):
            load_file(path, model="detr_resnet50_dc4")

    def test_relatives_are_refused(self, tmp_path: Path) -> None:
        other = {"query_embed.weight": None, "refpoint_embed.weight": torch.ones(7, 4)}  # DAB-DETR
        with refused(CheckpointError, "dab.pth", code="K07"):
            load_file(self.write(tmp_path / "dab.pth", **other))
        with refused(CheckpointError, "1 missing", "decoder.layers.0.norm2.bias", "cut.pth", code="K07"):
            load_file(self.write(tmp_path / "cut.pth", **{"transformer.decoder.layers.0.norm2.bias": None}))
        with refused(CheckpointError, "ResNet", "more.pth", code="K07"):
            load_file(self.write(tmp_path / "more.pth", **{"backbone.0.body.layer4.3.conv1.weight": torch.ones(1)}))


# --- transformers ---


@torch.no_grad()
def test_equals_transformers() -> None:
    """The last layer only: with `auxiliary_loss=True` transformers 5 feeds normalised queries to the next layer."""
    from transformers import DetrConfig, DetrForObjectDetection, ResNetConfig

    torch.manual_seed(0)
    backbone = ResNetConfig(depths=[2, 2, 2, 2], hidden_sizes=[64, 128, 256, 512], layer_type="basic", out_indices=[4])
    theirs = DetrForObjectDetection(
        DetrConfig(
            use_timm_backbone=False, use_pretrained_backbone=False, backbone=None, backbone_config=backbone,
            d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4,
            encoder_ffn_dim=48, decoder_ffn_dim=40, num_queries=7, num_labels=5,
        )
    ).eval()  # fmt: skip
    for name, value in theirs.state_dict().items():
        if name.endswith("running_var"):
            value.uniform_(0.5, 1.5)
        elif value.dim() == 1:
            value.add_(0.1 * torch.randn_like(value))
        elif "backbone" not in name:
            value.normal_(std=2 if "query_position" in name else 0.4)
    net = DETR(
        DETRConfig(num_classes=5, backbone="resnet18", embed_dim=32, num_heads=4, encoder_layers=2, decoder_layers=2,
                   feedforward_dim=48, num_queries=7)
    ).eval()  # fmt: skip
    for layer in net.transformer.decoder.layers:  # here transformers allows another width than in the encoder
        layer.linear1, layer.linear2 = nn.Linear(32, 40), nn.Linear(40, 32)
    net.load_state_dict(from_transformers(theirs.state_dict()))

    batch = ImageBatch.from_images(images((96, 128), (128, 70), (33, 64)))
    mask = batch.padding_mask()
    assert mask is not None
    expected = theirs(pixel_values=batch.pixels, pixel_mask=(~mask).long())
    output = net(batch)
    torch.testing.assert_close(output.logits, expected.logits, atol=2e-4, rtol=1e-4)
    torch.testing.assert_close(output.boxes, expected.pred_boxes, atol=2e-5, rtol=1e-4)
    assert output.boxes.std(dim=1).mean() > 0.02  # queries differ: the comparison says something


# --- the paper's figure ---


class TestFigure:
    @pytest.mark.parametrize("pre", [False, True])
    @pytest.mark.parametrize(
        ("position_encoding", "positions_at"),
        [("sine", "attention"), ("learned", "attention"), ("sine", "decoder"), ("sine", "input"), ("none", "input")],
    )
    @torch.no_grad()
    def test_written_out(self, position_encoding: str, positions_at: str, pre: bool) -> None:
        config = dataclasses.replace(
            SMALL, position_encoding=position_encoding, positions_at=positions_at, norm_first=pre
        )
        net = randomized(config)
        batch = ImageBatch.from_images(images((64, 48), (40, 64)))
        features = net.backbone(batch.pixels)[-1]
        _, _, h, w = features.shape
        padding = torch.ones(2, h, w, dtype=torch.bool)
        for mask, (height, width) in zip(padding, batch.sizes, strict=True):
            mask[: -(-height * h // 64), : -(-width * w // 64)] = False
        place = 0 if position_encoding == "none" else net.position_encoding(padding).flatten(1, 2)
        seen = ~padding.flatten(1)
        x = torch.einsum("bchw,dc->bhwd", features, net.input_proj.weight[:, :, 0, 0]).flatten(1, 2)
        x = x + net.input_proj.bias
        x = x + place if positions_at == "input" else x
        for layer in net.transformer.encoder.layers:
            x = plain_encoder_layer(layer, x, place if positions_at == "attention" else 0, seen, pre)
        memory = plain_norm(net.transformer.encoder.norm, x) if pre else x
        query = net.query_embed.weight.expand(2, -1, -1)
        x, layers = torch.zeros_like(query), []
        if positions_at == "input":
            x, query, place = query, 0, 0
        for layer in net.transformer.decoder.layers:
            x = plain_decoder_layer(layer, x, query, memory, place, seen, pre)
            y = plain_norm(net.transformer.decoder.norm, x)
            box = y
            for linear in net.bbox_embed.layers:
                box = (box.relu() if linear is not net.bbox_embed.layers[0] else box) @ linear.weight.T + linear.bias
            layers.append(DetectionOutput(y @ net.class_embed.weight.T + net.class_embed.bias, box.sigmoid()))
        assert_same(net(batch), layers[-1]._replace(auxiliary=layers[:-1]), 1e-4)
        assert net.transformer.encoder.norm is None or pre

    @torch.no_grad()
    def test_permuted_queries_give_permuted_results(self) -> None:
        net = randomized(SMALL)
        batch = images((64, 48), (40, 64))
        before = net(batch)
        order = torch.tensor([3, 0, 4, 1, 2])
        net.query_embed.weight.copy_(net.query_embed.weight[order].clone())
        permuted = [DetectionOutput(x.logits[:, order], x.boxes[:, order]) for x in (*before.auxiliary, before)]
        assert_same(net(batch), permuted[-1]._replace(auxiliary=permuted[:-1]))

    @torch.no_grad()
    def test_tokens_of_padding_change_nothing(self) -> None:
        net = randomized(SMALL)
        g = torch.Generator().manual_seed(0)
        tokens, place = (torch.randn(2, 6, 16, generator=g) for _ in range(2))
        query = torch.randn(2, 5, 16, generator=g)
        seen = torch.ones(2, 1, 1, 9, dtype=torch.bool)
        seen[..., 6:] = False

        def decode(tokens: Tensor, place: Tensor, mask: Tensor | None) -> Tensor:
            memory = net.transformer.encoder(tokens, place, mask)
            return net.transformer.decoder(query, memory, place, memory_mask=mask)

        junk = 100 * torch.randn(2, 3, 16, generator=g)
        padded = decode(torch.cat((tokens, junk), 1), torch.cat((place, junk), 1), seen)
        torch.testing.assert_close(padded, decode(tokens, place, None), atol=1e-5, rtol=1e-5)

    @torch.no_grad()
    def test_a_batch_is_its_images(self) -> None:
        net = randomized(SMALL)
        pair = images((48, 64), (48, 64))
        together = net(pair)
        assert_same(net(ImageBatch.from_images(pair)), together)
        for i, image in enumerate(pair):
            single = [DetectionOutput(x.logits[i : i + 1], x.boxes[i : i + 1]) for x in (*together.auxiliary, together)]
            assert_same(net([image]), single[-1]._replace(auxiliary=single[:-1]))

    def test_a_step_lowers_the_loss(self) -> None:
        torch.manual_seed(0)
        net = DETR(SMALL)
        batch, targets, criterion = images((48, 64), (64, 40)), random_targets([2, 3], 4), SetCriterion(4)
        optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
        values = []
        for _ in range(3):
            loss = criterion.total(criterion(net(batch), targets))
            optimizer.zero_grad()
            loss.backward()
            assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
            optimizer.step()
            values.append(loss.item())
        assert values[0] > values[1] > values[2]

    def test_query_groups_do_not_see_each_other(self) -> None:
        net = randomized(dataclasses.replace(SMALL, query_groups=3))
        net.train()
        net.backbone.eval()
        batch = images((48, 64), (64, 40))
        with torch.no_grad():
            before = net(batch)
            net.query_embed.weight[5:10] *= -3
            after = net(batch)
            first = net.eval()(batch)
        assert before.num_groups == 3 and before.logits.shape == (2, 15, 5)
        changed = (before.logits - after.logits).abs().amax((0, 2)) > 1e-3
        assert changed.tolist() == [False] * 5 + [True] * 5 + [False] * 5
        assert first.num_groups == 1
        torch.testing.assert_close(first.logits, before.logits[:, :5], atol=1e-5, rtol=1e-5)


class TestAttentionMaps:
    @torch.no_grad()
    def test_maps_and_output(self) -> None:
        net = randomized(SMALL)
        batch = ImageBatch.from_images(images((64, 48), (40, 64)))
        maps = net.attention(batch)
        assert_same(maps.output, net(batch))
        h, w = maps.feature_size
        assert maps.encoder is not None and maps.encoder.shape == (2, 2, 4, h * w, h * w)
        assert maps.decoder_self.shape == (3, 2, 4, 5, 5) and maps.decoder_cross.shape == (3, 2, 4, 5, h * w)
        for weights in (maps.encoder, maps.decoder_self, maps.decoder_cross):
            torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))
        for weights in (maps.encoder, maps.decoder_cross):
            grid = weights.unflatten(-1, (h, w))
            assert (grid[:, 0, ..., w * 3 // 4 :] == 0).all() and (grid[:, 0, ..., : w * 3 // 4] > 0).all()
            assert (grid[:, 1, ..., h * 5 // 8 :, :] == 0).all() and (grid[:, 1, ..., : h * 5 // 8, :] > 0).all()

    @torch.no_grad()
    def test_weights_are_those_of_the_last_layer(self) -> None:
        """The cross-attention's map times its values is what the layer adds: figures show what the model does."""
        net = randomized(SMALL)
        seen = []
        attention = net.transformer.decoder.layers[-1].multihead_attn
        attention.register_forward_hook(lambda m, args, kwargs, out: seen.append((args, out)), with_kwargs=True)
        maps = net.attention(images((64, 48), (40, 64)))
        ((_, _, memory), out) = seen[-1]
        values = attention.project(memory, memory, memory)[2]
        rebuilt = attention.out_proj((maps.decoder_cross[-1] @ values).transpose(1, 2).flatten(2))
        torch.testing.assert_close(rebuilt, out, atol=1e-5, rtol=1e-5)

    @torch.no_grad()
    def test_without_encoder(self) -> None:
        assert randomized(dataclasses.replace(SMALL, encoder_layers=0)).attention(images((32, 32))).encoder is None


class TestConfig:
    @pytest.mark.parametrize(
        "changes",
        [
            {"num_queries": 0},
            {"decoder_layers": 0},
            {"encoder_layers": -1},
            {"embed_dim": 30},
            {"embed_dim": 18, "num_heads": 2},
            {"dropout": 1.0},
            {"denoising_groups": 2},
            {"feedforward_dim": -1},
            {"anchors": True, "positions_at": "input"},
            {"anchors": True, "position_encoding": "none"},
        ],
    )
    def test_impossible_sizes(self, changes: dict) -> None:
        with refused(ConfigError, f"model.{next(iter(changes))}"):
            dataclasses.replace(SMALL, **changes)

    def test_without_feed_forward_layers_the_model_has_the_published_size(self) -> None:
        """Section 4.2: it shrinks from 41.3 to 28.7 million parameters."""
        with torch.device("meta"):
            net = DETR(DETRConfig(feedforward_dim=0))
        assert round(sum(p.numel() for p in net.parameters() if p.requires_grad) / 1e6, 1) == 28.7

    @pytest.mark.parametrize("pre", [False, True])
    def test_attention_alone_is_a_feed_forward_layer_of_zeros(self, pre: bool) -> None:
        net = randomized(dataclasses.replace(SMALL, feedforward_dim=0, norm_first=pre))
        full = DETR(dataclasses.replace(SMALL, norm_first=pre)).eval()
        missing = full.load_state_dict(net.state_dict(), strict=False)
        assert not missing.unexpected_keys and {k.split(".")[-2] for k in missing.missing_keys} == {
            "linear1", "linear2", "norm2", "norm3",
        }  # fmt: skip
        with torch.no_grad():
            for layer in (*full.transformer.encoder.layers, *full.transformer.decoder.layers):
                layer.linear2.weight.zero_()
                layer.linear2.bias.zero_()
                if not pre:  # what is normalised is normalised again: the scale moves to the last norm
                    in_decoder = hasattr(layer, "norm3")
                    before, last = (layer.norm2, layer.norm3) if in_decoder else (layer.norm1, layer.norm2)
                    last.load_state_dict(before.state_dict())
                    before.weight.fill_(1)
                    before.bias.zero_()
        batch = images((64, 48))
        assert_same(net(batch), full(batch), 1e-3)

    @torch.no_grad()
    def test_learned_positions_end(self) -> None:
        net = randomized(dataclasses.replace(SMALL, position_encoding="learned"))
        side = 8 * 51  # the small backbone has stride 8
        with refused(ConfigError, "1 x 51", "50", code="C03"):
            net([torch.zeros(3, 8, side)])


class TestPrecision:
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
    @pytest.mark.parametrize("changes", [{}, {"position_encoding": "learned"}, {"anchors": True, "sigmoid": True}])
    @torch.no_grad()
    def test_other_types_run_whole(self, changes: dict, dtype: torch.dtype) -> None:
        net = randomized(dataclasses.replace(SMALL, **changes))
        images = [reference_image(1, 64, 96), reference_image(2, 96, 64)]
        expected = net(images)
        found = net.to(dtype)([image.to(dtype) for image in images])
        exact = dtype == torch.float64
        torch.testing.assert_close(found.boxes.float(), expected.boxes, atol=1e-4 if exact else 0.2, rtol=0)
        assert found.logits.dtype == dtype and found.boxes.dtype in (dtype, torch.float32)
        assert not exact or found.boxes.dtype == dtype

    @pytest.mark.parametrize("anchors", [False, True])
    @torch.no_grad()
    def test_boxes_are_not_rounded_under_autocast(self, anchors: bool) -> None:
        """A sigmoid in bfloat16 has 256 values between a half and one: steps of 5 pixels in 1333."""
        net = randomized(dataclasses.replace(SMALL, anchors=anchors, sigmoid=anchors))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = net([reference_image(1, 64, 96)])
        for layer in (output, *output.auxiliary):
            assert layer.boxes.dtype == torch.float32
            assert (layer.boxes != layer.boxes.bfloat16().float()).float().mean() > 0.5


# --- the demonstration model ---


def test_demo_is_built_without_a_warning(recwarn: pytest.WarningsRecorder) -> None:
    with torch.device("meta"):
        DETRDemo(DETRDemoConfig())
    assert not recwarn.list


@torch.no_grad()
def test_demo_equals_the_listing() -> None:
    """Listing 1 of the paper: convolutions by torchvision, the transformer written out."""
    torch.manual_seed(0)
    net = DETRDemo(DETRDemoConfig(num_classes=6, num_queries=9)).eval()
    image = reference_image(1, 64, 96)
    with torch.device("meta"):
        cnn = torchvision.models.resnet50(weights=None).eval()
    missing = cnn.load_state_dict(net.backbone.state_dict(), strict=False, assign=True)
    assert missing.missing_keys == ["fc.weight", "fc.bias"] and not missing.unexpected_keys
    x = net.conv(nn.Sequential(*list(cnn.children())[:-2])(image[None]))
    h, w = x.shape[-2:]
    place = torch.stack([torch.cat((net.col_embed[i % w], net.row_embed[i // w])) for i in range(h * w)])
    x = place + 0.1 * x.flatten(2).transpose(1, 2)
    for layer in net.transformer.encoder.layers:
        x = plain_encoder_layer(layer, x, 0, None, pre=False)
    memory, y = plain_norm(net.transformer.encoder.norm, x), net.query_pos[None]
    for layer in net.transformer.decoder.layers:
        y = plain_decoder_layer(layer, y, 0, memory, 0, None, pre=False)
    y = plain_norm(net.transformer.decoder.norm, y)

    output = net([image])
    torch.testing.assert_close(output.logits, net.linear_class(y), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(output.boxes, net.linear_bbox(y).sigmoid(), atol=1e-4, rtol=1e-4)
    assert output.auxiliary == () and output.logits.shape == (1, 9, 7)

    mixed = net([image, reference_image(2, 96, 40)])  # one by one, for it knows no padding
    torch.testing.assert_close(mixed.boxes[:1], output.boxes, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(mixed.logits[1:], net([reference_image(2, 96, 40)]).logits, atol=1e-5, rtol=1e-5)
    with refused(ConfigError, "32 x 1632", "1600"):
        net([torch.zeros(3, 32, 32 * 51)])


def test_cells_see_the_pixels_that_interpolation_takes():
    """`F.interpolate` is exported to ONNX with another rounding, so the mask's pixels are counted by ourselves."""
    for length in range(1, 400):
        for stride in (8, 16, 32):
            cells = -(-length // stride)
            numbers = torch.arange(length, dtype=torch.float32)[None, None]
            expected = F.interpolate(numbers, size=cells)[0, 0].long()
            assert torch.equal(nearest_pixels(length, cells, torch.device("cpu")), expected), (length, stride)
