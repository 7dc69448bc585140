"""SAN: the papers' parameter counts, the authors' names of tensors, maps of any size."""

import pytest
import torch
from torch import nn

import regard
from refusals import refused
from regard.errors import ConfigError
from regard.models.backbone import create_backbone
from regard.models.build import create
from regard.models.catalog import preset
from regard.models.configs.san import SAN_PRESETS, SANConfig
from regard.models.san import SAN
from regard.weights.detr import load_backbone

STAGES = {"san10": (2, 1, 2, 4, 1), "san15": (3, 2, 3, 5, 2), "san19": (3, 3, 4, 6, 3)}


def block_parameters(c, k, pairwise):
    """Of a block of c channels: c / 16 for relations, c / 4 for values, of which 8 share a weight."""
    r, v = c // 16, c // 4
    g = v // 8
    convolutions = 2 * (c * r + r) + (c * v + v)
    if pairwise:
        weights = 2 * (r + 2) + (r + 2) * r + 2 * r + r * g + g
        position = 2 * 2 + 2
    else:
        width = r * (k * k + 1)
        weights = 2 * width + width * g + 2 * g + g * k * k * g + k * k * g
        position = 0
    return 2 * c + convolutions + weights + position + 2 * v + v * c + c


# Millions, as Zhao et al. 2020 publish them.
@pytest.mark.parametrize(
    ("name", "published", "expected"),
    [
        ("san10_pairwise", 10.5, 10_531_848), ("san10_patchwise", 11.8, 11_841_124),
        ("san15_pairwise", 14.1, 14_065_436), ("san15_patchwise", 16.2, 16_181_310),
        ("san19_pairwise", 17.6, 17_596_156), ("san19_patchwise", 20.5, 20_518_470),
    ],
)  # fmt: skip
def test_parameters_of_the_paper(name, published, expected):
    size, kind = name.split("_")
    widths = (64, 256, 512, 1024, 2048)
    total = 3 * 64 + 2 * 64 + 2048 * 1000 + 1000
    for before, c, count, k in zip((64, *widths), widths, STAGES[size], (3, 7, 7, 7, 7), strict=False):
        total += before * c + 2 * c + count * block_parameters(c, k, kind == "pairwise")
    with torch.device("meta"):
        found = sum(p.numel() for p in create(name).parameters())
    assert found == total == expected
    assert round(found / 1e6, 1) == published


@pytest.mark.parametrize("attention", ["pairwise", "patchwise"])
def test_tensors_have_the_authors_names(attention):
    with torch.device("meta"):
        names = set(SAN(SANConfig(attention=attention, layers=(1, 1, 1, 1, 1))).state_dict())
    norm = [f".{part}" for part in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")]
    wanted = {"conv_in.weight", "fc.weight", "fc.bias", *(f"bn_in{part}" for part in norm)}
    for stage in range(5):
        block = f"layer{stage}.0"
        wanted |= {f"conv{stage}.weight", *(f"bn{stage}{part}" for part in norm)}
        wanted |= {f"{block}.{bn}{part}" for bn in ("bn1", "bn2", "sam.conv_w.0", "sam.conv_w.3") for part in norm}
        biased = ["conv", "sam.conv1", "sam.conv2", "sam.conv3", "sam.conv_w.5"]
        biased += ["sam.conv_p"] if attention == "pairwise" else []
        wanted |= {f"{block}.{conv}.{part}" for conv in biased for part in ("weight", "bias")}
        wanted.add(f"{block}.sam.conv_w.2.weight")
    assert names == wanted


@pytest.mark.parametrize("attention", ["pairwise", "patchwise"])
def test_an_authors_file_is_loaded(attention, tmp_path):
    """As their train.py writes it: of several GPUs, with the optimizer beside it."""
    name = f"san10_{attention}"
    torch.manual_seed(0)
    theirs = create(name).eval()
    state = {f"module.{key}": value for key, value in theirs.state_dict().items()}
    torch.save({"epoch": 100, "state_dict": state, "optimizer": {}}, tmp_path / "model_best.pth")
    loaded = regard.load(tmp_path / "model_best.pth", model=name)
    images = torch.randn(1, 3, 32, 64)
    with torch.no_grad():
        torch.testing.assert_close(loaded(images), theirs(images))
    assert loaded.card.categories[0].name == "tench"


@pytest.mark.parametrize("attention", ["pairwise", "patchwise"])
def test_maps_of_any_size_and_gradients(attention):
    torch.manual_seed(0)
    model = SAN(SANConfig(num_classes=3, attention=attention, layers=(1, 1, 1, 1, 1)))
    images = torch.randn(2, 3, 37, 65)
    sizes = [(37 // 2**n, 65 // 2**n) for n in range(1, 6)]
    maps = model.features(images)
    assert [tuple(m.shape[1:]) for m in maps] == [
        (c, *size) for c, size in zip((64, 256, 512, 1024, 2048), sizes, strict=True)
    ]
    model(images).logsumexp(1).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    for size in [(1, 1), (3, 40)]:
        assert model.eval().features(images[..., : size[0], : size[1]])[-1].shape == (2, 2048, 1, 1)
        assert model(images[..., : size[0], : size[1]]).isfinite().all()


def test_it_is_a_backbone():
    """Without its last layer, and with its statistics frozen."""
    torch.manual_seed(0)
    whole = create("san10_pairwise").eval()
    backbone = create_backbone("san10_pairwise")
    load_backbone(backbone, whole.state_dict(), where="san10_pairwise")
    images = torch.randn(1, 3, 40, 64)
    with torch.no_grad():
        torch.testing.assert_close(backbone(images), whole.features(images), atol=1e-4, rtol=1e-4)
    assert backbone.num_channels == 2048
    assert not [m for m in backbone.modules() if isinstance(m, nn.BatchNorm2d)]


@pytest.mark.slow  # hundreds of windows with symbolic sides
@torch.no_grad()
def test_one_graph_for_all_sizes():
    torch.manual_seed(0)
    model = SAN(SANConfig(num_classes=3, layers=(1, 1, 1, 1, 1))).eval()
    sides = {n: torch.export.Dim(name, min=64, max=512) for n, name in ((2, "h"), (3, "w"))}
    graph = torch.export.export(
        model, (torch.randn(1, 3, 96, 160),), dynamic_shapes=(sides,), prefer_deferred_runtime_asserts_over_guards=True
    ).module()
    for size in [(96, 160), (64, 101)]:
        images = torch.randn(1, 3, *size)
        torch.testing.assert_close(graph(images), model(images), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_order_of_layers():
    """Against the network written as one sequence of the authors' forward."""
    torch.manual_seed(0)
    model = SAN(SANConfig(num_classes=3, layers=(1, 1, 1, 1, 1))).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    x = images = torch.randn(1, 3, 69, 96)
    x = torch.relu(model.bn_in(model.conv_in(x)))
    for stage in range(5):
        conv, layers, bn = (getattr(model, f"{part}{stage}") for part in ("conv", "layer", "bn"))
        x = conv(nn.MaxPool2d(2, 2)(x))
        for block in layers:
            t = torch.relu(block.bn2(block.sam(torch.relu(block.bn1(x)))))
            x = block.conv(t) + x
        x = torch.relu(bn(x))
    expected = model.fc(nn.AdaptiveAvgPool2d(1)(x).flatten(1))
    torch.testing.assert_close(model(images), expected, rtol=1e-4, atol=1e-5)


def test_wrong_settings():
    for wrong in ({"layers": (1, 2)}, {"kernel_sizes": (3, 7, 7, 7, 0)}, {"kernel_sizes": (3, 7, 7, 7, 8)}):
        with refused(ConfigError, *wrong, code="C03"):
            SANConfig(**wrong)
    assert preset("san19_pairwise") == SANConfig() and len(SAN_PRESETS) == 6
