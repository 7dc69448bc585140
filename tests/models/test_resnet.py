"""ResNets, wide ResNets and MnasNets: the papers' parameter counts, torchvision's numbers, maps of any size."""

from dataclasses import replace

import pytest
import torch
import torchvision

from refusals import refused
from regard.attention import AugmentedConv2d
from regard.errors import ConfigError
from regard.models.build import build, create
from regard.models.catalog import list_models, preset
from regard.models.configs.mnasnet import MnasNetConfig
from regard.models.configs.resnet import ResNetConfig
from regard.models.configs.wide_resnet import WideResNetConfig
from regard.models.mnasnet import MnasNet
from regard.models.resnet import ResNet
from regard.models.wide_resnet import WideResNet
from regard.training.optimizer import parameter_groups


def count(model):
    return sum(p.numel() for p in model.parameters())


def on_meta(build, config):
    with torch.device("meta"):
        return build(config)


# Bello et al. 2019, tables of ImageNet: 20.7, 25.8, 45.4, 61.6 M; plain 21.8, 25.6, 44.5, 60.2 M; table of CIFAR-100.
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet34", 21_797_672), ("resnet50", 25_557_032), ("resnet101", 44_549_160), ("resnet152", 60_192_808),
        ("aa_resnet34", 20_745_072), ("aa_resnet50", 25_809_392), ("aa_resnet101", 45_386_728),
        ("aa_resnet152", 61_613_536), ("wide_resnet28_10", 36_278_324), ("aa_wide_resnet28_10", 36_054_100),
        ("mnasnet1_0", 4_383_312),
    ],
)  # fmt: skip
def test_parameters_of_the_paper(name, expected):
    with torch.device("meta"):
        assert count(create(name)) == expected


@pytest.mark.parametrize(
    ("ratio", "expected"), [(0.25, 24_303_728), (0.5, 22_342_680), (0.75, 20_735_496), (1.0, 19_383_560)]
)
def test_parameters_by_the_share_of_attention(ratio, expected):
    model = on_meta(ResNet, ResNetConfig(key_ratio=ratio, value_ratio=ratio))
    assert count(model) == expected
    convolutions = [m.conv for m in model.modules() if isinstance(m, AugmentedConv2d)]
    assert len(convolutions) == 13 and (ratio < 1 or convolutions == [None] * 13)


def test_tables_are_the_difference_to_no_positions():
    positioned = count(on_meta(ResNet, preset("aa_resnet50")))
    without = on_meta(ResNet, ResNetConfig(key_ratio=0.2, value_ratio=0.1, position="none"))
    # (2 (H + W) - 2) d numbers a layer: four of 14 x 14, six of 14 x 14, three of 7 x 7 cells.
    assert positioned - count(without) == 10 * (2 * 28 - 2) * 20 + 3 * (2 * 14 - 2) * 20


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50", "mnasnet1_0"])
def test_plain_networks_are_those_of_torchvision(name):
    theirs = torchvision.models.get_model(name, weights=None).eval()
    ours = create(name).eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x))


def test_wide_networks_equal_a_plain_writing_of_the_paper():
    """Normalisation first; two 3x3 convolutions; averages and zeros on the bypass."""
    model = WideResNet(WideResNetConfig(num_classes=5, depth=10, width_factor=2)).eval()
    weights = model.state_dict()
    x = torch.randn(2, 3, 16, 16)

    def norm(t, name):
        return torch.nn.functional.batch_norm(
            t, weights[f"{name}.running_mean"], weights[f"{name}.running_var"], weights[f"{name}.weight"],
            weights[f"{name}.bias"],
        ).relu()  # fmt: skip

    t = torch.nn.functional.conv2d(x, weights["conv1.weight"], padding=1)
    for stage in (1, 2, 3):
        here, stride = f"layer{stage}.0", 1 if stage == 1 else 2
        inner = torch.nn.functional.conv2d(
            norm(t, f"{here}.bn1"), weights[f"{here}.conv1.weight"], padding=1, stride=stride
        )
        inner = torch.nn.functional.conv2d(norm(inner, f"{here}.bn2"), weights[f"{here}.conv2.weight"], padding=1)
        short = torch.nn.functional.avg_pool2d(t, stride)
        t = inner + torch.cat((short, torch.zeros_like(inner)[:, short.shape[1] :]), dim=1)
    expected = norm(t, "bn").mean((2, 3)) @ weights["fc.weight"].T + weights["fc.bias"]
    with torch.no_grad():
        torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["aa_resnet18", "aa_resnet50", "aa_resnet20", "aa_wide_resnet16_2", "aa_mnasnet0_75"])
def test_augmented_networks_take_any_size_and_train(name):
    model = create(name, num_classes=7)
    side = model.config.image_size // 2
    for size in [(side, side), (side + 13, side - 5)]:
        logits = model(torch.randn(2, 3, *size))
        assert logits.shape == (2, 7)
    logits.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_attention_stands_where_the_paper_has_it():
    model = create("aa_resnet34", num_classes=2)
    names = [name for name, m in model.named_modules() if isinstance(m, AugmentedConv2d)]
    expected = [f"layer{s}.{b}.conv1" for s, n in ((2, 4), (3, 6), (4, 3)) for b in range(n)]
    assert names == expected
    assert [model.get_submodule(name).pool_attention for name in names] == [True] * 4 + [False] * 9
    augmented = MnasNet(MnasNetConfig(key_ratio=0.1, value_ratio=0.05))
    assert sum(isinstance(m, AugmentedConv2d) for m in augmented.modules()) == 13


def test_tables_fit_the_maps_of_the_image_size():
    for name in ("aa_resnet50", "aa_resnet20", "aa_wide_resnet16_2", "aa_mnasnet0_75"):
        model = create(name).eval()
        cells = {}
        for part, module in model.named_modules():
            if isinstance(module, AugmentedConv2d):
                module.register_forward_hook(
                    lambda m, x, _, part=part, cells=cells: cells.update({part: m.project(x[0])[0].shape[2:4]})
                )
        with torch.no_grad():
            model(torch.zeros(1, 3, model.config.image_size, model.config.image_size))
        for part, (h, w) in cells.items():
            tables = model.get_submodule(part).relative
            assert (len(tables.height_table), len(tables.width_table)) == (2 * h - 1, 2 * w - 1), (name, part)


@pytest.mark.parametrize("position", ["none", "sine", "learned", "coord"])
def test_other_positions(position):
    config = ResNetConfig(
        block="basic", layers=(1, 1), widths=(8, 16), stem="cifar", image_size=16, num_classes=3, key_ratio=0.25,
        value_ratio=0.5, num_heads=2, augmented_stages=(2,), pooled_stages=(), position=position,
    )  # fmt: skip
    assert ResNet(config)(torch.randn(2, 3, 16, 16)).shape == (2, 3)


@pytest.mark.parametrize(
    "wrong", [{"block": "big"}, {"stem": "x"}, {"layers": (1, 2)}, {"value_ratio": 1.5}, {"layers": (), "widths": ()}]
)
def test_wrong_settings(wrong):
    with refused(ConfigError, next(iter(wrong))):
        ResNetConfig(**wrong)


def test_names():
    assert {"aa_resnet50", "resnet20", "aa_wide_resnet28_10", "aa_mnasnet1_0"} <= set(list_models())


@pytest.mark.parametrize(
    ("name", "changes", "value"),
    [
        ("aa_resnet20", {"num_heads": 0}, "num_heads 0"),
        ("aa_resnet20", {"num_heads": 64}, "num_heads 64"),
        ("aa_resnet20", {"position": "foo"}, "'foo'"),
        ("aa_resnet20", {"image_size": 0}, "image_size=0"),
        ("aa_mnasnet1_0", {"value_ratio": 1.0}, "value_ratio=1.0"),
        ("aa_wide_resnet16_2", {"width_factor": 0}, "width_factor=0"),
        ("aa_wide_resnet16_2", {"key_ratio": -1.0}, "key_ratio=-1.0"),
    ],
)
def test_wrong_settings_are_one_line(name, changes, value):
    with refused(ConfigError, value):
        build(replace(preset(name), **changes), name)


@pytest.mark.parametrize("name", ["aa_resnet20", "aa_wide_resnet16_2", "aa_mnasnet0_75"])
def test_position_tables_are_not_decayed(name):
    model = create(name)
    decayed, spared = parameter_groups(model, 1.0, 1.0, 0.1, "matrices")
    names = {id(p): n for n, p in model.named_parameters()}
    tables = {n for n in names.values() if n.endswith("_table")}
    assert tables and tables <= {names[id(p)] for p in spared["params"]}
    assert not [n for n in (names[id(p)] for p in decayed["params"]) if "bn" in n or n.endswith("bias")]
