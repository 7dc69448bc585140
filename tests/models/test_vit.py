"""Vision transformers: published parameter counts, timm's numbers on the same weights, images of any size."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from refusals import refused
from regard.attention import resize_positions
from regard.errors import ConfigError
from regard.models import DistilledLogits
from regard.models.build import create
from regard.models.catalog import preset
from regard.models.configs.vit import VIT_PRESETS, ViTConfig
from regard.models.parameter_counts import PARAMETER_COUNTS
from regard.models.vit import VisionTransformer, fuse_logits

SMALL = ViTConfig(num_classes=7, image_size=32, patch_size=8, embed_dim=24, num_heads=3, depth=3)
DISTILLED = replace(SMALL, distilled=True)
THIRD = replace(SMALL, class_position=False, layer_scale=0.1)


def random_model(config, seed=0):
    """Weights that are not small, so that nothing is hidden."""
    torch.manual_seed(seed)
    model = VisionTransformer(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    return model.eval()


# Touvron et al. 2021, table 1, and 2022; counted from the released files.
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("deit_tiny_patch16_224", 5_717_416), ("deit_small_patch16_224", 22_050_664),
        ("deit_base_patch16_224", 86_567_656), ("deit_tiny_distilled_patch16_224", 5_910_800),
        ("deit_small_distilled_patch16_224", 22_436_432), ("deit_base_distilled_patch16_224", 87_338_192),
        ("deit_base_patch16_384", 86_859_496), ("deit_base_distilled_patch16_384", 87_630_032),
        ("deit3_small_patch16_224", 22_059_496), ("deit3_small_patch16_384", 22_205_416),
        ("deit3_medium_patch16_224", 38_849_512), ("deit3_base_patch16_224", 86_585_320),
        ("deit3_base_patch16_384", 86_877_160), ("deit3_large_patch16_224", 304_374_760),
        ("deit3_large_patch16_384", 304_763_880), ("deit3_huge_patch14_224", 632_126_440),
    ],
)  # fmt: skip
def test_parameters_of_the_papers(name, expected):
    assert PARAMETER_COUNTS[name] == expected  # which test_parameter_counts counts in the built models


@pytest.mark.parametrize("name", [name for name in VIT_PRESETS if "nano" not in name])
def test_tensors_are_timms(name):
    """Names and shapes of every tensor, for every named model that timm has too."""
    timm = pytest.importorskip("timm")
    assert timm.is_model(name), f"not a name that people know: {name}"
    with torch.device("meta"):
        theirs = {
            key: tuple(value.shape) for key, value in timm.create_model(name, num_classes=1000).state_dict().items()
        }
        ours = {key: tuple(value.shape) for key, value in create(name).state_dict().items()}
    assert ours == theirs


def timm_twin(config):
    timm_vit = pytest.importorskip("timm.models.vision_transformer")
    from timm.models.deit import VisionTransformerDistilled

    kind = VisionTransformerDistilled if config.distilled else timm_vit.VisionTransformer
    return kind(
        img_size=config.image_size, patch_size=config.patch_size, embed_dim=config.embed_dim, depth=config.depth,
        num_heads=config.num_heads, num_classes=config.num_classes, init_values=config.layer_scale or None,
        no_embed_class=not config.class_position,
    ).eval()  # fmt: skip


def compare_with_timm(ours, theirs, images, tolerance):
    """Logits, features of each block and gradients of both heads; the largest difference of logits."""
    with torch.no_grad():
        found, expected = ours.eval()(images), theirs.eval()(images)
        torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)
        intermediates = theirs.forward_intermediates(
            images, output_fmt="NLC", intermediates_only=True, return_prefix_tokens=True
        )
        for tokens, (patches, front) in zip(ours.tokens(images), intermediates, strict=True):
            torch.testing.assert_close(tokens, torch.cat((front, patches), dim=1), rtol=tolerance, atol=tolerance)
    if hasattr(theirs, "set_distilled_training"):
        theirs.set_distilled_training(True)
    for model in (ours.train(), theirs.train()):
        outputs = model(images)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        sum((n + 1) * output.logsumexp(1).sum() for n, output in enumerate(outputs)).backward()
    named = dict(theirs.named_parameters())
    assert named.keys() == dict(ours.named_parameters()).keys()
    for name, parameter in ours.named_parameters():
        length = named[name].grad.norm()
        assert (parameter.grad - named[name].grad).norm() <= tolerance * length, name
        assert length > 0
    return (found - expected).abs().max().item()


@pytest.mark.parametrize("config", [SMALL, DISTILLED, THIRD])
def test_logits_features_and_gradients_are_timms(config):
    ours, theirs = random_model(config).double(), timm_twin(config).double()
    theirs.load_state_dict(ours.state_dict())
    compare_with_timm(ours, theirs, torch.randn(2, 3, 32, 32, dtype=torch.float64), 1e-10)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "deit_tiny_patch16_224", "deit_small_patch16_224", "deit_base_patch16_224", "deit_tiny_distilled_patch16_224",
        "deit_small_distilled_patch16_224", "deit_base_distilled_patch16_224", "deit_base_patch16_384",
        "deit_base_distilled_patch16_384", "deit3_small_patch16_224", "deit3_base_patch16_224",
    ],
)  # fmt: skip
@pytest.mark.parametrize("fused", [False, True])
def test_published_models_are_timms(name, fused):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    theirs, ours = timm.create_model(name), create(name)
    for key, parameter in theirs.named_parameters():
        if key.endswith("gamma"):  # timm's start at 1e-6, with which no block does anything
            nn.init.uniform_(parameter, 0.1, 0.5)
    for block in theirs.blocks:
        block.attn.fused_attn = fused
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(1, 3, *(preset(name).image_size,) * 2)
    difference = compare_with_timm(ours, theirs, images, 5e-5 if fused else 1e-5)
    print(f"{name}, timm {'fused' if fused else 'eager'}: {difference:.1e}")


def reference(model, images):
    """The paper's equations 1 to 4 with torch's own attention: logits of all heads."""
    config, c = model.config, model.config.embed_dim
    b, heads = len(images), model.config.num_heads
    patches = model.patch_embed.proj(images).flatten(2).transpose(1, 2)
    front = [model.cls_token.expand(b, -1, -1)]
    front += [model.dist_token.expand(b, -1, -1)] if config.distilled else []
    if config.class_position:
        z = torch.cat((*front, patches), 1) + model.pos_embed
    else:
        z = torch.cat((*front, patches + model.pos_embed), 1)
    for block in model.blocks:
        attention = nn.MultiheadAttention(c, heads, batch_first=True)
        attention.in_proj_weight.data, attention.in_proj_bias.data = block.attn.qkv.weight, block.attn.qkv.bias
        attention.out_proj.weight.data, attention.out_proj.bias.data = block.attn.proj.weight, block.attn.proj.bias
        gammas = [getattr(scale, "gamma", 1.0) for scale in (block.ls1, block.ls2)]
        t = F.layer_norm(z, (c,), block.norm1.weight, block.norm1.bias, 1e-6)
        z = z + gammas[0] * attention(t, t, t, need_weights=False)[0]
        t = F.layer_norm(z, (c,), block.norm2.weight, block.norm2.bias, 1e-6)
        z = z + gammas[1] * block.mlp.fc2(F.gelu(block.mlp.fc1(t), approximate="none"))
    z = F.layer_norm(z, (c,), model.norm.weight, model.norm.bias, 1e-6)
    return [model.head(z[:, 0])] + ([model.head_dist(z[:, 1])] if config.distilled else [])


@pytest.mark.parametrize("config", [SMALL, DISTILLED, THIRD])
@torch.no_grad()
def test_it_is_the_paper(config):
    """The last block computes only what is read."""
    model = random_model(config)
    images = torch.randn(2, 3, 32, 32)
    expected = reference(model, images)
    torch.testing.assert_close(model(images), sum(expected) / len(expected), rtol=1e-4, atol=1e-4)
    if config.distilled:
        both = model.train()(images)
        assert isinstance(both, DistilledLogits)
        torch.testing.assert_close(both.class_logits, expected[0], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(both.distillation_logits, expected[1], rtol=1e-4, atol=1e-4)


def test_without_gradients_no_bit_changes():
    """There the MLP works in place."""
    model = random_model(DISTILLED)
    images = torch.randn(2, 3, 32, 32)
    expected = model(images)
    assert expected.requires_grad
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert torch.equal(model(images), expected)
    frozen = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(frozen(images), expected, rtol=1e-4, atol=1e-5)
        graph = torch.export.export(model, (images,)).module()
        torch.testing.assert_close(graph(images), expected, rtol=1e-4, atol=1e-5)


def test_fusion_by_name():
    both = DistilledLogits(torch.tensor([[2.0, 0.0, 0.0]]), torch.tensor([[0.0, 0.0, 3.0]]))
    assert torch.equal(fuse_logits(both, "class"), both.class_logits)
    assert torch.equal(fuse_logits(both, "distillation"), both.distillation_logits)
    torch.testing.assert_close(fuse_logits(both, "logits"), torch.tensor([[1.0, 0.0, 1.5]]))
    expected = (both.class_logits.softmax(1) + both.distillation_logits.softmax(1)) / 2
    torch.testing.assert_close(fuse_logits(both, "probabilities").softmax(1), expected)
    sure = fuse_logits(DistilledLogits(torch.tensor([[300.0, 0.0]]), torch.tensor([[200.0, 0.0]])), "probabilities")
    torch.testing.assert_close(sure, torch.tensor([[0.0, -200.0 - math.log(2)]]))  # finite, where e^-200 is 0
    images = torch.randn(1, 3, 32, 32)
    model = random_model(DISTILLED)
    found = {}
    for how in ("logits", "probabilities", "class", "distillation"):
        model.config = replace(DISTILLED, fuse=how)
        found[how] = model(images)
    torch.testing.assert_close(found["logits"], (found["class"] + found["distillation"]) / 2)


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("size", [(24, 24), (7, 14), (14, 9), (14, 14)])
def test_positions_are_resized_by_the_named_rule(size, antialias):
    torch.manual_seed(0)
    table = torch.randn(1, 14 * 14, 5)
    grid = table.reshape(1, 14, 14, 5).permute(0, 3, 1, 2)
    expected = F.interpolate(grid, size=size, mode="bicubic", align_corners=False, antialias=antialias)
    expected = expected.permute(0, 2, 3, 1).flatten(1, 2)
    found = resize_positions(table, (14, 14), size, antialias=antialias)
    torch.testing.assert_close(found, expected if size != (14, 14) else table, rtol=0, atol=1e-6)
    if antialias:
        timm = pytest.importorskip("timm.layers")
        theirs = timm.resample_abs_pos_embed(table, new_size=list(size), old_size=[14, 14], num_prefix_tokens=0)
        torch.testing.assert_close(found, theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("config", [SMALL, DISTILLED, THIRD])
@torch.no_grad()
def test_images_of_other_sizes(config):
    model = random_model(config)
    for h, w in ((32, 64), (8, 8), (24, 40)):
        images = torch.randn(1, 3, h, w)
        assert model(images).shape == (1, 7)
        count = model.num_tokens if config.class_position else 0
        places = model.pos_embed[:, count:].reshape(1, 4, 4, 24).permute(0, 3, 1, 2)
        places = F.interpolate(places, (h // 8, w // 8), mode="bicubic").permute(0, 2, 3, 1).flatten(1, 2)
        twin = random_model(config)
        twin.pos_embed = nn.Parameter(torch.cat((model.pos_embed[:, :count], places), 1))
        twin._positions = lambda _, twin=twin: twin.pos_embed
        torch.testing.assert_close(model(images), twin(images), rtol=1e-5, atol=1e-5)
    with refused(ConfigError, "30 x 33", "32 x 32", code="C04"):
        model(torch.randn(1, 3, 30, 33))
    (features,) = model.features(torch.randn(2, 3, 30, 41))
    assert features.shape == (2, 24, 4, 6)


@pytest.mark.parametrize("config", [SMALL, DISTILLED, THIRD])
@torch.no_grad()
def test_attention_is_that_of_the_forward(config):
    model = random_model(config)
    images = torch.randn(2, 3, 32, 32)
    weights = model.attention(images)
    tokens = [model._embed(images), *model.tokens(images)]
    assert len(weights) == 3
    for block, weight, before, after in zip(model.blocks, weights, tokens, tokens[1:], strict=False):
        assert weight.shape == (2, 3, 16 + model.num_tokens, 16 + model.num_tokens)
        torch.testing.assert_close(weight.sum(-1), torch.ones(weight.shape[:3]))
        value = block.attn.project(block.norm1(before))[2]
        attended = block.attn.proj((weight @ value).transpose(1, 2).flatten(2))
        middle = before + block.ls1(attended)
        torch.testing.assert_close(middle + block.ls2(block.mlp(block.norm2(middle))), after, rtol=1e-4, atol=1e-4)


def test_drop_path_by_depth():
    linear = VisionTransformer(replace(SMALL, drop_path=0.2))
    assert [getattr(block.drop_path, "p", 0.0) for block in linear.blocks] == pytest.approx([0.0, 0.1, 0.2])
    constant = VisionTransformer(replace(SMALL, drop_path=0.2, drop_path_rule="constant"))
    assert [block.drop_path.p for block in constant.blocks] == [0.2] * 3
    model = random_model(replace(SMALL, drop_path=0.9, dropout=0.5))
    images = torch.randn(1, 3, 32, 32)
    assert torch.equal(model(images), model(images))
    assert not torch.equal(model.train()(images), model(images))


def test_start():
    """Positions and tokens of deviation 0.02, zero biases, layer scale as asked."""
    torch.manual_seed(0)
    model = VisionTransformer(replace(THIRD, embed_dim=96, image_size=64))
    assert 0.015 < model.pos_embed.std().item() < 0.021 and model.pos_embed.abs().max() <= 2
    assert 0.015 < model.blocks[0].mlp.fc1.weight.std().item() < 0.021
    narrow = VisionTransformer(replace(THIRD, embed_dim=96, initial="fan_in"))
    # A normal distribution is cut at 2, which does not come near these deviations.
    assert narrow.blocks[0].mlp.fc1.weight.std().item() == pytest.approx(96**-0.5, rel=0.05)
    assert narrow.blocks[0].mlp.fc2.weight.std().item() == pytest.approx(384**-0.5, rel=0.05)
    assert model.head.bias.abs().sum() == 0 and torch.equal(model.blocks[1].ls2.gamma, torch.full((96,), 0.1))


@pytest.mark.parametrize("config", [SMALL, DISTILLED, THIRD])
def test_one_graph(config):
    model = random_model(replace(config, depth=2))  # the last block is not like the others
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    for size in ((32, 32), (16, 40)):
        images = torch.randn(2, 3, *size)
        torch.testing.assert_close(compiled(images), model(images), rtol=1e-4, atol=1e-5)
    batch = torch.export.Dim("batch", min=1, max=64)
    graph = torch.export.export(model, (torch.randn(2, 3, 32, 32),), dynamic_shapes=({0: batch},)).module()
    images = torch.randn(5, 3, 32, 32)
    torch.testing.assert_close(graph(images), model(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "code", "names"),
    [
        ({"image_size": 30}, "C04", "image_size=32"),
        ({"embed_dim": 25}, "C05", "embed_dim=25"),
        ({"drop_path": 1.0}, "C03", "drop_path=1.0"),
        ({"depth": 0}, "C03", "depth=0"),
        ({"mlp_ratio": -1.0}, "C03", "mlp_ratio=-1.0"),
        ({"layer_scale": math.nan}, "C03", "layer_scale=nan"),
        ({"fuse": "mean"}, "C02", "'mean'"),
        ({"distilled": True, "class_position": False}, "C09", "class_position=true"),
    ],
)
def test_wrong_settings(changes, code, names):
    with refused(ConfigError, names, code=code):
        replace(SMALL, **changes)


@pytest.mark.parametrize(
    ("name", "ratio"),
    [("deit_base_patch16_384", 0.875), ("deit3_base_patch16_384", 1.0), ("deit_nano_patch4_32", None)],
)
def test_what_is_seen_of_an_image_is_as_published(name, ratio):
    with torch.device("meta"):
        assert create(name).card.crop_pct == ratio
