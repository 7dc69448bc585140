"""Other people's weight files: read without running what is in them, and loaded without guessing.

A file is untrusted until its last check. Pickles go through torch's restricted reader only, and when that
refuses there is no second way. Nothing here knows a model: `read_weights` gives names and tensors,
`load_exactly` puts them into a module that has these names.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
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

from regard.errors import ArchitectureError, CheckpointError, cause

MAX_TENSORS = 10_000
_MAX_HEADER = 16 << 20  # bytes; ten thousand tensors need 2 MB
_MAX_OVERLAP = 8  # how much larger than their file tensors may be together: tied weights share memory
_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
_WRAPPERS = ("model", "state_dict", "model_ema", "state_dict_ema", "ema", "module")
_HALVES = {torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2}
_INTEGERS = {torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}
_DTYPES = _HALVES | _INTEGERS | {torch.float32, torch.float64}
_LEGACY_MAGIC = b"l\xfc\x9cF\xf9 j\xa8P\x19"  # among the first bytes of what torch.save wrote before 1.6
_RUNS_CODE = {"posix", "nt", "os", "sys", "subprocess", "importlib", "runpy"}
_HEADS = {"class_embed", "linear_class", "head", "head_dist", "heads", "fc", "classifier"}
_COUNTER = "num_batches_tracked"
_AGAIN = "copy or download it again"
_one_at_a_time = threading.Lock()  # torch's list of allowed classes belongs to the whole process


class WeightsFile(NamedTuple):
    """What a weights file holds.

    Attributes:
        tensors: name -> dense CPU tensor, without the prefixes of wrappers. They may lie in the file's memory
            map: do not overwrite the file while they are used.
        metadata: safetensors: its metadata. torch: what stood beside the weights and is plain (`epoch`, the
            authors' `args` as a dict); optimizer states are left out.
    """

    tensors: dict[str, Tensor]
    metadata: dict[str, Any]


def read_weights(path: str | Path) -> WeightsFile:
    """The tensors of a `.safetensors`, or of a `.pth`, `.pt` or `.bin` of torch.save; the content decides.

    `{"model": ...}`, `{"state_dict": ...}`, `{"model_ema": ...}` (the first that is there) are unwrapped,
    and the prefixes `module.` (DDP, averaged models) and `_orig_mod.` (torch.compile) removed. Flipped bits
    are found in torch's zip format, which has checksums; safetensors and files of torch < 1.6 have none.

    Raises:
        CheckpointError: no file (K01), a folder (K02), empty (K03), cut (K04), flipped bits (K05), not
            weights (K06), two tensors of one name (K10), NaN or infinity (K11), code instead of weights (K12,
            K13), larger inside than outside (K14), more than 10,000 tensors (K15).
    """
    path = Path(path)
    size, start = _look(path)
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
    """Copies `tensors` into `module`: all that it has, no other, same shapes. fp16 becomes the module's type.

    Only batch norm's `num_batches_tracked`, which old files lack and frozen layers drop, may be on one side.

    Args:
        where: the file, for the error.

    Raises:
        CheckpointError: another architecture or other tensors (K07), number of classes (K08) or image size
            (K09); `module` is unchanged.
    """
    own = module.state_dict()
    missing = [name for name in own if name not in tensors and not name.endswith(_COUNTER)]
    unexpected = [name for name in tensors if name not in own and not name.endswith(_COUNTER)]
    unequal = [name for name in own if name in tensors and not _alike(own[name], tensors[name])]
    if missing or unexpected or unequal:
        raise _misfit(type(module).__name__, own, tensors, missing, unexpected, unequal, where)
    module.load_state_dict({name: tensors.get(name, own[name]) for name in own})


def _alike(ours: Tensor, theirs: Tensor) -> bool:
    return ours.shape == theirs.shape and ours.is_floating_point() == theirs.is_floating_point()


def _misfit(
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
        what = f"not weights of {model}: {shared} of its {len(own)} tensors, instead {_some(tensors)}"
    elif missing or unexpected:
        parts = [
            f"{len(missing)} missing ({_some(missing)})" if missing else "",
            f"{len(unexpected)} not in the model ({_some(unexpected)})" if unexpected else "",
            f"{len(unequal)} of another shape ({_some(shapes)})" if unequal else "",
        ]
        what = f"not weights of {model} with its {len(own)} tensors: " + ", ".join(filter(None, parts))
    elif all(_differs_in_classes(name, own[name], tensors[name]) for name in unequal):
        kind, code = CheckpointError, "K08"
        what = f"weights of {model} for another number of classes: {_some(shapes)}"
        remedy = f"create it with the file's classes, or leave {', '.join(unequal)} out to train a new head"
    elif all("pos_embed" in name for name in unequal):
        kind, code = CheckpointError, "K09"
        what = f"weights of {model} for another image size: {_some(shapes)}"
        remedy = "create it with the file's image size, or resize the position embedding"
    else:
        what = f"not weights of this {model}: {len(unequal)} tensors of another shape ({_some(shapes)})"
    return kind(what, where=where, remedy=remedy, code=code)


def _differs_in_classes(name: str, ours: Tensor, theirs: Tensor) -> bool:
    return not _HEADS.isdisjoint(name.split(".")) and ours.shape[1:] == theirs.shape[1:]


def _shape(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)}" + ("" if tensor.is_floating_point() else f" of {tensor.dtype}")


def _some(names: Iterable[object], most: int = 3) -> str:
    listed = [str(name)[:100] for name in names]
    rest = len(listed) - most
    return ", ".join(listed[:most]) + (f" and {rest} more" if rest > 0 else "")


def _bad(code: str, path: Path, what: str, remedy: str | None = None) -> CheckpointError:
    return CheckpointError(what, where=path, remedy=remedy, code=code)


@contextlib.contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    """A damaged or hostile file can fail anywhere in a reader, with any exception: one line for them all."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:
        code, what = ("K05", "has flipped bits") if "CRC" in str(error) else ("K04", "is cut or damaged")
        raise _bad(code, path, f"{what} ({cause(error)})", _AGAIN) from error


def _look(path: Path) -> tuple[int, bytes]:
    """Size in bytes and the first bytes of an ordinary file."""
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            inside = [name for name in _names_in(path) if name.endswith(_SUFFIXES)]
            remedy = f"name the file in it: {_some(inside)}" if inside else "name a weights file"
            raise _bad("K02", path, "is a folder, not a weights file", remedy)
        if not stat.S_ISREG(status.st_mode):  # Opening a pipe would wait for ever.
            raise _bad("K01", path, "is not an ordinary file")
        if status.st_size == 0:
            raise _bad("K03", path, "is empty (0 bytes)", _AGAIN)
        with path.open("rb") as file:
            return status.st_size, file.read(512)
    except FileNotFoundError:
        near = difflib.get_close_matches(path.name, _names_in(path.parent), 1)
        remedy = f"did you mean {near[0]}?" if near else "check the path"
        raise _bad("K01", path, "no such file", remedy) from None
    except (OSError, ValueError) as error:
        raise _bad("K01", path, f"cannot be read ({cause(error)})") from error


def _names_in(folder: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in folder.iterdir())
    except OSError:
        return []


def _format(path: Path, start: bytes) -> Literal["safetensors", "zip", "legacy"]:
    zipped = start.startswith(b"PK\x03\x04")
    if zipped or (start.startswith(b"\x80") and _LEGACY_MAGIC in start[:32]):
        if path.suffix == ".safetensors":  # torch.load would go by the name.
            raise _bad("K06", path, "is a torch or zip file, not safetensors", "rename it to .pth")
        return "zip" if zipped else "legacy"
    if start[8:9] == b"{" and (path.suffix == ".safetensors" or b"\0" in start[:8]):
        return "safetensors"
    if start.startswith(b"\x80"):
        what = "is a bare Python pickle, which can run code when it is read: refused"
        raise _bad("K12", path, what, "ask for safetensors or for a state dict")
    if start.startswith(b"version https://git-lfs"):
        raise _bad("K06", path, "is a Git LFS pointer, not the weights", "run: git lfs pull")
    if start.lstrip().startswith(b"<"):
        raise _bad("K06", path, "is a web page, not weights", "download the file, not the page about it")
    if len(start) <= 8 and path.suffix == ".safetensors":
        raise _bad("K04", path, f"is cut: only {len(start)} bytes", _AGAIN)
    kind = "text" if not set(start) & set(range(7)) else "of an unknown format"
    raise _bad("K06", path, f"is {kind}, not weights", f"give one of {', '.join(_SUFFIXES)}")


def _read_safetensors(path: Path, size: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
    from safetensors.torch import load_file

    with _damage_named(path):
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > size - 8:
                raise _bad("K04", path, f"is cut: header of {length} bytes in a file of {size}", _AGAIN)
            if length > _MAX_HEADER:
                raise _bad("K15", path, f"has a header of {length} bytes; at most {_MAX_HEADER}")
            header = json.loads(file.read(length), object_pairs_hook=_unique)
        metadata = header.pop("__metadata__", {})
        if len(header) > MAX_TENSORS:
            raise _too_many(len(header), path)
        return load_file(path), metadata


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands twice in the header")
    return found


def _check_zip(path: Path, size: int) -> None:
    """Refuses what torch would take: other archives, compressed entries, wrong checksums."""
    with _damage_named(path), zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        names = {entry.filename.partition("/")[2] for entry in entries}
        if "constants.pkl" in names:
            raise _holds_code("TorchScript program", path)
        if "data.pkl" not in names:
            raise _bad("K06", path, "is a zip archive, but not of torch.save")
        if len(entries) > MAX_TENSORS + 10:
            raise _too_many(len(entries), path)
        inside = sum(entry.file_size for entry in entries)
        if inside > size or any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            what = f"is a compressed archive ({inside} bytes in a file of {size}), torch.save writes none"
            raise _bad("K14", path, what, "ask for the original file")
        for entry in entries:
            if entry.CRC:  # torch can leave checksums out, and writes 0 then.
                with archive.open(entry) as file:
                    while file.read(1 << 20):
                        pass


def _unpickle(path: Path, *, mapped: bool) -> Any:
    """torch.load by its restricted reader, which builds tensors and plain containers and calls nothing else.

    The authors' training checkpoints hold their command line as an `argparse.Namespace`, which only keeps
    values: it is allowed for this one call.
    """
    namespace = argparse.Namespace
    with _one_at_a_time, warnings.catch_warnings(), _damage_named(path):
        warnings.simplefilter("ignore")
        known = namespace in torch.serialization.get_safe_globals()
        try:
            with contextlib.nullcontext() if known else torch.serialization.safe_globals([namespace]):
                return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
        except pickle.UnpicklingError as error:
            found = re.search(r"GLOBAL (\S+) (?:was not an allowed|whose module)", str(error))
            # torch's own text advises to switch the protection off, so it is not passed on.
            if found is None or not (mapped or _has_whole_pickles(path)):
                raise _bad("K04", path, "is cut or damaged", _AGAIN) from error
            name = found[1][:100]
            first, dot, _ = name.partition(".")
            if first in _RUNS_CODE or not dot:  # `eval` and other builtins come without their module.
                what = f"asks to run {name} when it is read: refused, nothing was run"
                raise _bad("K12", path, what, "do not trust this file") from error
            raise _holds_code(name, path) from error


def _has_whole_pickles(path: Path) -> bool:
    """Whether a file of torch < 1.6 has its four first pickles: a cut name looks like a forbidden one."""
    try:
        with path.open("rb") as file:
            for _ in range(4):
                for _ in pickletools.genops(file):
                    pass
        return True
    except (ValueError, OverflowError, MemoryError):
        return False


def _holds_code(name: str, path: Path) -> CheckpointError:
    what = f"holds a pickled {name}, not only weights; reading it could run code"
    return _bad("K13", path, what, "where it was made, run: torch.save(model.state_dict(), 'weights.pth')")


def _too_many(count: int, path: Path) -> CheckpointError:
    return _bad("K15", path, f"holds {count} tensors; at most {MAX_TENSORS}")


def _state_dict(content: Any, path: Path) -> dict[str, Tensor]:
    found = _find_tensors(content)
    if found is None:
        entries = f": its entries are {_some(content)}" if isinstance(content, dict) and content else ""
        raise _bad("K06", path, f"holds no model weights{entries}")
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
    """The numbers and texts of `value`, in short lists and dicts; NotImplemented if it is anything else."""
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
        names = averaged  # Without the counter that torch's AveragedModel keeps beside the weights.
    while names and all(bare.startswith("module.") for bare in names.values()):
        names = {name: bare.removeprefix("module.") for name, bare in names.items()}
    result = {bare: tensors[name] for name, bare in names.items()}
    if len(result) != len(names):
        raise _bad("K10", path, "two tensors have one name without their prefixes")
    return result


def _check_tensors(tensors: dict[str, Tensor], size: int, path: Path) -> None:
    if not tensors:
        raise _bad("K06", path, "holds no tensors")
    if len(tensors) > MAX_TENSORS:
        raise _too_many(len(tensors), path)
    for name, tensor in tensors.items():
        dense = tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
        if not dense or tensor.dtype not in _DTYPES:
            what = f"{name[:100]} is no usual dense tensor ({tensor.layout}, {tensor.dtype}, {tensor.device})"
            raise _bad("K06", path, what)
    total = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    if total > _MAX_OVERLAP * size:
        raise _bad("K14", path, f"claims {total} bytes of tensors in a file of {size}")
    broken = [name for name, tensor in tensors.items() if not _is_finite(tensor)]
    if broken:
        what = f"has NaN or infinity in {len(broken)} of {len(tensors)} tensors ({_some(broken)})"
        raise _bad("K11", path, what, "use a checkpoint from before the training diverged")


def _is_finite(tensor: Tensor) -> bool:
    if tensor.dtype in _INTEGERS or tensor.numel() == 0:
        return True
    # NaN and infinity reach the extremes, and these need no temporary: ten times faster than isfinite.
    low, high = torch.aminmax(tensor.float() if tensor.element_size() == 1 else tensor)
    return bool(torch.isfinite(low) and torch.isfinite(high))
