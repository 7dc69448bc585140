"""Released weights: from an address to a checked file on this disk, downloaded once.

Files are kept where torch.hub keeps them, so what other projects have downloaded already is used as it is.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from http.client import HTTPException
from io import FileIO
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.error import HTTPError
from urllib.parse import unquote, urlsplit
from urllib.request import Request, urlopen

from regard.errors import CheckpointError, ConfigError, MachineError
from regard.safe_files import hold_lock, sync

_TIMEOUT = 20.0  # seconds without a byte
_PAUSES = (1.0, 4.0, None)  # seconds after each try that broke; None: give up
_CHUNK = 1 << 20
_SPARE = 16 << 20  # bytes that a download leaves free on the disk

_digests: dict[tuple[str, int, int], str] = {}  # (path, size, mtime in ns) -> sha256, read once per process


def download(url: str, *, sha256_prefix: str | None = None, folder: Path | None = None) -> Path:
    """The local path of the weights file at `url`, which is downloaded when it is not there yet.

    A download that was cut goes on where it stopped, and only one process at a time downloads a file, which
    appears under its name only when it is complete and checked. `REGARD_OFFLINE=1` forbids the network.

    Args:
        url: https, http or file; its last part is the name of the file.
        sha256_prefix: first hexadecimal digits of the file's sha256. None: those in its name, as in
            `detr-r50-e632da11.pth`, where it has them. Empty: not checked.
        folder: where the file is kept; `weights_folder()` when not given.

    Raises:
        CheckpointError: the sha256 is another one (K05). A file that was there before stays untouched.
        MachineError: no network, no such file on the server, no space, or a folder that cannot be written.
        ConfigError: `url` is not an address of a file.
    """
    path = (folder or weights_folder()) / _file_name(url)
    prefix = _prefix_in(path.name) if sha256_prefix is None else sha256_prefix.lower()
    if not path.exists():
        if is_offline() and urlsplit(url).scheme != "file":
            raise MachineError(f"REGARD_OFFLINE forbids to download {path.name}", remedy=_by_hand(url, path))
        with _locked(path):
            if not path.exists():  # Another process may have brought it while this one waited.
                _bring(url, path, prefix)
    _check(path, prefix)
    return path


def is_offline() -> bool:
    """Whether `REGARD_OFFLINE` forbids the network."""
    return os.environ.get("REGARD_OFFLINE", "0") not in ("", "0")


def weights_folder() -> Path:
    """`$REGARD_HOME/weights`, or where torch.hub keeps its files when `REGARD_HOME` is not set."""
    if home := os.environ.get("REGARD_HOME"):
        return Path(home).expanduser() / "weights"
    import torch

    return Path(torch.hub.get_dir()) / "checkpoints"


def _file_name(url: str) -> str:
    try:
        parts = urlsplit(url)
    except ValueError:
        parts = urlsplit("")
    name = PurePosixPath(unquote(parts.path)).name
    usable = name not in ("", "..") and name.isprintable() and "\\" not in name
    if parts.scheme not in ("https", "http", "file") or not usable or not url.isascii():
        raise ConfigError("not the https, http or file address of a weights file", where=url)
    return name


def _prefix_in(name: str) -> str:
    match = re.search(r"-([0-9a-f]{8,64})\.[^.]+$", name)
    return match[1] if match else ""


def _check(path: Path, prefix: str) -> None:
    if not prefix:
        return
    try:
        found = _sha256(path)
    except OSError as error:
        raise CheckpointError(f"cannot be read ({_reason(error)})", where=path, code="K01") from error
    if not found.startswith(prefix):
        what = f"checksum mismatch: sha256 is {found}, expected {prefix}..."
        raise CheckpointError(what, where=path, remedy="delete the file and try again", code="K05")


def _sha256(path: Path) -> str:
    stat = path.stat()
    key = (str(path), stat.st_size, stat.st_mtime_ns)
    if key not in _digests:
        with path.open("rb") as file:
            _digests[key] = hashlib.file_digest(file, "sha256").hexdigest()
    return _digests[key]


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Let one process and one thread at a time download `path`."""

    def wait(holder: str) -> None:
        print(f"waiting for {holder}, which downloads {path.name}", file=sys.stderr)

    with contextlib.ExitStack() as stack:
        with _disk(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(hold_lock(path.with_name(f"{path.name}.lock"), on_busy=wait))
        yield


def _bring(url: str, path: Path, prefix: str) -> None:
    part = path.with_name(path.name + ".part")
    continued = bool(prefix) and part.exists()
    if not continued:  # Without a checksum nothing would tell that a part is of an older version.
        part.unlink(missing_ok=True)
    if not continued or not _sha256(part).startswith(prefix):
        _fetch(url, part, path)
    found = _sha256(part)
    if not found.startswith(prefix):
        part.unlink()
        if continued:
            return _bring(url, path, prefix)
        what = f"checksum mismatch after the download: sha256 is {found}, expected {prefix}..."
        remedy = "try again; if it stays so, the file on the server or the expected checksum is wrong"
        raise CheckpointError(what, where=url, remedy=remedy, code="K05")
    with _disk(path):
        sync(part)
        part.replace(path)
        sync(path.parent)
    return None


def _fetch(url: str, part: Path, path: Path) -> None:
    """Completes `part`. A connection that breaks is opened again, for the missing bytes only."""
    version: str | None = None
    reached = False
    with _progress(url, path) as show:
        for pause in _PAUSES:
            try:
                with _open(url, part, path, version) as response:
                    reached = True
                    version = response.headers.get("ETag") or response.headers.get("Last-Modified")
                    return _receive(response, part, path, show)
            except MachineError:
                raise
            except (OSError, HTTPException) as error:
                broken = error
            if not reached:
                raise _unreachable(url, path, broken) from broken
            if pause is not None:
                time.sleep(pause)
    what = f"the connection broke {len(_PAUSES)} times after {_megabytes(_size(part))} ({_reason(broken)})"
    raise MachineError(what, where=url, remedy="try again, or " + _by_hand(url, path)) from broken


def _open(url: str, part: Path, path: Path, version: str | None) -> Any:
    """The response to a request for what `part` lacks; for the whole file if it is no longer `version`."""
    headers = {"User-Agent": "regard"}
    if offset := _size(part):
        headers["Range"] = f"bytes={offset}-"
        if version:
            headers["If-Range"] = version
    try:
        response = urlopen(Request(url, headers=headers), timeout=_TIMEOUT)
    except HTTPError as error:
        error.close()
        if error.code == 416 and offset:  # The part is longer than the file, so it is not a part of it.
            part.unlink()
            return _open(url, part, path, None)
        gone = error.code in (404, 410)
        remedy = "check the address" if gone else "try again later, or " + _by_hand(url, path)
        what = f"{urlsplit(url).hostname} answers {error.code} {error.reason}"
        raise MachineError(what, where=url, remedy=remedy) from error
    if urlsplit(url).scheme == "https" and urlsplit(response.url).scheme != "https":
        response.close()
        raise MachineError("the server redirects to an unencrypted address", where=response.url)
    return response


def _receive(response: Any, part: Path, path: Path, show: Callable[[int, int | None], None]) -> None:
    done, total = _span(response)
    if done and done != _size(part):
        part.unlink()
        raise ConnectionError("the server sent another range than asked for")
    _check_space(path, None if total is None else total - done)
    show(done, total)
    with _disk(part):
        file = part.open("ab" if done else "wb", buffering=0)
    with file:
        while chunk := response.read1(_CHUNK):
            with _disk(part):
                _write(file, chunk)
            done += len(chunk)
            show(done, total)
    if total is not None and done < total:
        raise ConnectionError(f"{done} of {total} bytes came")


def _span(response: Any) -> tuple[int, int | None]:
    """Where the bytes of `response` begin in the file, and the size of the file if the server tells it."""
    if getattr(response, "status", None) == 206:
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", "").strip())
        if match:
            return int(match[1]), None if match[2] == "*" else int(match[2])
        raise ConnectionError("the server sent a range without its place")
    length = response.headers.get("Content-Length", "")
    return 0, int(length) if length.isdecimal() else None


def _write(file: FileIO, chunk: bytes) -> None:
    rest = memoryview(chunk)
    while rest:  # Nearly full disks take a part of it.
        rest = rest[file.write(rest) :]


@contextlib.contextmanager
def _disk(path: Path) -> Iterator[None]:
    """Tells a failure of the disk from one of the connection: both are OSError."""
    try:
        yield
    except OSError as error:
        remedy = "free some space, or set REGARD_HOME to a folder that you can write to"
        raise MachineError(f"cannot write ({_reason(error)})", where=path, remedy=remedy, code="T05") from error


def _check_space(path: Path, needed: int | None) -> None:
    free = shutil.disk_usage(path.parent).free
    if needed is not None and free < needed + _SPARE:
        what = f"no space: {path.name} needs {_megabytes(needed + _SPARE)}, {_megabytes(free)} are free"
        remedy = "free some space, or set REGARD_HOME to another disk"
        raise MachineError(what, where=path.parent, remedy=remedy, code="T05")


@contextlib.contextmanager
def _progress(url: str, path: Path) -> Iterator[Callable[[int, int | None], None]]:
    """Gives the function to call with the bytes that are here, and the bytes in all."""
    if not sys.stderr.isatty():
        print(f"downloading {url} to {path}", file=sys.stderr)
        yield lambda done, total: None
        return
    from rich import progress
    from rich.console import Console

    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.DownloadColumn(),
        progress.TransferSpeedColumn(),
        progress.TimeRemainingColumn(),
    )
    with progress.Progress(*columns, console=Console(stderr=True)) as bar:
        tasks: list[progress.TaskID] = []

        def show(done: int, total: int | None) -> None:
            if tasks:
                bar.update(tasks[0], completed=done, total=total)
            else:  # Only now, lest the bytes of an earlier run count as speed.
                tasks.append(bar.add_task(path.name, completed=done, total=total))

        yield show


def _unreachable(url: str, path: Path, error: Exception) -> MachineError | CheckpointError:
    parts = urlsplit(url)
    if parts.scheme == "file":
        return CheckpointError(f"cannot be read ({_reason(error)})", where=url, code="K01")
    return MachineError(f"cannot reach {parts.hostname} ({_reason(error)})", remedy=_by_hand(url, path))


def _by_hand(url: str, path: Path) -> str:
    return f"download {url} on another machine and put it at {path.absolute()}"


def _reason(error: object) -> str:
    """`Connection refused` out of the errors that are wrapped around it."""
    inner = getattr(error, "reason", None)
    if isinstance(inner, (Exception, str)) and inner:
        return _reason(inner)
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"
