"""The engine answers as the model does, for every family, and keeps up with changes of the model."""

import copy
import gc
import weakref

import pytest
import torch
import torchvision
from torch import nn
from torchvision.ops.misc import FrozenBatchNorm2d

import regard
from refusals import refused
from regard.errors import ConfigError
from regard.models.build import Detector, build
from regard.models.configs import CONFIGS
from regard.models.configs.detr import DETRConfig
from regard.models.configs.resnet import ResNetConfig
from regard.models.engine import Optimized, engine_of, engines
from regard.models.engine.convolutions import FusedConv2d
from regard.models.exported import ExportedClassifier
from regard.models.token_merging import merge_tokens
from regard.structures.image_batch import ImageBatch

CLASSIFIERS = [
    "resnet18", "resnet50", "aa_resnet20", "aa_resnet50", "wide_resnet16_2", "aa_wide_resnet16_2",
    "mnasnet1_0",
    "aa_mnasnet1_0", "efficientnet_lite0", "san10_patchwise", "deit_nano_patch4_32", "deit_nano_distilled_patch4_32",
    "deit3_small_patch16_224", "vit_tiny_patch16_224",
]  # fmt: skip
DETECTORS = ["detr_tiny", "detr_lite", "detr_lite_panoptic", "detr_tiny_panoptic", "retinanet_tiny", "detr_resnet18"]
# Settings that change what a part computes.
SMALL = {"num_classes": 5, "embed_dim": 32, "num_heads": 4, "feedforward_dim": 64, "num_queries": 7}
VARIANTS = {
    "pre-norm": DETRConfig(backbone="resnet18", encoder_layers=1, decoder_layers=2, norm_first=True, **SMALL),
    "no encoder": DETRConfig(backbone="small", encoder_layers=0, decoder_layers=1, **SMALL),
    "dilated": DETRConfig(backbone="resnet50", dilation=True, encoder_layers=1, decoder_layers=1, **SMALL),
    "two maps": DETRConfig(backbone="resnet18", feature_maps=2, encoder_layers=1, decoder_layers=1, **SMALL),
    "attention backbone": DETRConfig(backbone="aa_small", encoder_layers=1, decoder_layers=1, **SMALL),
    "positions once": DETRConfig(backbone="resnet18", positions_at="input", encoder_layers=1, **SMALL),
    "masks": DETRConfig(backbone="resnet18", masks=True, encoder_layers=1, decoder_layers=2, **SMALL),
    "proposals": DETRConfig(backbone="small", anchors=True, sigmoid=True, proposals=True, encoder_layers=1, **SMALL),
    "squeeze": ResNetConfig(num_classes=5, squeeze=4),
}  # fmt: skip


def random_model(name: str) -> nn.Module:
    """A model whose norms have statistics, so that folding changes weights."""
    torch.manual_seed(0)
    config = CONFIGS[name] if name in CONFIGS else VARIANTS[name]
    return randomized(build(config, name))


def randomized(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm2d, FrozenBatchNorm2d)):
            for tensor, low, high in ((module.weight, 0.5, 1), (module.running_var, 0.8, 1.5)):
                tensor.data.uniform_(low, high)
            for tensor in (module.bias, module.running_mean):
                tensor.data.normal_(std=0.2)
    return model.eval()


def assert_equal_outputs(one, other, atol: float = 1e-4) -> None:
    if isinstance(one, torch.Tensor):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=atol)
        return
    for name in ("logits", "boxes", "masks"):
        expected, found = getattr(one, name), getattr(other, name)
        assert (expected is None) == (found is None), name
        if expected is not None:
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=atol)
    assert one.duplicate_iou == other.duplicate_iou and (one.dense is None) == (other.dense is None)


@pytest.mark.parametrize("name", [*CLASSIFIERS, "squeeze"])
@torch.no_grad()
def test_classifiers_agree(name: str) -> None:
    model = random_model(name)
    engine = regard.optimize(model)
    side = min(model.config.image_size, 64)
    for batch, (height, width) in ((1, (side, side)), (2, (side, side)), (2, (side, side + 16))):
        images = torch.randn(batch, 3, height, width)
        assert_equal_outputs(model(images), engine(images))


@pytest.mark.parametrize("name", [*DETECTORS, "detr_demo", *sorted(set(VARIANTS) - {"squeeze"})])
@torch.no_grad()
def test_detectors_agree(name: str) -> None:
    model = random_model(name)
    engine = regard.optimize(model)
    for sizes in ([(64, 96)], [(96, 64), (96, 64)], [(97, 65), (64, 128)], [(60, 75), (128, 33), (77, 77)]):
        images = [torch.randn(3, *size) for size in sizes]
        plain, found = model(images), engine(images)
        assert_equal_outputs(plain, found)
        assert found.auxiliary == () or not found.auxiliary
        assert_equal_outputs(plain, engine(ImageBatch.from_images(images)))
    assert isinstance(engine, Detector) and engine.card is not None


def test_every_family_of_the_catalog_is_tested() -> None:
    tested = {type(CONFIGS[name]) for name in (*CLASSIFIERS, *DETECTORS, "detr_demo")}
    assert tested == {type(config) for config in CONFIGS.values()}


@torch.no_grad()
def test_norms_are_gone_and_kernels_fused() -> None:
    """A fold that is forgotten would not show in the outputs."""
    for name in (
        "resnet50",
        "aa_resnet50",
        "mnasnet1_0",
        "efficientnet_lite0",
        "detr_tiny",
        "detr_resnet18",
    ):
        engine = regard.optimize(random_model(name))
        kinds = [type(module) for module in engine.modules()]
        assert not any(issubclass(kind, (nn.BatchNorm2d, FrozenBatchNorm2d)) for kind in kinds), name
        assert nn.Conv2d not in kinds and FusedConv2d in kinds, name


@torch.no_grad()
def test_own_network_with_attention() -> None:
    torch.manual_seed(0)
    net = randomized(regard.augment(torchvision.models.resnet18(), image_size=64, quiet=True))
    images = torch.randn(2, 3, 64, 64)
    assert_equal_outputs(net(images), regard.optimize(net)(images))


@torch.no_grad()
def test_norms_without_affine_or_statistics() -> None:
    first, second = nn.BatchNorm2d(4, affine=False), nn.BatchNorm2d(4, track_running_stats=False)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), first, nn.ReLU(), nn.Conv2d(4, 4, 3), second, nn.ReLU6()).eval()
    first.running_mean.normal_(), first.running_var.uniform_(0.5, 2)
    images = torch.randn(2, 3, 9, 9)
    engine = regard.optimize(net)
    torch.testing.assert_close(engine(images), net(images), rtol=1e-5, atol=1e-5)
    assert [type(layer) for layer in engine].count(nn.BatchNorm2d) == 1


@torch.no_grad()
def test_double_precision_stays() -> None:
    model = random_model("detr_tiny").double()
    images = [torch.randn(3, 64, 64, dtype=torch.float64)]
    plain, found = model(images), regard.optimize(model)(images)
    torch.testing.assert_close(found.logits, plain.logits, rtol=1e-12, atol=1e-12)


def test_the_model_is_untouched() -> None:
    model = random_model("detr_resnet18").train()
    before = copy.deepcopy(model.state_dict())
    engine = regard.optimize(model)
    assert model.training and not engine.training
    after = model.state_dict()
    assert list(before) == list(after) and all(torch.equal(before[key], after[key]) for key in before)
    memory = {tensor.untyped_storage().data_ptr() for tensor in model.state_dict().values()}
    assert not memory & {parameter.untyped_storage().data_ptr() for parameter in engine.parameters()}


def test_engines_are_for_inference() -> None:
    model = random_model("deit_nano_patch4_32")
    engine = regard.optimize(model)
    assert regard.optimize(engine) is engine and isinstance(engine, type(model)) and isinstance(engine, Optimized)
    assert not engine(torch.randn(1, 3, 32, 32, requires_grad=True)).requires_grad
    for action in (engine.train, engine.state_dict):
        with refused(ConfigError, "an optimised model cannot be"):
            action()
    assert engine.eval() is engine
    with refused(ConfigError, "dtype=torch.float16"):
        regard.optimize(model, dtype=torch.float16)
    with refused(ConfigError, "compiled already"):
        regard.optimize(torch.compile(model))
    exported = ExportedClassifier(dict, (), model.config, model.card)
    assert engine_of(exported) is exported
    with refused(ConfigError, "an exported model"):
        regard.optimize(exported)


@torch.no_grad()
def test_engines_move_and_change_precision() -> None:
    """In float64 no fused kernel exists; the same engine then uses the plain functions."""
    model = random_model("resnet18")
    engine, images = regard.optimize(model).double(), torch.randn(1, 3, 64, 64)
    assert_equal_outputs(model(images), engine(images).float())
    assert engine(images).dtype == torch.float64 and engine.to("cpu") is engine


@pytest.mark.parametrize("name", ["detr_tiny", "retinanet_tiny", "detr_resnet18", "resnet18", "deit_nano_patch4_32"])
@torch.no_grad()
def test_bfloat16_is_near(name: str) -> None:
    """Half the bits: not exact, but far nearer than any other image's output."""
    model = random_model(name)
    engine = regard.optimize(model, dtype=torch.bfloat16)
    size = (64, 96) if isinstance(model, Detector) else (model.config.image_size,) * 2
    images = torch.randn(2, 3, *size)
    given = list(images) if isinstance(model, Detector) else images
    plain, found = model(given), engine(given)
    pairs = [(plain, found)] if isinstance(plain, torch.Tensor) else [(plain.logits, found.logits)]
    for expected, logits in pairs:
        assert logits.dtype == torch.float32 and not torch.equal(logits, expected)
        assert (logits - expected).abs().max() < 0.05 * expected.std() + 0.05
    if isinstance(model, Detector):
        assert found.boxes.dtype == torch.float32 and (found.boxes - plain.boxes).abs().max() < 0.02


@torch.no_grad()
def test_engine_of_follows_the_weights() -> None:
    model = random_model("resnet18")
    images = torch.randn(1, 3, 64, 64)
    first = engine_of(model)
    assert engine_of(model) is first and engine_of(first) is first
    changes = (
        lambda: model.fc.bias.add_(1),
        lambda: model.fc.weight.data.mul_(2),
        lambda: model.bn1.running_mean.add_(0.5),
        lambda: setattr(model.fc, "bias", nn.Parameter(torch.randn(1000))),
        lambda: model.load_state_dict({key: value * 0.9 for key, value in model.state_dict().items()}),
    )
    for change in changes:
        change()
        assert_equal_outputs(model(images), engine_of(model)(images))
    assert engine_of(model) is not first


def test_models_whose_own_code_must_run_are_left(monkeypatch) -> None:
    monkeypatch.setattr(engines, "products_are_slow", lambda: False)
    transformer = random_model("deit_nano_patch4_32")
    for model in (transformer, merge_tokens(transformer, 2)):
        assert engine_of(model) is model
    model = random_model("resnet18")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert engine_of(model) is model
    assert engine_of(model) is not model
    own = type("Own", (type(model),), {})(model.config)
    assert engine_of(own) is own
    seen = []
    model.bn1.register_forward_hook(lambda *_: seen.append(1))
    assert engine_of(model) is model
    regard.predict(model, torch.zeros(3, 32, 32))
    assert seen


def test_predict_uses_the_engine_and_explain_the_model() -> None:
    model = random_model("aa_resnet20")
    image = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0))
    found = regard.predict(model, image).probabilities
    torch.testing.assert_close(regard.predict(regard.optimize(model), image).probabilities, found, rtol=0, atol=0)
    regard.explain(model, image)
    with refused(ConfigError, "explain the model that it was made of"):
        regard.explain(regard.optimize(model), image)


@pytest.mark.parametrize(
    ("name", "layers"), [("resnet18", "layer3.0.conv2"), ("resnet50", "layer3.1.conv3"), ("resnet50", "layer3.0.conv2")]
)
def test_attention_at_the_end_of_a_block(name, layers):
    """Its sum with the shortcut cannot be one kernel: the block stays, with its norm."""
    torch.manual_seed(0)
    net = getattr(torchvision.models, name)()
    regard.augment(net, layers=[layers], image_size=64)
    net = randomized(net)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(regard.optimize(net)(images), net(images), atol=1e-4, rtol=1e-4)


def test_the_engine_of_older_weights_is_gone_before_the_next_one_is_made(monkeypatch):
    """Two of them and the model would not fit where the model just does."""
    net = random_model("resnet18")
    older, gone = weakref.ref(engine_of(net)), []
    assert older() is not None
    with torch.no_grad():
        next(net.parameters()).add_(1)
    make = engines.optimize

    def watched(model):
        gc.collect()
        gone.append(older() is None)
        return make(model)

    monkeypatch.setattr(engines, "optimize", watched)
    assert isinstance(engine_of(net), Optimized) and gone == [True]
