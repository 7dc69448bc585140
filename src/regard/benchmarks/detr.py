"""Seconds of DETR-R50 for one image on one core: Regard's model and engines next to transformers.

All get the same weights, random ones with spread statistics of the norms, and the same image. Before anything is timed,
their outputs are compared: float32 has to agree to 1e-3. The error of bfloat16 is printed.

The floor is the time of the arithmetic alone: the operations of the model over the rate of a large product of
matrices or of a convolution, whichever is higher, measured in the same rounds.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from regard.benchmarks.timing import large_products, medians
from regard.errors import MachineError, install_command
from regard.models.build import create
from regard.models.detr import DETR
from regard.models.engine import optimize
from regard.structures.outputs import DetectionOutput

if TYPE_CHECKING:
    from rich.table import Table

# Parts of transformers' names -> ours.
OURS_OF_THEIRS: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = (
    (r"^model\.backbone\.model\.embedder\.embedder\.convolution", "backbone.body.conv1"),
    (r"^model\.backbone\.model\.embedder\.embedder\.normalization", "backbone.body.bn1"),
    (r"^model\.backbone\.model\.encoder\.stages\.(\d)\.layers\.", lambda m: f"backbone.body.layer{int(m[1]) + 1}."),
    (r"shortcut\.convolution", "downsample.0"),
    (r"shortcut\.normalization", "downsample.1"),
    (r"\.layer\.(\d)\.convolution", lambda m: f".conv{int(m[1]) + 1}"),
    (r"\.layer\.(\d)\.normalization", lambda m: f".bn{int(m[1]) + 1}"),
    (r"^model\.(encoder|decoder)\.", r"transformer.\1."),
    (r"encoder\.(layers\.\d)\.final_layer_norm", r"encoder.\1.norm2"),
    (r"decoder\.(layers\.\d)\.final_layer_norm", r"decoder.\1.norm3"),
    (r"encoder_attn_layer_norm", "norm2"),
    (r"self_attn_layer_norm", "norm1"),
    (r"decoder\.layernorm", "decoder.norm"),
    (r"encoder_attn\.", "multihead_attn."),
    (r"o_proj", "out_proj"),
    (r"mlp\.fc(\d)", r"linear\1"),
    (r"^model\.query_position_embeddings", "query_embed"),
    (r"^model\.input_projection", "input_proj"),
    (r"^class_labels_classifier", "class_embed"),
    (r"^bbox_predictor", "bbox_embed"),
)


def from_transformers(theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of `DetrForObjectDetection` by our names; queries, keys and values are packed."""
    ours = {}
    for name, value in theirs.items():
        for pattern, replacement in OURS_OF_THEIRS:
            name = re.sub(pattern, replacement, name)
        ours[name] = value
    for name in [n for n in ours if ".q_proj." in n]:
        packed = torch.cat([ours.pop(name.replace("q_proj", part)) for part in ("q_proj", "k_proj", "v_proj")])
        ours[name.replace("q_proj.", "in_proj_")] = packed
    return ours


@dataclass(frozen=True)
class EngineRow:
    """One way to run the model.

    seconds: of one image, median over the rounds. ratio: how many times as fast as transformers.
    box_error: largest difference of a coordinate of a box from transformers, as a fraction of the image's side.
    classes: share of queries with the class that transformers gives them, 0..1.
    """

    what: str
    seconds: float
    ratio: float
    box_error: float | None = None
    classes: float | None = None


def main(rounds: int) -> list[EngineRow]:
    """Measure and print the table."""
    from rich.console import Console

    rows = run(rounds)
    Console().print(table(rows))
    return rows


def run(rounds: int = 5, *, size: tuple[int, int] = (800, 1066), compiled: bool = True) -> list[EngineRow]:
    """Measure transformers, the model, its engines and the floor, in alternating rounds.

    Args:
        rounds: number of rounds.
        size: (height, width) of the image in pixels.
        compiled: whether to measure the engine with `torch.compile` too, which takes minutes to compile.

    Raises:
        MachineError: transformers is missing.
    """
    theirs = transformers_detr()
    plain = create("detr_resnet50").eval().requires_grad_(False)
    assert isinstance(plain, DETR)
    plain.load_state_dict(from_transformers(theirs.state_dict()))
    image = torch.randn(3, *size, generator=torch.Generator().manual_seed(0))
    nets = {"regard, plain": plain, "regard, exact": optimize(plain)}
    nets["regard, bfloat16"] = optimize(plain, dtype=torch.bfloat16)
    if compiled:
        nets["regard, compiled"] = optimize(plain, compile=True)
    mask = torch.ones(1, *size, dtype=torch.int64)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        plain([image])
    with torch.inference_mode():
        expected = theirs(pixel_values=image[None], pixel_mask=mask)
        errors = {name: _compare(name, net([image]), expected) for name, net in nets.items()}
        ways: list[Callable[[int], object]] = [lambda _: theirs(pixel_values=image[None], pixel_mask=mask)]
        ways += [_detecting(net, image) for net in nets.values()]
        products = large_products()
        seconds = medians([*ways, *products], rounds)
    peer, *ours = seconds[: len(ways)]
    rate = max(count / each for count, each in zip(products.values(), seconds[len(ways) :], strict=True))
    floor = counter.get_total_flops() / rate
    rows = [EngineRow("transformers", peer, 1.0)]
    rows += [EngineRow(n, s, peer / s, *errors[n]) for n, s in zip(nets, ours, strict=True)]
    return [*rows, EngineRow(f"the arithmetic, {counter.get_total_flops() / 1e9:.0f} G", floor, peer / floor)]


def table(rows: Sequence[EngineRow]) -> Table:
    """Return a table of the rows."""
    from rich.table import Table

    found = Table(title="DETR-R50, one image on one core", title_justify="left")
    found.add_column("what", no_wrap=True)
    for name in ("seconds", "ratio", "box error, % of side", "same classes"):
        found.add_column(name, justify="right")
    for row in rows:
        error = "" if row.box_error is None else f"{100 * row.box_error:.4f}"
        classes = "" if row.classes is None else f"{100 * row.classes:.0f} %"
        found.add_row(row.what, f"{row.seconds:.3f}", f"{row.ratio:.2f}x", error, classes)
    return found


def _detecting(net: DETR, image: Tensor) -> Callable[[int], object]:
    return lambda _: net([image])


def _compare(name: str, output: DetectionOutput, expected: Any) -> tuple[float, float]:
    """Return the largest difference of boxes and the share of equal classes."""
    error = (output.boxes - expected.pred_boxes).abs().max().item()
    if "bfloat16" not in name:
        difference = max(error, (output.logits - expected.logits).abs().max().item())
        assert difference < 1e-3, f"the outputs of {name} differ by {difference}"
    return error, (output.logits.argmax(-1) == expected.logits.argmax(-1)).float().mean().item()


def transformers_detr() -> Any:
    """DETR-R50 of transformers in evaluation mode, with random weights of which all boxes and classes depend.

    Raises:
        MachineError: transformers is missing.
    """
    try:
        from transformers import DetrConfig, DetrForObjectDetection, ResNetConfig
    except ImportError as error:
        what, remedy = "this comparison needs transformers", install_command("transformers")
        raise MachineError(what, remedy=remedy) from error
    torch.manual_seed(0)
    backbone: dict[str, Any] = {"out_indices": [4]}
    settings: dict[str, Any] = {"use_timm_backbone": False, "use_pretrained_backbone": False, "backbone": None}
    settings |= {"num_labels": 91, "backbone_config": ResNetConfig(**backbone)}
    config = DetrConfig(**settings)
    net = DetrForObjectDetection(config).eval()
    for name, value in net.state_dict().items():
        if name.endswith("running_var"):
            value.uniform_(0.5, 1.5)
        elif value.dim() == 1 and value.is_floating_point():
            value.add_(0.1 * torch.randn_like(value))
        elif value.is_floating_point() and "backbone" not in name:  # so large that boxes depend on the image
            value.normal_(std=2 if "query_position" in name else 0.14)
    return net
