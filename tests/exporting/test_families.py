"""A small network of every family computes the same in float32 as its exported graph and its ONNX file."""

from __future__ import annotations

import pytest
import torch

from exported_files import batches
from regard.exporting.check import inputs_of, outputs_of
from regard.exporting.graph import graph_of
from regard.exporting.metadata import metadata_of
from regard.exporting.readers import reopen
from regard.exporting.writers import trace, write_onnx, write_torch
from regard.weights.onnx_file import open_onnx
from small_families import FAMILIES, random_network

# Of a number, or of 1 where it is smaller. torch.export runs the same kernels; ONNX Runtime has others, which sum in
# another order, and boxes of DETRs are sigmoids of sums that grow with the depth.
EXPORTED, ONNX = {"logits": 1e-6, "boxes": 1e-6, "masks": 1e-5}, {"logits": 1e-5, "boxes": 1e-4, "masks": 1e-4}
QUICK = ("resnet", "vit")


@pytest.mark.parametrize(
    "family", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES]
)
def test_outputs_are_those_of_the_network(family, tmp_path):
    """Batches of 1 to 5 images, of sizes with which it was not traced."""
    net = random_network(family)
    graph = graph_of(net)
    program = trace(graph)
    write_torch(program, tmp_path / "net.pt2", metadata_of(net))
    write_onnx(program, graph, tmp_path / "net.onnx", metadata_of(net))
    files = {"torch": reopen(tmp_path / "net.pt2", "torch", net, graph), "onnx": open_onnx(tmp_path / "net.onnx")}
    worst: dict[str, float] = {}
    for batch in batches(net):
        with torch.no_grad():
            expected = outputs_of(net, batch)
            for kind, file in files.items():
                for name, value in outputs_of(file, batch).items():
                    far = ((value - expected[name]).abs() / expected[name].abs().clamp(min=1)).max().item()
                    worst[f"{kind} {name}"] = max(worst.get(f"{kind} {name}", 0.0), far)
            assert inputs_of(net, batch).keys() == graph.inputs.keys()
            best = expected["logits"].topk(2, dim=-1)
            sure = best.values[..., 0] - best.values[..., 1] > 2e-5  # thousands of anchors have ties
            found = outputs_of(files["onnx"], batch)["logits"].argmax(-1)
            assert sure.any() and torch.equal(found[sure], best.indices[..., 0][sure])
    print(family, worst)
    for kind, most in (("torch", EXPORTED), ("onnx", ONNX)):
        for name in expected:
            assert worst[f"{kind} {name}"] <= most[name], (kind, name)
