"""Attention in other people's CNNs."""

import pytest
import torch
import torchvision
from torch import nn

import regard
from refusals import refused
from regard.attention import AugmentedConv2d
from regard.data.class_images.dataset import open_classification
from regard.errors import ConfigError
from regard.models.augment import table
from regard.models.configs.resnet import RESNET_PRESETS
from regard.models.resnet import ResNet


def layers_of(model):
    return {name: part for name, part in model.named_modules() if isinstance(part, AugmentedConv2d)}


def test_a_resnet_becomes_that_of_the_paper():
    """Names, sizes and numbers of parameters are those of AA-ResNet-34."""
    ours = ResNet(RESNET_PRESETS["aa_resnet34"])
    theirs = regard.augment(torchvision.models.resnet34(weights=None), quiet=True)
    assert {k: v.shape for k, v in theirs.state_dict().items()} == {k: v.shape for k, v in ours.state_dict().items()}
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(1, 3, 96, 64)
    with torch.no_grad():
        torch.testing.assert_close(theirs.eval()(x), ours.eval()(x))


def test_weights_that_fit_stay_and_the_table_tells(capsys):
    model = torchvision.models.resnet18(weights=None)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_modules()}
    assert regard.augment(model) is model
    printed = capsys.readouterr().err
    found = layers_of(model)
    assert [r.name for r in model.augmented] == list(found) and len(found) == 6
    for row in model.augmented:
        part = found[row.name]
        assert torch.equal(part.conv.weight, before[f"{row.name}.weight"][: part.conv.out_channels])
        assert part.conv.out_channels + row.value_channels == row.channels == len(before[f"{row.name}.weight"])
        assert row.parameters == (counts[row.name], sum(p.numel() for p in part.parameters()))
        assert row.name in printed
    assert [r.map_size[0] for r in model.augmented] == [28, 28, 14, 14, 7, 7]
    assert [r.pooled for r in model.augmented] == [True, True, False, False, False, False]
    untouched = [k for k in before if not any(k.startswith(f"{name}.") for name in found)]
    assert all(torch.equal(model.state_dict()[k], before[k]) for k in untouched)
    assert len(table(model.augmented).rows) == 6


@pytest.mark.parametrize("name", ["regnet_y_400mf", "convnext_tiny", "vgg11_bn", "densenet121"])
def test_other_networks_of_torchvision(name):
    model = torchvision.models.get_model(name, weights=None).eval()
    if name in ("regnet_y_400mf", "convnext_tiny"):  # grouped convolutions mix no channels
        with refused(ConfigError, "2 x 2", code="C09"):
            regard.augment(model, largest_map=2, quiet=True)
        return
    regard.augment(model, image_size=64, largest_map=8, quiet=True)
    assert layers_of(model)
    with torch.no_grad():
        assert model(torch.randn(2, 3, 64, 96)).shape == (2, 1000)


def test_networks_of_timm():
    timm = pytest.importorskip("timm")
    model = regard.augment(timm.create_model("resnet26", num_classes=5), quiet=True)
    assert layers_of(model) and model(torch.randn(2, 3, 64, 64)).shape == (2, 5)


def test_named_layers_and_other_settings():
    model = nn.Sequential(nn.Conv2d(3, 16, 5, stride=2, padding="valid"), nn.ReLU(), nn.Conv2d(16, 16, 3, dilation=2))
    regard.augment(model, layers=["2"], image_size=(32, 48), num_heads=2, position="none", quiet=True)
    (row,) = model.augmented
    assert row.map_size == (10, 18) and row.value_channels == 4 and not row.pooled
    assert model(torch.randn(1, 3, 32, 48)).shape == (1, 16, 10, 18)


def test_a_frozen_convolution_stays_frozen():
    model = torchvision.models.resnet18(weights=None).requires_grad_(False).half().eval()
    regard.augment(model.float(), quiet=True)
    part = model.layer4[0].conv1
    assert not part.conv.weight.requires_grad and part.kqv.weight.requires_grad and not part.training


@pytest.mark.parametrize("layers", [["layer1"], ["layer9.0.conv1"], ["bn1"]])
def test_names_of_no_convolution(layers):
    with refused(ConfigError, layers[0], code="C01"):
        regard.augment(torchvision.models.resnet18(weights=None), layers=layers, quiet=True)


def small_net():
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16)),
        nn.Sequential(nn.Conv2d(16, 16, 3, 1, 1), nn.BatchNorm2d(16)),
    )


def test_frozen_parts_stay_frozen():
    net = small_net().train()
    net[0][1].eval()
    regard.augment(net, image_size=16, quiet=True)
    assert [part.training for part in (net, net[0], net[0][1], net[1][1])] == [True, True, False, True]
    assert int(net[1][1].num_batches_tracked) == 0


def test_what_has_attention_is_left_alone():
    net = small_net()
    regard.augment(net, image_size=16, quiet=True)
    with refused(ConfigError, "28 x 28", "16 x 16", code="C09"):
        regard.augment(net, image_size=16, quiet=True)
    with refused(ConfigError, "16 x 16", "32 x 32", code="C09"):
        regard.augment(regard.create("aa_resnet20"), image_size=32, layers=None, quiet=True, largest_map=16)


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize(
    ("conv", "options", "code", "names"),
    [
        (nn.Conv2d(16, 16, 3, padding=1, groups=2), {}, "C09", "2 groups"),
        (nn.Conv2d(16, 16, 3, padding=1, padding_mode="reflect"), {}, "C09", "'reflect'"),
        (nn.Conv2d(16, 16, 4, padding="same"), {}, "C09", "kernel"),
        (nn.Conv2d(16, 6, 3, padding=1), {}, "C05", "num_heads 8"),
        (nn.Conv2d(16, 16, 3, padding=1), {"position": "rotary"}, "C05", "'rotary'"),
        (nn.Conv2d(16, 16, 3, padding=1), {"num_heads": 0}, "C03", "num_heads=0"),
        (nn.Conv2d(16, 16, 3, padding=1), {"image_size": 0}, "C03", "image_size=0"),
        (nn.Conv2d(5, 16, 3, padding=1), {}, "C09", "3 x 8 x 8"),
    ],
)
def test_what_cannot_be_augmented_leaves_the_network_alone(conv, options, code, names):
    net = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 1), conv)
    before = list(net)
    with refused(ConfigError, names, code=code):
        regard.augment(net, layers=["0", "2"], quiet=True, **{"image_size": 8, **options})
    assert list(net) == before and not hasattr(net, "augmented")


@pytest.mark.slow
def test_an_augmented_resnet18_learns_digits():
    """One epoch of scikit-learn's handwritten digits, from nothing."""
    pytest.importorskip("sklearn")
    torch.manual_seed(0)
    model = regard.augment(torchvision.models.resnet18(weights=None, num_classes=10), image_size=32, quiet=True)
    splits = {}
    for split in ("train", "val"):
        data = open_classification("digits", split)
        samples = [data[i] for i in range(len(data))]
        images = torch.stack([s.image for s in samples]).float() / 128 - 1
        splits[split] = images, torch.tensor([s.label for s in samples])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    images, labels = splits["train"]
    for rows in torch.randperm(len(images)).split(16):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images[rows]), labels[rows]).backward()
        optimizer.step()
    images, labels = splits["val"]
    with torch.no_grad():
        correct = (model.eval()(images).argmax(1) == labels).float().mean().item()
    print(f"accuracy after one epoch on {len(splits['train'][0])} digits: {correct:.3f}")
    assert correct > 0.8
