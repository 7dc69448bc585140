"""A pretended accelerator for tests without one: numbers in host memory that claim to lie on a device.

Inside of `pretended_device()` a tensor that is made on the device is a wrapper around one of the host. Kernels run on
the host, so that values, shapes that depend on data, autograd, autocast (with CUDA's lists), the gradient scaler and
fused optimizers are real. The log has what a GPU would refuse or wait for, each with its place in our sources:

    mix        a tensor of the host meets one of the device, where CUDA allows no mixture
    wait       the host waits for the device: item, tolist, nonzero, a boolean or a host index, a copy that blocks
    upload     a copy to the device that does not block
    download   a copy to the host that does not block; `torch.accelerator.synchronize` after it is one wait
    float64    a tensor of double precision is made
    product    a convolution or matrix product; `what` is its name and dtype

It cannot see kernels, speed, memory, races, and code for `device.type == "cuda"`. The interfaces of torch that it uses
are private: where they are missing, tests are skipped with that reason.

Its backward pass needs threads that torch starts before the first one of a process, and a process with such threads
cannot fork, as tests of several processes do. Tests with the device are therefore marked `own_process`.
"""

from __future__ import annotations

import collections
import contextlib
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from cuda_autocast import register_cuda_autocast

NAME = "pretended"
OURS, TESTS = "/regard/", "/tests/"
aten = torch.ops.aten

WAITING = {
    aten._local_scalar_dense.default, aten.nonzero.default, aten.masked_select.default, aten.equal.default,
    aten._unique2.default, aten.unique_dim.default, aten.unique_consecutive.default, aten.bincount.default,
    aten.is_nonzero.default, aten.repeat_interleave.Tensor, aten.nonzero_numpy.default, aten.histc.default,
}  # fmt: skip
PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "convolution", "convolution_backward", "_cdist_forward", "linear")
INDEXED = ("index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put")
FREE = ("lift_fresh", "lift", "detach", "set_", "_has_compatible_shallow_copy_type")


class Log:
    """What happened on the device: (kind, what, place) -> times."""

    def __init__(self) -> None:
        self.events: collections.Counter[tuple[str, str, str]] = collections.Counter()

    def reset(self) -> None:
        self.events.clear()

    def note(self, kind: str, what: str) -> None:
        self.events[kind, what, _place()] += 1

    def found(self, *kinds: str) -> dict[tuple[str, str, str], int]:
        """Return the events of some kinds."""
        return {event: times for event, times in self.events.items() if event[0] in kinds}

    def waits(self) -> int:
        """Return how often the host waited."""
        return sum(self.found("wait").values())

    def products(self) -> set[tuple[str, str]]:
        """Return (name, dtype) of all convolutions and matrix products."""
        return {tuple(what.split()) for _, what, _ in self.found("product")}


LOG = Log()


class OnDevice(torch.Tensor):
    """A tensor that claims to lie on the device."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> OnDevice:
        made = torch.Tensor._make_wrapper_subclass(
            cls, inner.size(), strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
            device=torch.device(NAME, 0),
        )  # fmt: skip
        made.inner = inner
        return made

    def __repr__(self, **_: Any) -> str:
        return f"OnDevice({self.inner!r})"

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["inner"], None

    @staticmethod
    def __tensor_unflatten__(tensors: dict, meta: None, size: Any, stride: Any) -> OnDevice:
        return OnDevice(tensors["inner"])

    def __deepcopy__(self, memo: dict) -> OnDevice:
        if id(self) not in memo:
            new = OnDevice(self.inner.detach().clone(memory_format=torch.preserve_format))
            if getattr(self, "_is_param", False):
                new._is_param = True
            memo[id(self)] = new.requires_grad_(self.requires_grad)
        return memo[id(self)]

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return _run(func, args, kwargs or {})


def is_pretended(device: Any) -> bool:
    return device is not None and torch.device(device).type == NAME


@contextlib.contextmanager
def pretended_device() -> Iterator[torch.device]:
    """Enter the device. `LOG` has what happens on it."""
    _register()
    from torch.utils import _foreach_utils

    if OnDevice not in _foreach_utils._foreach_supported_types:
        _foreach_utils._foreach_supported_types.append(OnDevice)
    swaps = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    LOG.reset()
    try:
        with pytest.MonkeyPatch.context() as patch, _Functions(), _Dispatch():
            patch.setattr(torch.accelerator, "synchronize", lambda device=None: LOG.note("wait", "synchronize"))
            yield torch.device(NAME, 0)
    finally:
        torch.__future__.set_swap_module_params_on_conversion(swaps)


class _Module:
    """What torch asks `torch.pretended` for."""

    def is_available(self) -> bool:
        return True

    def is_initialized(self) -> bool:
        return True

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed_all(self, seed: int) -> None:
        pass

    def current_device(self) -> int:
        return 0

    def device_count(self) -> int:
        return 1

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]

    def get_rng_state(self, device: Any = None) -> torch.Tensor:
        return torch.zeros(0, dtype=torch.uint8)

    def set_rng_state(self, state: torch.Tensor, device: Any = None) -> None:
        pass


_registered = False


def _register() -> None:
    global _registered
    if _registered:
        return
    try:
        from torch.utils.backend_registration import _setup_privateuseone_for_python_backend as register
    except ImportError:
        pytest.skip("torch has no interface for devices written in Python")
    register(NAME, backend_module=_Module())
    register_cuda_autocast(NAME)
    _registered = True


def _place() -> str:
    """Return where in our sources, in torch's optimizers or in the backward pass it happens."""
    frame, elsewhere = sys._getframe(2), "?"
    while frame is not None:
        name = frame.f_code.co_filename
        if OURS in name and TESTS not in name and "site-packages" not in name:
            return f"{name.rpartition(OURS)[2]}:{frame.f_lineno}"
        if (
            elsewhere == "?"
            and "site-packages/torch/" in name
            and any(p in name for p in ("optim", "amp", "clip_grad"))
        ):
            elsewhere = f"torch/{name.rpartition('/torch/')[2]}:{frame.f_lineno}"
        frame = frame.f_back
    return "backward" if threading.current_thread() is not threading.main_thread() else elsewhere


def _run(func: Any, args: tuple, kwargs: dict) -> Any:
    """Note what an operation means for the device, and run it on the host."""
    flat, _ = tree_flatten((args, kwargs))
    here = [value for value in flat if isinstance(value, OnDevice)]
    hosts = [value for value in flat if isinstance(value, torch.Tensor) and not isinstance(value, OnDevice)]
    if not here and not is_pretended(kwargs.get("device")):
        return func(*args, **kwargs)
    name = func._schema.name.split("::")[1]
    to_host = _note_copy(func, args, kwargs)
    if name in INDEXED:
        _note_index(name, args)
    elif func is not aten._to_copy.default and func is not aten.copy_.default and name not in FREE and hosts and here:
        _note_mix(func, name, hosts)
    if func in WAITING:
        LOG.note("wait", name)
    if kwargs.get("generator") is not None and kwargs["generator"].device.type == "cpu":
        LOG.note("mix", f"{name}: host generator")
    dtypes = [value.dtype for value in here if value.is_floating_point()]
    if name in PRODUCTS:
        LOG.note("product", f"{name} {str(dtypes[0]).removeprefix('torch.')}")
    out = func(*tree_map(_inner, args), **tree_map(_inner, kwargs))
    if to_host or func is aten.is_pinned.default:
        return out
    changed = {id(value.inner): value for value in here} if func._schema.is_mutable else {}
    return tree_map(lambda value: _wrap(value, changed, name), out)


def _inner(value: Any) -> Any:
    if isinstance(value, OnDevice):
        return value.inner
    return torch.device("cpu") if isinstance(value, torch.device) and value.type == NAME else value


def _wrap(value: Any, changed: dict[int, OnDevice], name: str) -> Any:
    if not isinstance(value, torch.Tensor) or isinstance(value, OnDevice):
        return value
    if id(value) in changed:
        return changed[id(value)]
    if value.dtype == torch.float64 and value.ndim:
        LOG.note("float64", name)
    return OnDevice(value)


def _note_copy(func: Any, args: tuple, kwargs: dict) -> bool:
    """Note a copy between host and device; return whether its result lies on the host."""
    if func is aten._to_copy.default:
        source, target, blocks = args[0], kwargs.get("device"), not kwargs.get("non_blocking")
        what = f"{tuple(source.shape)} {source.dtype}"
        if isinstance(source, OnDevice) and target is not None and not is_pretended(target):
            LOG.note("wait" if blocks else "download", f"device to host {what}")
            return True
        if not isinstance(source, OnDevice):
            LOG.note("wait" if blocks else "upload", f"host to device {what}")
    elif func is aten.copy_.default and isinstance(args[0], OnDevice) != isinstance(args[1], OnDevice):
        blocks = not (args[2] if len(args) > 2 else kwargs.get("non_blocking"))
        kind = "upload" if isinstance(args[0], OnDevice) else "download"
        LOG.note("wait" if blocks else kind, f"copy_ {tuple(args[0].shape)}")
    return False


def _note_index(name: str, args: tuple) -> None:
    if not isinstance(args[0], OnDevice):
        LOG.note("mix", f"{name}: host tensor indexed by the device's")
        return
    indices = [index for index in args[1] if index is not None]
    fills = "put" in name and args[2].numel() == 1 and len(indices) == 1
    for index in indices:
        if index.dtype in (torch.bool, torch.uint8) and not fills:
            LOG.note("wait", f"{name} by a boolean mask {tuple(index.shape)}")
        elif not isinstance(index, OnDevice):
            LOG.note("wait", f"{name} by host indices {tuple(index.shape)}")
    if "put" in name and not isinstance(args[2], OnDevice) and args[2].ndim:
        LOG.note("mix", f"{name}: host values {tuple(args[2].shape)}")


def _note_mix(func: Any, name: str, hosts: list[torch.Tensor]) -> None:
    """CUDA takes numbers of the host in pointwise operations, and the steps of optimizers."""
    pointwise = torch.Tag.pointwise in func.tags or name.startswith("_foreach") or name in ("where", "lerp_", "lerp")
    wrong = [host for host in hosts if not (host.ndim == 0 and pointwise)]
    if wrong and not name.startswith("_fused"):
        LOG.note("mix", f"{name}: host {tuple(wrong[0].shape)} {wrong[0].dtype}")


class _Dispatch(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        return _run(func, args, kwargs or {})


class _Functions(TorchFunctionMode):
    """What goes around dispatch: `torch.tensor(..., device=)`, which is a host tensor and a copy that waits."""

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func in (torch.tensor, torch.as_tensor) and is_pretended(kwargs.get("device")):
            return func(*args, **{k: v for k, v in kwargs.items() if k != "device"}).to(kwargs["device"])
        if func is torch.Tensor.new_tensor and isinstance(args[0], OnDevice):
            return torch.tensor(*args[1:], **{"dtype": args[0].dtype, **kwargs}).to(args[0].device)
        if func is torch.Tensor.__getitem__ and isinstance(args[0], OnDevice):
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            index = tuple(torch.tensor(i) if isinstance(i, list) else i for i in index)  # CUDA uploads it, and waits
            return func(args[0], index if isinstance(args[1], tuple) else index[0])
        if func is torch.Tensor.tolist and isinstance(args[0], OnDevice):
            return args[0].cpu().tolist()
        if func in (torch.Tensor.numpy, torch.Tensor.__array__) and isinstance(args[0], OnDevice):
            LOG.note("mix", "numpy() of a device tensor")
            return func(args[0].cpu(), *args[1:], **kwargs)
        return func(*args, **kwargs)
