"""The attention of a place in all layers and heads equals that of `regard.explain`, map by map."""

from __future__ import annotations

import pytest
import torch

import regard
from detr_cases import randomized
from refusals import refused
from regard.errors import ConfigError
from regard.explanations.explain import explain_stack
from regard.models.build import build
from regard.models.configs.detr import DETRConfig
from regard.structures.categories import Category, ModelCard

CONFIG = DETRConfig(
    num_classes=2, backbone="small", embed_dim=16, num_heads=4, encoder_layers=2, decoder_layers=3,
    feedforward_dim=16, num_queries=6,
)  # fmt: skip
IMAGE = torch.randint(0, 256, (3, 40, 56), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def detr():
    net = randomized(CONFIG)
    net.card = ModelCard("detr", (Category(1, "cat"), Category(2, "dog")), 64, 128)
    return net


def assert_same(stack, layer, head, saliency):
    torch.testing.assert_close(stack.layers[layer].weights[head], saliency.weights)
    assert stack.extent == saliency.extent


def test_a_query_in_the_decoder(detr):
    stack = explain_stack(detr, IMAGE, query=4)
    assert stack.source == "query" and [layer.name for layer in stack.layers] == ["decoder 0", "decoder 1", "decoder 2"]
    for layer in range(3):
        for head in range(4):
            (one,) = regard.explain(detr, IMAGE, "decoder", query=4, layer=layer, head=head).maps
            assert_same(stack, layer, head, one)
    sums = stack.layers[0].weights.sum((1, 2))
    torch.testing.assert_close(sums, torch.ones(4))


def test_a_point_in_the_encoder(detr):
    stack = explain_stack(detr, IMAGE, point=(10, 30))
    for layer in range(2):
        (one,) = regard.explain(detr, IMAGE, "encoder", point=(10, 30), layer=layer, head=1).maps
        assert_same(stack, layer, 1, one)


@pytest.mark.parametrize("options", [{"query": 6}, {"query": 0, "point": (1, 1)}, {}, {"point": (99, 1)}, {"token": 1}])
def test_a_place_that_a_detr_does_not_have(detr, options):
    with refused(ConfigError):
        explain_stack(detr, IMAGE, **options)


def test_tokens_and_patches_of_a_transformer():
    torch.manual_seed(0)
    net = regard.create("deit_nano_distilled_patch4_32", num_classes=3).eval()
    stack = explain_stack(net, IMAGE, token=1)
    tokens = regard.explain(net, IMAGE, "tokens", head=0).maps
    assert_same(stack, 1, 0, tokens[3])  # block 1, distillation token
    patch = explain_stack(net, IMAGE, point=(28, 20))
    assert_same(patch, 2, 0, regard.explain(net, IMAGE, "patch", point=(28, 20), head=0).maps[2])
    with refused(ConfigError, code="C03"):
        explain_stack(net, IMAGE, token=2)
    with refused(ConfigError, code="C09"):
        explain_stack(net, IMAGE, query=2)


def test_cells_of_an_augmented_network():
    torch.manual_seed(0)
    net = regard.create("aa_resnet20", num_classes=3).eval()
    stack = explain_stack(net, IMAGE)
    layers = regard.explain(net, IMAGE, "layers", head=1).maps
    assert [layer.name for layer in stack.layers] == [saliency.title for saliency in layers]
    assert_same(stack, 2, 1, layers[2])
    plain = build(regard.create("resnet20", num_classes=3).config, "resnet20").eval()
    with refused(ConfigError, code="C09"):
        explain_stack(plain, IMAGE)


def test_queries_of_detections_are_those_that_explain_takes(detr):
    result = regard.predict(detr, IMAGE, threshold=0.0)
    maps = regard.explain(detr, IMAGE, threshold=0.0).maps
    for row, query in enumerate(result.queries.tolist()):
        (one,) = regard.explain(detr, IMAGE, query=query).maps
        torch.testing.assert_close(one.weights, maps[row].weights)
        torch.testing.assert_close(one.boxes[0], result.boxes[row])
    assert torch.equal(result[2:4].queries, result.queries[2:4])
    with refused(ConfigError, code="C03"):
        regard.explain(detr, IMAGE, query=6)
