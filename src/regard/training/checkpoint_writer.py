"""Write checkpoints that are complete or absent, even if the process or the machine crashes.

The files of a checkpoint are written and flushed in a temporary folder, which is then renamed. Older checkpoints are
removed only after that.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from regard.errors import DivergedError, MachineError, RegardError
from regard.safe_files import FULL_DISK, sync
from regard.structures.transfer import download
from regard.training.checkpoints import (
    COMPLETE_NAME,
    SCHEMA,
    is_finite,
    is_intact,
    list_checkpoints,
    manifest_digest,
)

GROUP_SIZE = 2**26  # bytes that are copied from a device at once
KEPT = 2  # number of the newest intact checkpoints to keep
_TEMPORARY_NAME = re.compile(r"step_\d+(\.old)?\.tmp-(\d+)")
_DTYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def save_checkpoint(
    folder: Path,
    step: int,
    tensors: Mapping[str, Mapping[str, Tensor]],
    state: Mapping[str, Any],
    *,
    protect: Collection[int] = (),
) -> Path:
    """Write `folder/step_N` and return its path after the files are on the disk.

    Tensors are copied to the CPU in groups, to save memory. They may be on any device, have any strides and share
    memory; shared memory is written once per name. An existing checkpoint of the same step is replaced. The newest
    `KEPT` intact checkpoints are kept, older ones are removed. Only one process may write to a folder at a time
    (`lock_run`).

    Args:
        folder: the `checkpoints` folder of the run; created if missing.
        step: optimizer steps done.
        tensors: part -> name -> unsharded tensor. Each part is written to a file of its name.
        state: JSON values without NaN or infinity.
        protect: steps to keep in addition, such as the best one.

    Raises:
        MachineError: the disk is full (T05), or the folder cannot be written (T06).
        DivergedError: a tensor holds NaN or infinity (T07).
        ValueError, TypeError: an invalid name, dtype or `state`.
        Earlier checkpoints stay intact in all these cases.
    """
    text = json.dumps(dict(state), allow_nan=False, indent=1).encode()
    parts = {_part_file(part): _SafetensorsFile(part, content) for part, content in tensors.items()}
    needed = sum(part.size for part in parts.values()) + len(text) + 2**16
    staging = folder / f"step_{step}.tmp-{os.getpid()}"
    final = folder / f"step_{step}"
    try:
        _make_folder(folder)
        _clean_up(folder)
        if shutil.disk_usage(folder).free < needed:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))
        staging.mkdir()
        files = {name: _write_file(staging / name, part.chunks()) for name, part in parts.items()}
        files["state.json"] = _write_file(staging / "state.json", [text])
        _write_file(staging / "manifest.json", [_manifest_text(step, files)])
        sync(staging)
        _publish(staging, final)
        _prune(folder, final, protect)
    except BaseException as error:
        shutil.rmtree(staging, ignore_errors=True)
        if isinstance(error, OSError):
            raise _save_error(error, folder, step, needed) from error
        raise
    return final


class _SafetensorsFile:
    """The bytes of a part in the safetensors format, tensor by tensor.

    The writer of the safetensors library needs all tensors on the CPU at once, refuses shared memory and computes no
    hash, so its file would have to be read again.
    """

    def __init__(self, part: str, content: Mapping[str, Tensor]) -> None:
        self.part = part
        # Widest items first: each tensor then starts at a multiple of its item size, as readers require.
        self.tensors = sorted(content.items(), key=lambda item: (-item[1].element_size(), item[0]))
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        end = 0
        for name, tensor in self.tensors:
            kind = _DTYPE_NAMES.get(tensor.dtype)
            if kind is None:
                raise ValueError(f"{part}: tensor {name!r} is {tensor.dtype}; save one of {[*_DTYPE_NAMES]}")
            start, end = end, end + tensor.numel() * tensor.element_size()
            header[name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": [start, end]}
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        self.header = len(text).to_bytes(8, "little") + text
        self.size = len(self.header) + end

    def _on_host(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the tensors on the host. They come from a device in groups, with one wait for each group."""
        group: list[tuple[str, Tensor]] = []
        size = 0
        for number, (name, tensor) in enumerate(self.tensors, start=1):
            group.append((name, tensor.detach()))
            size += tensor.numel() * tensor.element_size()
            if size >= GROUP_SIZE or number == len(self.tensors):
                yield from zip([name for name, _ in group], download(*(value for _, value in group)), strict=True)
                group, size = [], 0

    def chunks(self) -> Iterator[bytes | memoryview]:
        """Yield the header, then the bytes of each tensor."""
        yield self.header
        for name, tensor in self._on_host():
            host = tensor.contiguous()
            if not is_finite(host):
                what = f"tensor {name!r} of part {self.part!r} holds NaN or infinity, so it is not saved"
                raise DivergedError(what, remedy="resume the last checkpoint with a lower lr", code="T07")
            yield host.reshape(-1).view(torch.uint8).numpy().data


def _part_file(part: str) -> str:
    if not re.fullmatch(r"\w+", part):
        raise ValueError(f"part {part!r} is not a name of letters, digits and underscores")
    return f"{part}.safetensors"


def _write_file(path: Path, chunks: Iterable[bytes | memoryview]) -> dict[str, Any]:
    """Write and flush a new file; return its entry in the manifest."""
    digest, size = hashlib.sha256(), 0
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
    try:
        for chunk in chunks:
            digest.update(chunk)
            size += len(chunk)
            left = memoryview(chunk)
            while left:
                left = left[os.write(descriptor, left) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return {"size": size, "sha256": digest.hexdigest()}


def _manifest_text(step: int, files: Mapping[str, Mapping[str, Any]]) -> bytes:
    versions = {"torch": str(torch.__version__), "python": platform.python_version()}
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        versions["regard"] = importlib.metadata.version("regard")
    content = {"schema": SCHEMA, "step": step, "files": files, "versions": versions}
    return json.dumps({**content, "sha256": manifest_digest(content)}, indent=1).encode()


def _make_folder(folder: Path) -> None:
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in missing:
        sync(path.parent)


def _publish(staging: Path, final: Path) -> None:
    """Rename a finished folder. No portable call swaps two folders, so an older one is first renamed to `.old`."""
    old = final.with_name(f"{final.name}.old")
    replaces = final.exists()
    if replaces:
        final.rename(old)
    staging.rename(final)
    sync(final.parent)
    if replaces:
        _remove(old)


def _prune(folder: Path, written: Path, protect: Collection[int]) -> None:
    """Remove checkpoints older than the newest `KEPT` intact ones, which are read again to verify them."""
    checkpoints = list_checkpoints(folder)
    if len(checkpoints) <= KEPT:
        return
    intact = 0
    for step, path in checkpoints:
        if intact < KEPT:
            intact += path == written or is_intact(path)
        elif path != written and step not in protect:
            _remove(path)


def _remove(path: Path) -> None:
    """Rename a checkpoint, then remove it: an interrupted removal must not leave an incomplete checkpoint."""
    temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    path.rename(temporary)
    shutil.rmtree(temporary)


def _clean_up(folder: Path) -> None:
    """Remove temporary folders of killed processes, and finish the replacement of a checkpoint."""
    for path in list(folder.iterdir()):
        temporary = _TEMPORARY_NAME.fullmatch(path.name)
        if temporary and not _is_another_process(int(temporary[2])):
            shutil.rmtree(path, ignore_errors=True)
        elif path.suffix == ".old" and COMPLETE_NAME.fullmatch(path.name):
            final = path.with_suffix("")
            if final.exists():
                _remove(path)
            else:
                path.rename(final)


def _is_another_process(pid: int) -> bool:
    if pid == os.getpid() or os.name == "nt":  # On Windows, signal 0 is Ctrl-C.
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def _save_error(error: OSError, folder: Path, step: int, needed: int) -> MachineError:
    remedy = "no earlier checkpoint exists"
    with contextlib.suppress(RegardError, OSError, StopIteration):
        last, path = next(found for found in list_checkpoints(folder) if is_intact(found[1]))
        remedy = f"step {last} is intact at {path}"
    if error.errno not in FULL_DISK:
        what = f"saving step {step} failed: {error.strerror or error}"
        return MachineError(what, where=error.filename or folder, remedy=remedy, code="T06")
    free = "an unknown number of"
    with contextlib.suppress(OSError):
        free = f"{shutil.disk_usage(folder).free / 1e6:,.1f}"
    what = f"disk full while saving step {step} (need {needed / 1e6:,.1f} MB, {free} MB free)"
    return MachineError(what, where=folder, remedy=f"free some space; {remedy}", code="T05")
