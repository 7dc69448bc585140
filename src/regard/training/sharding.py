"""Weights, gradients and optimizer state divided among processes (`shard=true`), by torch's FSDP2.

Each process keeps a part of every tensor, a `DTensor`. Before a block runs, the processes gather its weights; after its
backward pass each takes its part of the gradient. (Rajbhandari et al. 2020, ZeRO; Zhao et al. 2023, PyTorch FSDP.)
Checkpoints hold whole tensors, so that a run goes on with any number of processes and its weights load anywhere.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, distribute_tensor

from regard.training.distributed import Processes


def shard(model: nn.Module, blocks: Sequence[str], processes: Processes) -> None:
    """Divide the parameters of a model, in place, among all processes. Their names stay; buffers stay whole.

    Args:
        model: equal in all processes, on the device.
        blocks: names of submodules whose weights are gathered one after the other. All other weights are whole from the
            forward pass to the backward pass, so that methods besides `forward` may use them.
        processes: this process among all of the run, at least two.
    """
    # Outputs that are views of one tensor, such as those of decoder layers, are never changed in place.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module")
    for parameter in model.parameters():  # FSDP2 takes no other memory order
        parameter.data = parameter.data.contiguous()
    mesh = init_device_mesh(processes.device.type, (processes.world_size,))
    for name in blocks:
        fully_shard(model.get_submodule(name), mesh=mesh)
    fully_shard(model, mesh=mesh, reshard_after_forward=False)


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor whole, gathered from all processes if it is divided. Each of them must call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole_on_host(tensors: Mapping[str, Tensor], kept: bool) -> dict[str, Tensor]:
    """Return whole tensors on the CPU, gathered one by one; nothing unless `kept`. Each process must call this."""
    found = {}
    for name, tensor in tensors.items():
        gathered = whole(tensor.detach())
        if kept:
            found[name] = gathered.cpu()
    return found


def own_part(tensor: Tensor) -> Tensor:
    """Return the part of a divided tensor that this process keeps, in its memory; a whole tensor as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole_norms(parts: Sequence[Tensor], like: Tensor) -> Sequence[Tensor]:
    """Return the norm of each tensor of which this process has a part, if they are divided as `like` is.

    Each process must call this; there is one message.
    """
    norms = torch._foreach_norm(list(parts))
    if not isinstance(like, DTensor):
        return norms
    squares = DTensor.from_local(torch.stack(norms).square(), like.device_mesh, [Partial()])
    return squares.full_tensor().sqrt().unbind()


def divided_like(tensor: Tensor, like: Tensor) -> Tensor:
    """Return a whole tensor, which every process has, divided as `like` is; it is not copied if `like` is whole."""
    if not isinstance(like, DTensor):
        return tensor
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def load_whole(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Load a state dict of whole tensors, which every process has, into a model that may be divided."""
    state = model.state_dict()
    known = {name: divided_like(tensor, state[name]) if name in state else tensor for name, tensor in tensors.items()}
    model.load_state_dict(known)


@torch.no_grad()
def copy_whole(source: nn.Module, target: nn.Module) -> None:
    """Copy the values of a divided model into a whole one. Each process must call this."""
    values = target.state_dict()
    for name, value in source.state_dict().items():
        values[name].copy_(whole(value))
