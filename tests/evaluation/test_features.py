"""Features are the inputs of the classification layer in every network; probes learn from the training images."""

import pytest
import torch

from color_data import ColorClassifier, write_colors
from refusals import refused
from regard.data.batches.classification import collate
from regard.data.class_images.dataset import open_classification
from regard.data.transforms.classification import Evaluation
from regard.errors import ConfigError
from regard.evaluation.batches import evaluation_batches
from regard.evaluation.features import classification_layers, image_features, images_per_second, probe
from regard.models.build import build
from regard.models.configs.mnasnet import MnasNetConfig
from regard.models.configs.resnet import RESNET_PRESETS
from regard.models.configs.san import SAN_PRESETS
from regard.models.configs.vit import ViTConfig

CPU = torch.device("cpu")
TINY = ViTConfig(image_size=16, patch_size=8, embed_dim=12, num_heads=2, depth=2, num_classes=3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_colors(tmp_path_factory.mktemp("data") / "colors")


@pytest.fixture(scope="module")
def dataset(folder):
    return open_classification(folder, "val")


def pixels_of(dataset, model):
    transform = Evaluation(model.card.short_side, model.card.crop_pct)
    return (
        next(evaluation_batches(dataset, transform, collate, [range(len(dataset))], workers=0, device=CPU))
        .images.normalized()
        .pixels
    )


def features_of(model, dataset, batch_size=5):
    return image_features(model, dataset, device=CPU, batch_size=batch_size, workers=0)


@pytest.mark.parametrize(
    ("config", "name", "head"),
    [
        (RESNET_PRESETS["resnet20"], "resnet20", "fc"), (TINY, "vit", "head"),
        (MnasNetConfig(num_classes=7, image_size=64), "mnasnet1_0", "classifier"),
    ],
)  # fmt: skip
def test_the_classification_layer_makes_logits_of_them(config, name, head, dataset):
    torch.manual_seed(0)
    model = build(config, name).eval()
    features = features_of(model, dataset)
    assert features.shape[0] == len(dataset) == 12 and features.dtype == torch.float32
    with torch.inference_mode():
        torch.testing.assert_close(
            getattr(model, head)(features), model(pixels_of(dataset, model)), rtol=1e-4, atol=1e-5
        )


def test_every_family_has_them(dataset):
    config = next(iter(SAN_PRESETS.values()))
    with torch.device("meta"):
        model = build(config, "san")
    assert [layer.out_features for layer in classification_layers(model)] == [config.num_classes]


def test_both_tokens_of_a_distilled_model_count_the_same(dataset):
    torch.manual_seed(0)
    model = build(ViTConfig(**{**TINY.__dict__, "distilled": True}), "deit").train()
    features = features_of(model, dataset)
    assert model.training and not model.head._forward_pre_hooks  # as it was
    with torch.inference_mode():
        tokens = model.eval().norm(model.tokens(pixels_of(dataset, model))[-1])
    torch.testing.assert_close(features, (tokens[:, 0] + tokens[:, 1]) / 2, rtol=1e-4, atol=1e-5)


def test_a_probe_of_colours(folder, dataset):
    """Even random patches separate colours; the result depends on neither the head nor its classes."""
    torch.manual_seed(0)
    model = build(ViTConfig(**{**TINY.__dict__, "num_classes": 11}), "vit")
    splits, options = (open_classification(folder, "train"), dataset), {"device": CPU, "batch_size": 7, "workers": 0}
    found = probe(model, *splits, **options)
    assert found["knn_top1"] >= 0.9 and found["linear_top1"] >= 0.9
    torch.nn.init.normal_(model.head.weight)
    assert probe(model, *splits, **options) == found
    with torch.no_grad():
        model.norm.weight.zero_()  # the same features for all
    found = probe(model, *splits, **options)
    assert found["knn_top1"] == pytest.approx(1 / 3) and found["linear_top1"] == pytest.approx(1 / 3)


def test_what_has_no_features(dataset):
    with refused(ConfigError, "ColorClassifier", code="C09"):
        features_of(ColorClassifier(), dataset)


def test_speed_is_images_over_seconds(monkeypatch):
    """The median of the rounds, without the first two."""
    clock = iter([time for seconds in (9, 9, 1, 8, 2, 4, 0.1) for time in (0.0, seconds)])
    monkeypatch.setattr("regard.evaluation.features.time.perf_counter", lambda: next(clock))
    model = ColorClassifier().train()
    assert images_per_second(model, 16, device=CPU, batch_size=6, rounds=5) == 6 / 2
    assert model.training and {tuple(batch.shape) for batch in model.batches} == {(6, 3, 16, 16)}
    assert len(model.batches) == 7
