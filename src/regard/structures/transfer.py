"""Copies between the host and a device for which the host waits as little as possible."""

from __future__ import annotations

import torch
from torch import Tensor


def upload(tensor: Tensor, device: torch.device | str) -> Tensor:
    """Return a tensor on `device` without waiting for what the device does at the time.

    CUDA copies from page-locked memory alone without a wait, so that the tensor goes there first. Do not change it in
    place afterwards: the copy may still be under way.
    """
    if torch.device(device).type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def download(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Return tensors of one device on the host. The host waits once for all of them."""
    device = next((tensor.device for tensor in tensors if tensor.device.type != "cpu"), None)
    if device is None:
        return tensors
    copies = tuple(tensor.to("cpu", non_blocking=True) for tensor in tensors)
    torch.accelerator.synchronize(device)
    return copies
