"""Every kind of model exports, and its file computes what the model does at sizes that it was not traced with."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from exported_files import all_close, batches, randomized, write
from regard.exporting.check import outputs_of
from regard.exporting.graph import graph_of
from regard.exporting.metadata import metadata_of
from regard.exporting.readers import reopen
from regard.exporting.writers import LARGEST, trace, write_openvino, write_torch
from regard.models.build import Model, build, create
from regard.models.configs.resnet import ResNetConfig
from regard.models.configs.vit import ViTConfig
from regard.models.parameter_counts import PARAMETER_COUNTS
from regard.weights.onnx_file import open_onnx
from run_files import SMALL

NANO = ViTConfig(num_classes=5, image_size=16, patch_size=4, embed_dim=16, num_heads=2, depth=1)


def same_outputs(net: Model, exported: Model) -> bool:
    """Whether both compute the same for all `batches`, and some outputs are not trivial."""
    same, largest = True, 0.0
    for batch in batches(net):
        with torch.no_grad():
            expected, found = outputs_of(net, batch), outputs_of(exported, batch)
        assert found.keys() == expected.keys()
        same = same and all(all_close(found[name], expected[name]) for name in expected)
        largest = max(largest, expected["logits"].std().item())
    return same and largest > 1e-3


def test_a_vision_transformer_in_all_formats(tmp_path):
    """Traced at another size, or the branch for the trained size would be the only one that the file has."""
    torch.manual_seed(0)
    net = randomized(build(NANO, "nano"))
    file, graph = write(net, tmp_path / "nano.onnx"), graph_of(net)
    assert graph.inputs["pixels"].shape == (2, 3, 20, 24)
    assert same_outputs(net, open_onnx(file))
    write_openvino(file, tmp_path / "nano.xml", metadata_of(net))
    assert same_outputs(net, reopen(tmp_path / "nano.xml", "openvino", net, graph))
    write_torch(trace(graph), tmp_path / "nano.pt2", metadata_of(net))
    assert same_outputs(net, reopen(tmp_path / "nano.pt2", "torch", net, graph))


def test_an_augmented_network(tmp_path):
    """Relative positions, pooled attention, sizes beyond the tables."""
    torch.manual_seed(0)
    config = ResNetConfig(
        num_classes=5, image_size=16, layers=(1, 1), widths=(16, 32), block="basic", stem="cifar", key_ratio=0.25,
        value_ratio=0.25, num_heads=2, augmented_stages=(1, 2), pooled_stages=(1,),
    )  # fmt: skip
    net = randomized(build(config, "augmented"))
    assert same_outputs(net, open_onnx(write(net, tmp_path / "augmented.onnx")))


def test_a_panoptic_detector(tmp_path):
    """Padding, anchors, masks of all queries."""
    torch.manual_seed(0)
    config = replace(SMALL, masks=True, mask_dim=16, anchors=True, sigmoid=True)
    net = randomized(build(config, "panoptic", sizes=(64, 128)))
    exported = open_onnx(write(net, tmp_path / "panoptic.onnx"))
    assert same_outputs(net, exported)
    assert set(exported.inputs) == {"pixels", "padding"}


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, count in PARAMETER_COUNTS.items() if 4 * count < LARGEST])
def test_every_named_model(name, tmp_path):
    torch.manual_seed(0)
    net = create(name)
    assert same_outputs(randomized(net), open_onnx(write(net, tmp_path / "file.onnx")))
