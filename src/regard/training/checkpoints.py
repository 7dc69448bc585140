"""Read the checkpoints of a run.

`RUN/checkpoints/step_N/` holds one safetensors file per part (model, ema, optimizer), `state.json`, and
`manifest.json` with the size and SHA-256 of each. Reading compares each file with the manifest, because safetensors
alone does not notice a flipped bit. `checkpoint_writer.py` writes checkpoints.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from regard.errors import CheckpointError, MachineError, NewerVersionError

SCHEMA = 1
# `.old` is a checkpoint that is being replaced by one of the same step.
COMPLETE_NAME = re.compile(r"step_\d+(\.old)?")
_FILE_NAME = re.compile(r"\w+\.(safetensors|json)")


@dataclass(frozen=True)
class Checkpoint:
    """The content of a checkpoint.

    Attributes:
        path: its folder.
        step: optimizer steps done.
        tensors: part ("model", "ema", "optimizer") -> name -> CPU tensor, equal to the saved one bit for bit.
        state: the content of `state.json`: progress, settings, categories and so on.
    """

    path: Path
    step: int
    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]


def newest_checkpoint(folder: Path) -> Path | None:
    """Return the intact checkpoint of the highest step in `folder`, or None.

    Steps are read from the manifests, not from names or times. Incomplete and damaged checkpoints are skipped, each
    with one warning.

    Raises:
        NewerVersionError: a newer version wrote one of them (K19). It is not skipped, as an older step would hide it.
        MachineError: no permission to read a file (T06).
    """
    return next((path for _, path in list_checkpoints(folder) if is_intact(path)), None)


def read_checkpoint(path: Path, *, parts: Sequence[str] | None = None) -> Checkpoint:
    """Read a checkpoint and compare it with its manifest. Tensors are on the CPU.

    Args:
        path: the folder `RUN/checkpoints/step_N`.
        parts: the parts to read ("model", "ema", "optimizer"); None reads all. Files of other parts are not opened.

    Raises:
        CheckpointError: the folder or a file is missing (K01, K02, K17, K18); a file is empty, truncated or changed
            (K03, K04, K05); a tensor holds NaN or infinity (K11); a newer version wrote it (K19).
        MachineError: no permission to read a file (T06).
    """
    manifest = _read_manifest(path)
    files, step = manifest["files"], manifest["step"]
    stored = [name.removesuffix(".safetensors") for name in files if name.endswith(".safetensors")]
    tensors = {}
    for part in stored if parts is None else parts:
        name = f"{part}.safetensors"
        if part not in stored:
            raise CheckpointError(f"no part {part!r}, only {', '.join(stored)}", where=path, code="K18")
        tensors[part] = safetensors.torch.load(_read_file(path / name, files[name]))
        for key, tensor in tensors[part].items():
            if not is_finite(tensor):
                what = f"tensor {key!r} holds NaN or infinity (step {step})"
                raise CheckpointError(what, where=path / name, remedy="use an earlier checkpoint", code="K11")
    state = json.loads(_read_file(path / "state.json", files["state.json"]))
    return Checkpoint(path, step, tensors, state)


def list_checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """Return (step, path) of the checkpoints whose manifest is intact, highest step first."""
    try:
        paths = {path for path in folder.iterdir() if COMPLETE_NAME.fullmatch(path.name)}
    except FileNotFoundError:
        return []
    except OSError as error:
        raise _permission_error(error, folder) from error
    found = []
    for path in sorted(paths):
        if path.suffix == ".old" and path.with_suffix("") in paths:  # Its replacement is complete.
            continue
        with _skipping_damaged():
            found.append((_read_manifest(path)["step"], path))
    return sorted(found, reverse=True)


def is_intact(path: Path) -> bool:
    """Return whether each file of a checkpoint agrees with the manifest; warn if not."""
    with _skipping_damaged():
        for name, entry in _read_manifest(path)["files"].items():
            _read_file(path / name, entry)
        return True
    return False


def is_finite(tensor: Tensor) -> bool:
    """Return whether a tensor holds neither NaN nor infinity."""
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())


def manifest_digest(content: Mapping[str, Any]) -> str:
    """Return the SHA-256 of the manifest's other entries.

    Never change the computation: it distinguishes a newer schema from damage.
    """
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@contextlib.contextmanager
def _skipping_damaged() -> Iterator[None]:
    try:
        yield
    except NewerVersionError:
        raise
    except CheckpointError as error:
        warnings.warn(f"[{error.code}] skipped a checkpoint: {error}", stacklevel=4)


def _read_manifest(path: Path) -> dict[str, Any]:
    if not path.is_dir():
        what, code = ("a file, not a checkpoint folder", "K02") if path.exists() else ("no such checkpoint", "K01")
        raise CheckpointError(what, where=path, remedy="pass a folder RUN/checkpoints/step_N", code=code)
    place = path / "manifest.json"
    text = _read_bytes(place, missing="K17")
    try:
        manifest = json.loads(text)
        is_valid = manifest.pop("sha256") == manifest_digest(manifest)
        is_newer = manifest["schema"] > SCHEMA
        # A name with a slash could lead outside the folder.
        is_valid = is_valid and (is_newer or all(_FILE_NAME.fullmatch(name) for name in manifest["files"]))
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        is_valid = False
    if not is_valid:
        code = "K05" if text else "K03"
        raise CheckpointError("damaged manifest", where=place, remedy="use another checkpoint", code=code)
    if is_newer:
        version = manifest.get("versions", {}).get("regard", "unknown")
        what = f"written by regard {version} (schema {manifest['schema']}; this version reads up to {SCHEMA})"
        raise NewerVersionError(what, where=path, remedy="upgrade regard", code="K19")
    return manifest


def _read_file(path: Path, entry: Mapping[str, Any]) -> bytes:
    """Return a file's content after comparing it with its entry in the manifest."""
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
        raise _permission_error(error, path) from error
    except OSError as error:  # A bad block; another checkpoint may be intact.
        raise CheckpointError(f"cannot be read: {error.strerror}", where=path, code="K05") from error


def _permission_error(error: OSError, path: Path) -> MachineError:
    what = f"cannot be read: {error.strerror}"
    return MachineError(what, where=path, remedy="correct its permissions", code="T06")
