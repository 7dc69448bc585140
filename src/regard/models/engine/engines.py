"""`regard.optimize`, and the engines that `predict` and `evaluate` keep of the models they are given."""

from __future__ import annotations

import copy
import os
import shutil
from collections.abc import Sequence
from typing import Any, TypeVar, get_args
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from regard.errors import ConfigError, MachineError
from regard.models.build import Detector, Model
from regard.models.detr import DETR
from regard.models.detr_demo import DETRDemo
from regard.models.engine.convolutions import fuse_convolutions
from regard.models.engine.linear import products_are_slow, replace_linear_layers
from regard.models.exported import ExportedNetwork
from regard.models.retinanet import RetinaNet
from regard.models.vit import VisionTransformer

Net = TypeVar("Net", bound=nn.Module)
DTYPES = (torch.float32, torch.bfloat16)


class Optimized(nn.Module):
    """What an engine has besides the class of its model: it cannot be trained or saved."""

    def __call__(self, images: Any, *args: Any, **options: Any) -> Any:
        """As the model's `forward`, without gradients and autocast. Outputs have at least float32."""
        weight = next(self.parameters())
        with torch.no_grad(), torch.autocast(weight.device.type, enabled=False):
            if isinstance(self, Detector):
                return super().__call__(images, *args, **options)
            # A classifier has one precision throughout.
            logits = super().__call__(images.to(weight.dtype), *args, **options)
            return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def train(self, mode: bool = True) -> Optimized:
        """Raises ConfigError if `mode` (C09): what was folded cannot be trained."""
        if mode:
            remedy = "train the model it was made of"
            raise ConfigError("an optimised model cannot be trained", remedy=remedy, code="C09")
        return super().train(False)

    def state_dict(self, *args: Any, **options: Any) -> Any:
        """Raises ConfigError (C09): files hold the weights of models."""
        remedy = "save the model it was made of"
        raise ConfigError("an optimised model cannot be saved", remedy=remedy, code="C09")


def optimize(model: Net, *, dtype: torch.dtype = torch.float32, compile: bool = False) -> Net:
    """Return an engine: a copy of a model for inference that gives the same answers sooner.

    It is called as the model is, and `regard.predict` and `regard.evaluate` take it. Its weights are its own: `model`
    is unchanged, and what is trained later does not reach the engine. Outputs are the model's to 1e-4 in float32
    (logits, and boxes as fractions of the image), without those of the earlier decoder layers (`auxiliary`).

    Args:
        model: any model of `regard.create` or `regard.load`, or a network that `regard.augment` changed.
        dtype: `torch.bfloat16` computes backbone and encoder of detectors, and classifiers, in half the bits. Faster on
            processors with units for it (AMX, GPUs), slower on others. Not exact: see docs/results/speed.md.
        compile: with `torch.compile`; the first image of each size then takes up to minutes. Exact to 1e-4 in float32.

    Raises:
        ConfigError: another `dtype` (C02), or `model` is compiled or exported already (C09).
    """
    if dtype not in DTYPES:
        what = f"dtype={dtype}, expected torch.float32 or torch.bfloat16"
        raise ConfigError(what, where="optimize", remedy="leave it out", code="C02")
    if isinstance(model, ExportedNetwork):
        remedy = "optimise the model that it was exported from"
        raise ConfigError("an exported model has no layers", where="optimize", remedy=remedy, code="C09")
    if hasattr(model, "_orig_mod"):
        remedy = "give it the model before torch.compile, and compile=True"
        raise ConfigError("the model is compiled already", where="optimize", remedy=remedy, code="C09")
    if isinstance(model, Optimized):
        return model
    engine: Any = copy.deepcopy(model).eval().requires_grad_(False)
    fuse_convolutions(engine)
    if dtype == torch.bfloat16:
        engine = _in_half(engine)
    if products_are_slow():
        replace_linear_layers(engine)
    if isinstance(engine, DETR):
        engine.auxiliary_outputs = False
    if compile:
        compile_parts(engine)
    engine.__class__ = type(type(model).__name__, (Optimized, type(model)), {"__module__": type(model).__module__})
    return engine


_FASTER = {kind for kind in get_args(Model) if not issubclass(kind, (VisionTransformer, ExportedNetwork))}
_engines: WeakKeyDictionary[nn.Module, tuple[Any, Any]] = WeakKeyDictionary()


def engine_of(model: Net) -> Net:
    """Return the engine of a model that is only used here: made once, and anew when the model's weights change.

    The model itself is returned where its own code has to run, under autocast, with hooks and if its class is not ours;
    and where an engine is no faster, as of vision transformers on processors whose matrix products are fast, or was not
    measured, on other devices than CPUs.
    """
    if isinstance(model, Optimized) or torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda"):
        return model
    is_faster = type(model) in _FASTER or (isinstance(model, VisionTransformer) and products_are_slow())
    if not is_faster or next(model.parameters()).device.type != "cpu" or _is_hooked(model):
        return model
    state = _fingerprint(model)
    known = _engines.get(model)
    if known is None or known[0] != state:
        known = None
        _engines.pop(model, None)  # of older weights: two of them would take twice the memory
        known = state, optimize(model)
        _engines[model] = known
    return known[1]


def _is_hooked(model: nn.Module) -> bool:
    """Return whether code of a user's runs in a model: a hook, or another `forward` of one module."""
    parts = list(model.modules())
    return any(part._forward_hooks or part._forward_pre_hooks or "forward" in vars(part) for part in parts)


def _fingerprint(model: nn.Module) -> Any:
    """Return what changes with the weights: where they lie, how often they were written, and their sums and norms.

    These tell of writes through `.data`, which are not counted. They cost no more than to read each weight, which every
    forward pass does.
    """
    tensors = [tensor.detach() for tensor in (*model.parameters(), *model.buffers())]
    real = [tensor for tensor in tensors if tensor.is_floating_point() and tensor.numel()]
    places = tuple((tensor.data_ptr(), tensor._version if not tensor.is_inference() else 0) for tensor in tensors)
    numbers = [number.double() for number in (*torch._foreach_norm(real), *(tensor.sum() for tensor in real))]
    return getattr(model, "card", None), places, tuple(torch.stack(numbers).tolist() if numbers else ())


def _large_parts(net: nn.Module) -> Sequence[str]:
    """Return the parts of a detector that take most of its time. Boxes are computed behind them, in float32."""
    if isinstance(net, DETR):
        return ("backbone", "transformer.encoder")
    if isinstance(net, RetinaNet):
        return ("backbone", "fpn")
    assert isinstance(net, DETRDemo)
    return ("backbone.layer1", "backbone.layer2", "backbone.layer3", "backbone.layer4", "transformer.encoder")


def _in_half(engine: nn.Module) -> nn.Module:
    """Convert a classifier, or the large parts of a detector, to bfloat16: after folding, which is exact in float32."""
    if not isinstance(engine, Detector):
        return engine.to(torch.bfloat16)
    for name in _large_parts(engine):
        part = engine.get_submodule(name).to(torch.bfloat16)
        engine.set_submodule(name, _InPrecision(part, torch.bfloat16))
    return engine


class _InPrecision(nn.Module):
    """A part of a model in another precision: inputs are converted to it, outputs to float32."""

    def __init__(self, part: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.part = part
        self.dtype = dtype

    def forward(self, *inputs: Any, **options: Any) -> Any:
        return _converted(self.part(*_converted(inputs, self.dtype), **_converted(options, self.dtype)), torch.float32)

    def __getattr__(self, name: str) -> Any:
        """Attributes of the part, such as `num_channels`."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("part"), name)


def _converted(value: Any, dtype: torch.dtype) -> Any:
    """Return tensors, or lists, tuples and dicts of them, in another precision; masks stay."""
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, dict):
        return type(value)((key, _converted(each, dtype)) for key, each in value.items())
    if isinstance(value, (list, tuple)):
        return type(value)(_converted(each, dtype) for each in value)
    return value


def check_compiler(device: torch.device) -> None:
    """Check that torch.compile can make code for a CPU. Raises MachineError (T16) if there is no C++ compiler."""
    names = (os.environ.get("CXX", "c++"), "g++", "clang++", "cl")
    if device.type == "cpu" and not any(map(shutil.which, names)):
        remedy = "install g++, or set compile=false"
        raise MachineError("compile=true needs a C++ compiler on a CPU", remedy=remedy, code="T16")


def compile_parts(net: nn.Module) -> None:
    """Compile a classifier whole, and of a detector the parts that take and give tensors. In place: names stay.

    Code is made at the first image, and anew for a second size; from then on it serves all sizes.
    """
    if isinstance(net, Detector):
        for part in _large_parts(net):
            net.get_submodule(part).compile()
    else:
        net.compile()
