"""Download released weights once and check their SHA-256.

Files are stored in the folder of torch.hub, so that other projects' downloads are reused.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.error import HTTPError
from urllib.parse import unquote, urlsplit
from urllib.request import Request, urlopen

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

from regard.data.addresses import is_offline as is_offline
from regard.errors import CheckpointError, ConfigError, MachineError, cause
from regard.safe_files import hold_lock, sync

_TIMEOUT = 20.0  # seconds without data
_PAUSES = (1.0, 4.0, None)  # seconds to wait after each failed attempt; None: give up
_CHUNK = 1 << 20
_SPARE = 16 << 20  # bytes that must stay free on the disk


def download(url: str) -> Path:
    """Return the local path of the weights file at `url`; download the file if it is missing.

    An interrupted download is continued. One process at a time downloads a file, which appears under its name only
    when it is complete and its SHA-256 begins with the digits in its name, as in `detr-r50-e632da11.pth`. Names
    without digits are not checked. `REGARD_OFFLINE=1` forbids the network.

    Args:
        url: https or http; its last part is the name of the file in `weights_folder()`.

    Raises:
        CheckpointError: the SHA-256 differs (K05). A file that existed before is left as it is.
        MachineError: no network, no such file on the server, no space, or a folder that cannot be written.
        ConfigError: `url` is not the address of a file.
    """
    path = weights_folder() / _file_name(url)
    digits = re.search(r"-([0-9a-f]{8,64})\.[^.]+$", path.name)
    task = _Download(url, path, digits[1] if digits else "")
    if not path.exists():
        if is_offline():
            raise MachineError(f"REGARD_OFFLINE forbids the download of {path.name}", remedy=task.by_hand)
        with task.locked():
            if not path.exists():  # Another process may have finished while this one waited.
                task.run()
    try:
        digest = _sha256(path) if task.prefix else ""
    except OSError as error:
        raise CheckpointError(f"cannot be read ({cause(error)})", where=path, code="K01") from error
    if not digest.startswith(task.prefix):
        what = f"checksum mismatch: sha256 is {digest}, expected {task.prefix}..."
        raise CheckpointError(what, where=path, remedy="delete the file and try again", code="K05")
    return path


def weights_folder() -> Path:
    """Return `$REGARD_HOME/weights`, or the folder of torch.hub if `REGARD_HOME` is not set."""
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
    if parts.scheme not in ("https", "http") or not usable or not url.isascii():
        raise ConfigError("not the https or http address of a weights file", where=url)
    return name


def _sha256(path: Path) -> str:
    stat = path.stat()
    return _sha256_of_version(path, stat.st_size, stat.st_mtime_ns)


@functools.cache  # Reads each version of a file once.
def _sha256_of_version(path: Path, size: int, mtime_ns: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class _Download:
    """The download of a file from `url` to `path`, whose SHA-256 begins with `prefix`."""

    url: str
    path: Path
    prefix: str

    @property
    def part(self) -> Path:
        """The file that grows during the download."""
        return self.path.with_name(f"{self.path.name}.part")

    @property
    def by_hand(self) -> str:
        return f"download {self.url} on another machine and put it at {self.path.absolute()}"

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Lock this download, so that one process and one thread at a time runs it."""

        def wait(holder: str) -> None:
            print(f"waiting for {holder}, which downloads {self.path.name}", file=sys.stderr)

        with contextlib.ExitStack() as stack:
            with _writing(self.path.parent):
                self.path.parent.mkdir(parents=True, exist_ok=True)
                stack.enter_context(hold_lock(self.path.with_name(f"{self.path.name}.lock"), on_busy=wait))
            yield

    def run(self) -> None:
        """Download what is missing, check the result and rename it to `path`."""
        if not self.prefix:  # Without a checksum nothing shows whether a part belongs to this file.
            self.part.unlink(missing_ok=True)
        is_continued = self.part.exists()
        if not is_continued or not _sha256(self.part).startswith(self.prefix):
            self._fetch()
        digest = _sha256(self.part)
        if digest.startswith(self.prefix):
            with _writing(self.path):
                sync(self.part)
                self.part.replace(self.path)
                sync(self.path.parent)
            return
        self.part.unlink()
        if is_continued:  # The part may have been of another file: start from the first byte.
            return self.run()
        what = f"checksum mismatch after the download: sha256 is {digest}, expected {self.prefix}..."
        remedy = "try again; if it fails again, the file on the server or the expected checksum is wrong"
        raise CheckpointError(what, where=self.url, remedy=remedy, code="K05")

    def _fetch(self) -> None:
        """Download the missing bytes to `part`. After a broken connection, request only the rest."""
        version: str | None = None
        is_connected = False
        with _progress_bar() as bar:
            if bar.disable:
                print(f"downloading {self.url} to {self.path}", file=sys.stderr)
            for pause in _PAUSES:
                try:
                    with self._open(version) as response:
                        is_connected = True
                        version = response.headers.get("ETag") or response.headers.get("Last-Modified")
                        return self._receive(response, bar)
                except MachineError:
                    raise
                except (OSError, HTTPException) as error:
                    broken = error
                if not is_connected:
                    what = f"cannot reach {urlsplit(self.url).hostname} ({cause(broken)})"
                    raise MachineError(what, remedy=self.by_hand) from broken
                if pause is not None:
                    time.sleep(pause)
        what = f"the connection broke {len(_PAUSES)} times after {_megabytes(_size(self.part))} ({cause(broken)})"
        raise MachineError(what, where=self.url, remedy=f"try again, or {self.by_hand}") from broken

    def _open(self, version: str | None) -> Any:
        """Request the bytes that the part lacks, or the whole file if it is no longer `version`."""
        headers = {"User-Agent": "regard"}
        if offset := _size(self.part):
            headers["Range"] = f"bytes={offset}-"
            if version:
                headers["If-Range"] = version
        try:
            response = urlopen(Request(self.url, headers=headers), timeout=_TIMEOUT)
        except HTTPError as error:
            error.close()
            if error.code == 416 and offset:  # The part is longer than the file, so it is not a part of it.
                self.part.unlink()
                return self._open(None)
            remedy = "check the address" if error.code in (404, 410) else f"try again later, or {self.by_hand}"
            what = f"{urlsplit(self.url).hostname} replied {error.code} {error.reason}"
            raise MachineError(what, where=self.url, remedy=remedy) from error
        if urlsplit(self.url).scheme == "https" and urlsplit(response.url).scheme != "https":
            response.close()
            raise MachineError("the server redirects to an unencrypted address", where=response.url)
        return response

    def _receive(self, response: Any, bar: Progress) -> None:
        done, total = _content_range(response)
        if done and done != _size(self.part):
            self.part.unlink()
            raise ConnectionError("the server sent another range than requested")
        _check_space(self.path, None if total is None else total - done)
        for row in bar.task_ids:  # of the connection before, whose bytes would count as speed
            bar.remove_task(row)
        row = bar.add_task(self.path.name, completed=done, total=total)
        with _writing(self.part):
            file = self.part.open("ab" if done else "wb", buffering=0)
        with file:
            while chunk := response.read1(_CHUNK):
                rest = memoryview(chunk)
                with _writing(self.part):
                    while rest:  # A nearly full disk accepts some of the bytes.
                        rest = rest[file.write(rest) :]
                done += len(chunk)
                bar.update(row, completed=done)
        if total is not None and done < total:
            raise ConnectionError(f"received {done} of {total} bytes")


def _content_range(response: Any) -> tuple[int, int | None]:
    """Return the place of the first byte of `response` in the file, and the size of the file if it is known."""
    if getattr(response, "status", None) == 206:
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", "").strip())
        if match:
            return int(match[1]), None if match[2] == "*" else int(match[2])
        raise ConnectionError("the server sent a range without its position")
    length = response.headers.get("Content-Length", "")
    return 0, int(length) if length.isdecimal() else None


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turn an OSError of the disk into a MachineError; other OSErrors come from the connection."""
    try:
        yield
    except OSError as error:
        remedy = "free some space, or set REGARD_HOME to a folder that you can write to"
        raise MachineError(f"cannot write ({cause(error)})", where=path, remedy=remedy, code="T05") from error


def _check_space(path: Path, needed: int | None) -> None:
    free = shutil.disk_usage(path.parent).free
    if needed is not None and free < needed + _SPARE:
        what = f"no space: {path.name} needs {_megabytes(needed + _SPARE)}, {_megabytes(free)} are free"
        remedy = "free some space, or set REGARD_HOME to a folder on another disk"
        raise MachineError(what, where=path.parent, remedy=remedy, code="T05")


def _progress_bar() -> Progress:
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    is_hidden = not sys.stderr.isatty()
    return Progress("{task.description}", *columns, console=Console(stderr=True), disable=is_hidden)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB"
