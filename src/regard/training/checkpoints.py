"""Training state on disk: a checkpoint is complete or absent, whatever interrupts the run.

`RUN/checkpoints/step_N/` holds one safetensors file per part (model, ema, optimizer), `state.json`, and
`manifest.json` with the size and SHA-256 of each. All of it is written and flushed under a temporary name,
renamed once, and only then are older checkpoints removed. Reading compares every byte with the manifest,
because safetensors alone loads a flipped bit without a word.
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
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from regard.errors import CheckpointError, DivergedError, MachineError, RegardError
from regard.safe_files import sync

SCHEMA = 1

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
_FULL_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# `.old` is a checkpoint that is being replaced by one of the same step; see `_publish`.
_COMPLETE_NAME = re.compile(r"step_\d+(\.old)?")
_FILE_NAME = re.compile(r"\w+\.(safetensors|json)")
_TEMPORARY_NAME = re.compile(r"step_\d+(\.old)?\.tmp-(\d+)")


@dataclass(frozen=True)
class Checkpoint:
    """What `read_checkpoint` gives.

    tensors: part ("model", "ema", "optimizer", ...) -> name -> tensor, bit for bit what was saved.
    state: the JSON part: schedule, history, config, categories, ...
    """

    path: Path
    step: int
    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]


def save_checkpoint(
    folder: Path,
    step: int,
    tensors: Mapping[str, Mapping[str, Tensor]],
    state: Mapping[str, Any],
    *,
    keep: int = 2,
    protect: Collection[int] = (),
) -> Path:
    """Write `folder/step_N` and return it once it is safe from a crash of the process or of the machine.

    Tensors go to the disk one by one, so the host never holds a second copy of them all. They may be on any
    device, strided in any way, and share memory: each name gets its own bytes. An existing checkpoint of the
    same step is replaced. Only one process may write to a folder at a time (`lock_run`).

    Args:
        folder: the run's `checkpoints` folder; made where missing.
        step: optimiser steps done, >= 0.
        tensors: part -> name -> whole (not sharded) tensor; a part's name becomes a file's name.
        state: values that JSON can hold, without NaN or infinity.
        keep: how many sound checkpoints stay, newest first, >= 1.
        protect: steps that stay as well, such as the best one.

    Raises:
        MachineError: the disk is full (T05), or the folder cannot be written (T06).
        DivergedError: a tensor holds NaN or infinity (T07).
        ValueError, TypeError: a name, a dtype or `state` is not of the kind above.
        Earlier checkpoints are intact after any of them.
    """
    if keep < 1 or step < 0:
        raise ValueError(f"keep must be at least 1 and step at least 0, got keep={keep}, step={step}")
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
        _prune(folder, final, keep, protect)
    except BaseException as error:
        shutil.rmtree(staging, ignore_errors=True)
        if isinstance(error, OSError):
            raise _save_failure(error, folder, step, needed) from error
        raise
    return final


def newest_checkpoint(folder: Path) -> Path | None:
    """The sound checkpoint of the highest step in `folder`, or None.

    Steps come from the manifests, never from the clock or the names. Incomplete and corrupt checkpoints are
    passed over, each with one warning.

    Raises:
        CheckpointError: a newer version wrote one of them (K19); going on from an older step would hide that.
        MachineError: a file may not be read (T06).
    """
    return next((path for _, path in _newest_first(folder) if _is_sound(path)), None)


def read_checkpoint(
    path: Path, *, parts: Sequence[str] | None = None, device: torch.device | str = "cpu"
) -> Checkpoint:
    """Read a checkpoint folder and compare it with its manifest.

    Args:
        parts: the parts to read ("model", "ema", ...), all by default. Other parts' files are not looked at.

    Raises:
        CheckpointError: the folder or a file is missing (K01, K02, K17, K18); a file is empty, cut or changed
            (K03, K04, K05); a tensor holds NaN or infinity (K11); a newer version wrote it (K19).
        MachineError: a file may not be read (T06).
    """
    manifest = _read_manifest(path)
    files, step = manifest["files"], manifest["step"]
    stored = [name.removesuffix(".safetensors") for name in files if name.endswith(".safetensors")]
    tensors = {}
    for part in stored if parts is None else parts:
        name = f"{part}.safetensors"
        if part not in stored:
            raise CheckpointError(f"no part {part!r}, only {', '.join(stored)}", where=path, code="K18")
        content = safetensors.torch.load(_read_file(path / name, files[name]))
        for key, tensor in content.items():
            if not _is_finite(tensor):
                what = f"tensor {key!r} holds NaN or infinity (step {step})"
                raise CheckpointError(what, where=path / name, remedy="use an earlier checkpoint", code="K11")
        tensors[part] = {key: tensor.to(device) for key, tensor in content.items()}
    state = json.loads(_read_file(path / "state.json", files["state.json"]))
    return Checkpoint(path, step, tensors, state)


# --- writing ---


class _SafetensorsFile:
    """A part in the layout of safetensors, given out tensor by tensor.

    The library's own writer wants all tensors on the host at once, refuses shared memory, and leaves a file
    that would have to be read again for its hash. The library reads what is written here.
    """

    def __init__(self, part: str, content: Mapping[str, Tensor]) -> None:
        self.part = part
        # Widest items first: every tensor then starts at a multiple of its item size, as readers want.
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

    def chunks(self) -> Iterator[bytes | memoryview]:
        yield self.header
        for name, tensor in self.tensors:
            host = tensor.detach().cpu().contiguous()
            if not _is_finite(host):
                what = f"tensor {name!r} of part {self.part!r} holds NaN or infinity, so it is not saved"
                raise DivergedError(what, remedy="resume the last checkpoint with a lower lr", code="T07")
            yield host.reshape(-1).view(torch.uint8).numpy().data


def _is_finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())


def _part_file(part: str) -> str:
    if not re.fullmatch(r"\w+", part):
        raise ValueError(f"part {part!r} becomes the name of a file: letters, digits and underscores only")
    return f"{part}.safetensors"


def _write_file(path: Path, chunks: Iterable[bytes | memoryview]) -> dict[str, Any]:
    """Write and flush a new file; its entry in the manifest."""
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
    return json.dumps({**content, "sha256": _content_digest(content)}, indent=1).encode()


def _content_digest(content: Mapping[str, Any]) -> str:
    """Guards the manifest itself. Later schemas keep this rule: it tells newer from damaged."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _make_folder(folder: Path) -> None:
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in missing:
        sync(path.parent)


def _publish(staging: Path, final: Path) -> None:
    """Give a finished folder its name. No portable call swaps two folders, so an older one steps aside."""
    old = final.with_name(f"{final.name}.old")
    replaces = final.exists()
    if replaces:
        final.rename(old)
    staging.rename(final)
    sync(final.parent)
    if replaces:
        _remove(old)


def _prune(folder: Path, written: Path, keep: int, protect: Collection[int]) -> None:
    """Remove checkpoints older than the newest `keep` sound ones, which are read again for this."""
    checkpoints = _newest_first(folder)
    if len(checkpoints) <= keep:
        return
    sound = 0
    for step, path in checkpoints:
        if sound < keep:
            sound += path == written or _is_sound(path)
        elif path != written and step not in protect:
            _remove(path)


def _remove(path: Path) -> None:
    """Remove a checkpoint; renamed first, because removing its files takes a while and may be interrupted."""
    doomed = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    path.rename(doomed)
    shutil.rmtree(doomed)


def _clean_up(folder: Path) -> None:
    """Finish what a killed process left: temporary folders, and a checkpoint that had stepped aside."""
    for path in list(folder.iterdir()):
        temporary = _TEMPORARY_NAME.fullmatch(path.name)
        if temporary and not _is_another_process(int(temporary[2])):
            shutil.rmtree(path, ignore_errors=True)
        elif path.suffix == ".old" and _COMPLETE_NAME.fullmatch(path.name):
            final = path.with_suffix("")
            if final.exists():
                _remove(path)
            else:
                path.rename(final)


def _is_another_process(pid: int) -> bool:
    if pid == os.getpid() or os.name == "nt":  # signal 0 is Ctrl-C there
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def _save_failure(error: OSError, folder: Path, step: int, needed: int) -> MachineError:
    remedy = "no earlier checkpoint exists"
    with contextlib.suppress(RegardError, OSError):
        last = newest_checkpoint(folder)
        if last is not None:
            remedy = f"step {_read_manifest(last)['step']} is intact at {last}"
    if error.errno not in _FULL_DISK:
        what = f"saving step {step} failed: {error.strerror or error}"
        return MachineError(what, where=error.filename or folder, remedy=remedy, code="T06")
    free = "an unknown number of"
    with contextlib.suppress(OSError):
        free = f"{shutil.disk_usage(folder).free / 1e6:,.1f}"
    what = f"disk full while saving step {step} (need {needed / 1e6:,.1f} MB, {free} MB free)"
    return MachineError(what, where=folder, remedy=f"free some space; {remedy}", code="T05")


# --- reading ---


def _newest_first(folder: Path) -> list[tuple[int, Path]]:
    """(step, path) of the checkpoints whose manifest is sound."""
    try:
        paths = {path for path in folder.iterdir() if _COMPLETE_NAME.fullmatch(path.name)}
    except FileNotFoundError:
        return []
    except OSError as error:
        raise _unreadable(error, folder) from error
    found = []
    for path in sorted(paths):
        if path.suffix == ".old" and path.with_suffix("") in paths:  # its successor is there already
            continue
        try:
            found.append((_read_manifest(path)["step"], path))
        except CheckpointError as error:
            _pass_over(error)
    return sorted(found, reverse=True)


def _is_sound(path: Path) -> bool:
    try:
        for name, entry in _read_manifest(path)["files"].items():
            _read_file(path / name, entry)
    except CheckpointError as error:
        _pass_over(error)
        return False
    return True


def _pass_over(error: CheckpointError) -> None:
    if error.code == "K19":
        raise error
    warnings.warn(f"[{error.code}] passed over a checkpoint: {error}", stacklevel=3)


def _read_manifest(path: Path) -> dict[str, Any]:
    if not path.is_dir():
        what, code = ("a file, not a checkpoint folder", "K02") if path.exists() else ("no such checkpoint", "K01")
        raise CheckpointError(what, where=path, remedy="pass a folder RUN/checkpoints/step_N", code=code)
    place = path / "manifest.json"
    text = _read_bytes(place, missing="K17")
    try:
        manifest = json.loads(text)
        sound = manifest.pop("sha256") == _content_digest(manifest)
        newer = manifest["schema"] > SCHEMA
        # A name with a slash could point outside of the folder.
        sound = sound and (newer or all(_FILE_NAME.fullmatch(name) for name in manifest["files"]))
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        sound = False
    if not sound:
        code = "K05" if text else "K03"
        raise CheckpointError("damaged manifest", where=place, remedy="use another checkpoint", code=code)
    if newer:
        writer = f"regard {manifest.get('versions', {}).get('regard', 'of later days')}"
        what = f"written by {writer} (schema {manifest['schema']}; this version reads up to {SCHEMA})"
        raise CheckpointError(what, where=path, remedy="upgrade: pip install -U regard", code="K19")
    return manifest


def _read_file(path: Path, entry: Mapping[str, Any]) -> bytes:
    """A file's content, equal to what the manifest says of it."""
    data = _read_bytes(path, missing="K18")
    remedy = "copy it again, or use another checkpoint"
    if len(data) != entry["size"]:
        what = f"{path.name} has {len(data):,} of {entry['size']:,} bytes"
        raise CheckpointError(what, where=path, remedy=remedy, code="K04" if data else "K03")
    if hashlib.sha256(data).hexdigest() != entry["sha256"]:
        raise CheckpointError(f"checksum mismatch in {path.name}", where=path, remedy=remedy, code="K05")
    return data


def _read_bytes(path: Path, missing: str) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        what = f"{path.name} is missing"
        raise CheckpointError(what, where=path, remedy="copy the whole folder", code=missing) from None
    except PermissionError as error:
        raise _unreadable(error, path) from error
    except OSError as error:  # a bad block: another checkpoint may be sound
        raise CheckpointError(f"cannot be read: {error.strerror}", where=path, code="K05") from error


def _unreadable(error: OSError, path: Path) -> MachineError:
    what = f"cannot be read: {error.strerror}"
    return MachineError(what, where=path, remedy="correct its permissions", code="T06")
