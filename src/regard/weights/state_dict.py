"""Read weights files from untrusted sources without running code in them, and load tensors by exact name and shape.

Pickles are read with torch's restricted reader (`weights_only=True`) only; what it refuses is refused. This file knows
no model: `read_weights` returns names and tensors, `load_exactly` copies them into a module with the same names.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import pickle
import pickletools
import re
import stat
import threading
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from regard.config import near_path
from regard.errors import ArchitectureError, CheckpointError, cause
from regard.weights.onnx_file import refuse_onnx

MAX_TENSORS = 10_000
_MAX_HEADER = 16 << 20  # bytes; ten thousand tensors need 2 MB
_MAX_OVERLAP = 8  # tensors may be this many times larger than their file: tied weights share memory
_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
_WRAPPERS = ("model", "state_dict", "model_ema", "state_dict_ema", "ema", "module")
_LOW_PRECISION = {torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2}
_INTEGER_DTYPES = {torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}
_DTYPES = _LOW_PRECISION | _INTEGER_DTYPES | {torch.float32, torch.float64}
_LEGACY_MAGIC = b"l\xfc\x9cF\xf9 j\xa8P\x19"  # in the first 32 bytes of files of torch.save before 1.6
_CODE_MODULES = {"posix", "nt", "os", "sys", "subprocess", "importlib", "runpy"}
_HEADS = {"class_embed", "linear_class", "head", "head_dist", "heads", "fc", "classifier"}
_COUNTER = "num_batches_tracked"
_COPY_AGAIN = "copy or download it again"
_safe_globals_lock = threading.Lock()  # torch's list of allowed classes is global to the process


class WeightsFile(NamedTuple):
    """The content of a weights file.

    Attributes:
        tensors: name -> dense CPU tensor, without the prefixes of wrappers. They may be memory-mapped: do not overwrite
            the file while they are used.
        metadata: for safetensors, its metadata. For torch files, the other entries that consist of numbers and text
            (`epoch`, the authors' `args` as a dict), without optimizer states.
    """

    tensors: dict[str, Tensor]
    metadata: dict[str, Any]


def read_weights(path: str | Path) -> WeightsFile:
    """Read the tensors of a safetensors file or of a file of torch.save; the content determines the format.

    Of the wrappers `{"model": ...}`, `{"state_dict": ...}`, `{"model_ema": ...}` and so on, the first that exists is
    unwrapped. The prefixes `module.` (DDP, averaged models) and `_orig_mod.` (torch.compile) are removed. Flipped bits
    are detected in torch's zip format only, as safetensors and files of torch < 1.6 have no checksums.

    Args:
        path: a `.safetensors`, `.pth`, `.pt` or `.bin` file.

    Raises:
        CheckpointError: no file (K01), a folder (K02), empty (K03), truncated (K04), flipped bits (K05), not weights
            (K06), two tensors of one name (K10), NaN or infinity (K11), code instead of weights (K12, K13), a
            compressed archive or tensors far larger than the file (K14), more than 10,000 tensors (K15).
    """
    path = Path(path)
    refuse_onnx(path, "read as weights")
    size, start = _inspect(path)
    form = _format(path, start)
    if form == "safetensors":
        tensors, metadata = _read_safetensors(path, size)
    else:
        if form == "zip":
            _check_zip(path, size)
        content = _unpickle(path, mapped=form == "zip")
        tensors, metadata = _state_dict(content, path), _plain_entries(content)
    tensors = _without_prefixes(tensors, path)
    _check_tensors(tensors, size, path)
    return WeightsFile(tensors, metadata)


def load_exactly(module: nn.Module, tensors: Mapping[str, Tensor], *, where: str | Path) -> None:
    """Copy `tensors` into `module`, which must have the same names and shapes. Values are cast to its dtypes.

    Only `num_batches_tracked` of batch norm may be missing on one side: old files and frozen layers do not have it.

    Args:
        module: the module; unchanged if an error is raised.
        tensors: name -> tensor.
        where: the file, for error messages.

    Raises:
        CheckpointError: another architecture (K07), number of classes (K08) or image size (K09).
    """
    own = module.state_dict()
    missing = [name for name in own if name not in tensors and not name.endswith(_COUNTER)]
    unexpected = [name for name in tensors if name not in own and not name.endswith(_COUNTER)]
    unequal = [name for name in own if name in tensors and not _is_compatible(own[name], tensors[name])]
    if missing or unexpected or unequal:
        raise _mismatch_error(type(module).__name__, own, tensors, missing, unexpected, unequal, where)
    module.load_state_dict({name: tensors.get(name, own[name]) for name in own})


def _is_compatible(ours: Tensor, theirs: Tensor) -> bool:
    return ours.shape == theirs.shape and ours.is_floating_point() == theirs.is_floating_point()


def _mismatch_error(
    model: str,
    own: Mapping[str, Tensor],
    tensors: Mapping[str, Tensor],
    missing: list[str],
    unexpected: list[str],
    unequal: list[str],
    where: str | Path,
) -> CheckpointError:
    kind: type[CheckpointError] = ArchitectureError
    remedy, code = "name the model that the file belongs to", "K07"
    shapes = [f"{name} {_shape(tensors[name])}, the model has {_shape(own[name])}" for name in unequal]
    shared = sum(name in tensors for name in own)
    if shared * 10 < len(own):
        what = f"not weights of {model}: {shared} of its {len(own)} tensors, instead {_first_few(tensors)}"
    elif missing or unexpected:
        parts = [
            f"{len(missing)} missing ({_first_few(missing)})" if missing else "",
            f"{len(unexpected)} not in the model ({_first_few(unexpected)})" if unexpected else "",
            f"{len(unequal)} of another shape ({_first_few(shapes)})" if unequal else "",
        ]
        what = f"not weights of {model} with its {len(own)} tensors: " + ", ".join(filter(None, parts))
    elif all(_differs_in_classes(name, own[name], tensors[name]) for name in unequal):
        kind, code = CheckpointError, "K08"
        what = f"weights of {model} for another number of classes: {_first_few(shapes)}"
        remedy = f"create it with the file's classes, or leave {', '.join(unequal)} out to train a new head"
    elif all("pos_embed" in name for name in unequal):
        kind, code = CheckpointError, "K09"
        what = f"weights of {model} for another image size: {_first_few(shapes)}"
        remedy = "create it with the file's image size, or resize the position embedding"
    else:
        what = f"not weights of this {model}: {len(unequal)} tensors of another shape ({_first_few(shapes)})"
    return kind(what, where=where, remedy=remedy, code=code)


def _differs_in_classes(name: str, ours: Tensor, theirs: Tensor) -> bool:
    return not _HEADS.isdisjoint(name.split(".")) and ours.shape[1:] == theirs.shape[1:]


def _shape(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)}" + ("" if tensor.is_floating_point() else f" of {tensor.dtype}")


def _first_few(names: Iterable[object], limit: int = 3) -> str:
    listed = [str(name)[:100] for name in names]
    rest = len(listed) - limit
    return ", ".join(listed[:limit]) + (f" and {rest} more" if rest > 0 else "")


def _file_error(code: str, path: Path, what: str, remedy: str | None = None) -> CheckpointError:
    return CheckpointError(what, where=path, remedy=remedy, code=code)


@contextlib.contextmanager
def _report_damage(path: Path) -> Iterator[None]:
    """Turn any exception of a reader into a CheckpointError: a damaged or malicious file can raise any of them."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:
        code, what = ("K05", "has flipped bits") if "CRC" in str(error) else ("K04", "is cut or damaged")
        raise _file_error(code, path, f"{what} ({cause(error)})", _COPY_AGAIN) from error


def _inspect(path: Path) -> tuple[int, bytes]:
    """Return the size in bytes and the first 512 bytes of a regular file."""
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            inside = [name for name in _names_in(path) if name.endswith(_SUFFIXES)]
            remedy = f"name the file in it: {_first_few(inside)}" if inside else "name a weights file"
            raise _file_error("K02", path, "is a folder, not a weights file", remedy)
        if not stat.S_ISREG(status.st_mode):  # Opening a pipe would wait forever.
            raise _file_error("K01", path, "is not an ordinary file")
        if status.st_size == 0:
            raise _file_error("K03", path, "is empty (0 bytes)", _COPY_AGAIN)
        with path.open("rb") as file:
            return status.st_size, file.read(512)
    except FileNotFoundError:
        raise _file_error("K01", path, "no such file", near_path(path)) from None
    except (OSError, ValueError) as error:
        raise _file_error("K01", path, f"cannot be read ({cause(error)})") from error


def _names_in(folder: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in folder.iterdir())
    except OSError:
        return []


def _format(path: Path, start: bytes) -> Literal["safetensors", "zip", "legacy"]:
    zipped = start.startswith(b"PK\x03\x04")
    if zipped or (start.startswith(b"\x80") and _LEGACY_MAGIC in start[:32]):
        if path.suffix == ".safetensors":  # torch.load would trust the suffix.
            raise _file_error("K06", path, "is a torch or zip file, not safetensors", "rename it to .pth")
        return "zip" if zipped else "legacy"
    if start[8:9] == b"{" and (path.suffix == ".safetensors" or b"\0" in start[:8]):
        return "safetensors"
    if start.startswith(b"\x80"):
        what = "is a bare Python pickle, which can run code when it is read: refused"
        raise _file_error("K12", path, what, "ask for safetensors or for a state dict")
    if start.startswith(b"version https://git-lfs"):
        raise _file_error("K06", path, "is a Git LFS pointer, not the weights", "run: git lfs pull")
    if start.lstrip().startswith(b"<"):
        raise _file_error("K06", path, "is a web page, not weights", "download the file, not the page about it")
    if len(start) <= 8 and path.suffix == ".safetensors":
        raise _file_error("K04", path, f"is cut: only {len(start)} bytes", _COPY_AGAIN)
    kind = "text" if not set(start) & set(range(7)) else "of an unknown format"
    raise _file_error("K06", path, f"is {kind}, not weights", f"give one of {', '.join(_SUFFIXES)}")


def _read_safetensors(path: Path, size: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
    from safetensors.torch import load_file

    with _report_damage(path):
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > size - 8:
                raise _file_error("K04", path, f"is cut: header of {length} bytes in a file of {size}", _COPY_AGAIN)
            if length > _MAX_HEADER:
                raise _file_error("K15", path, f"has a header of {length} bytes; at most {_MAX_HEADER}")
            header = json.loads(file.read(length), object_pairs_hook=_without_duplicates)
        metadata = header.pop("__metadata__", {})
        if len(header) > MAX_TENSORS:
            raise _too_many_error(len(header), path)
        return load_file(path), metadata


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("duplicate name in the header")
    return found


def _check_zip(path: Path, size: int) -> None:
    """Refuse archives that torch would accept: TorchScript, compressed entries, wrong checksums."""
    with _report_damage(path), zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        names = {entry.filename.partition("/")[2] for entry in entries}
        if "constants.pkl" in names:
            raise _pickled_code_error("TorchScript program", path)
        if "data.pkl" not in names:
            raise _file_error("K06", path, "is a zip archive, but not of torch.save")
        if len(entries) > MAX_TENSORS + 10:
            raise _too_many_error(len(entries), path)
        inside = sum(entry.file_size for entry in entries)
        if inside > size or any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            what = f"is a compressed archive ({inside} bytes in a file of {size}), torch.save writes none"
            raise _file_error("K14", path, what, "ask for the original file")
        for entry in entries:
            if entry.CRC:  # torch writes 0 if checksums are switched off.
                with archive.open(entry) as file:
                    while file.read(1 << 20):
                        pass


def _unpickle(path: Path, *, mapped: bool) -> Any:
    """Call torch.load with its restricted reader, which builds tensors and plain containers only.

    Training checkpoints of the DETR and DeiT authors contain their command line as an `argparse.Namespace`. This class
    only stores values, so it is allowed for this call.

    Args:
        path: the file.
        mapped: True for the zip format, which can be memory-mapped.
    """
    namespace = argparse.Namespace
    with _safe_globals_lock, warnings.catch_warnings(), _report_damage(path):
        warnings.simplefilter("ignore")
        known = namespace in torch.serialization.get_safe_globals()
        try:
            with contextlib.nullcontext() if known else torch.serialization.safe_globals([namespace]):
                return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
        except pickle.UnpicklingError as error:
            found = re.search(r"GLOBAL (\S+) (?:was not an allowed|whose module)", str(error))
            # The text of torch advises to switch the protection off, so it is not shown.
            if found is None or not (mapped or _has_whole_pickles(path)):
                raise _file_error("K04", path, "is cut or damaged", _COPY_AGAIN) from error
            name = found[1][:100]
            first, dot, _ = name.partition(".")
            if first in _CODE_MODULES or not dot:  # Builtins such as `eval` have no module.
                what = f"asks to run {name} when it is read: refused, nothing was run"
                raise _file_error("K12", path, what, "do not trust this file") from error
            raise _pickled_code_error(name, path) from error


def _has_whole_pickles(path: Path) -> bool:
    """Return whether the first four pickles of a file of torch < 1.6 are complete.

    A truncated class name looks like a forbidden class, so truncation has to be excluded first.
    """
    try:
        with path.open("rb") as file:
            for _ in range(4):
                for _ in pickletools.genops(file):
                    pass
        return True
    except (ValueError, OverflowError, MemoryError):
        return False


def _pickled_code_error(name: str, path: Path) -> CheckpointError:
    what = f"holds a pickled {name}, not only weights; reading it could run code"
    return _file_error("K13", path, what, "where it was made, run: torch.save(model.state_dict(), 'weights.pth')")


def _too_many_error(count: int, path: Path) -> CheckpointError:
    return _file_error("K15", path, f"holds {count} tensors; at most {MAX_TENSORS}")


def _state_dict(content: Any, path: Path) -> dict[str, Tensor]:
    found = _find_tensors(content)
    if found is None:
        entries = f": its entries are {_first_few(content)}" if isinstance(content, dict) and content else ""
        raise _file_error("K06", path, f"holds no model weights{entries}")
    return {str(name): value.detach() for name, value in found.items() if isinstance(value, Tensor)}


def _find_tensors(content: Any, depth: int = 3) -> dict | None:
    if not isinstance(content, dict) or depth == 0:
        return None
    for key in _WRAPPERS:
        if (found := _find_tensors(content.get(key), depth - 1)) is not None:
            return found
    return content if any(isinstance(value, Tensor) for value in content.values()) else None


def _plain_entries(content: dict) -> dict[str, Any]:
    entries = {str(key): _plain(value, depth=2) for key, value in content.items()}
    return {key: value for key, value in entries.items() if value is not NotImplemented}


def _plain(value: Any, depth: int) -> Any:
    """Return the numbers and strings in `value`, in short lists and dicts; NotImplemented for anything else."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, argparse.Namespace):
        value = vars(value)
    if not isinstance(value, (dict, list, tuple)) or depth == 0 or len(value) > 1000:
        return NotImplemented
    if isinstance(value, dict):
        values = {str(key): _plain(item, depth - 1) for key, item in value.items()}
        kept = {key: item for key, item in values.items() if item is not NotImplemented}
        return kept if kept or not value else NotImplemented
    items = [_plain(item, depth - 1) for item in value]
    return NotImplemented if NotImplemented in items else items


def _without_prefixes(tensors: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    names = {name: ".".join(part for part in name.split(".") if part != "_orig_mod") for name in tensors}
    averaged = {name: bare for name, bare in names.items() if name != "n_averaged"}
    if averaged and all(bare.startswith("module.") for bare in averaged.values()):
        names = averaged  # Without the counter of torch's AveragedModel.
    while names and all(bare.startswith("module.") for bare in names.values()):
        names = {name: bare.removeprefix("module.") for name, bare in names.items()}
    result = {bare: tensors[name] for name, bare in names.items()}
    if len(result) != len(names):
        raise _file_error("K10", path, "two tensors have one name without their prefixes")
    return result


def _check_tensors(tensors: dict[str, Tensor], size: int, path: Path) -> None:
    if not tensors:
        raise _file_error("K06", path, "holds no tensors")
    if len(tensors) > MAX_TENSORS:
        raise _too_many_error(len(tensors), path)
    for name, tensor in tensors.items():
        dense = tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
        if not dense or tensor.dtype not in _DTYPES:
            what = f"{name[:100]} is no usual dense tensor ({tensor.layout}, {tensor.dtype}, {tensor.device})"
            raise _file_error("K06", path, what)
    total = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    if total > _MAX_OVERLAP * size:
        raise _file_error("K14", path, f"claims {total} bytes of tensors in a file of {size}")
    broken = [name for name, tensor in tensors.items() if not _is_finite(tensor)]
    if broken:
        what = f"has NaN or infinity in {len(broken)} of {len(tensors)} tensors ({_first_few(broken)})"
        raise _file_error("K11", path, what, "use a checkpoint from before the training diverged")


def _is_finite(tensor: Tensor) -> bool:
    if tensor.dtype in _INTEGER_DTYPES or tensor.numel() == 0:
        return True
    # aminmax propagates NaN and infinity and needs no temporary tensor: ten times faster than isfinite.
    low, high = torch.aminmax(tensor.float() if tensor.element_size() == 1 else tensor)
    return bool(torch.isfinite(low) and torch.isfinite(high))
