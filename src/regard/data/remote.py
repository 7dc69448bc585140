"""Folders behind an address that fsspec opens: `s3://bucket/folder`, `gs://`, `https://`, `file://`, `memory://`.

Every process opens its own filesystem, so that processes can be forked. Reads that fail are tried again for a while.
"""

from __future__ import annotations

import functools
import io
import os
import shlex
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import unquote

from regard.data.addresses import is_offline
from regard.errors import DataError, MachineError, RegardError, cause, install_command, unknown_name

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

ATTEMPTS = 6  # of a read that fails
FIRST_WAIT = 0.5  # seconds before the second attempt; each wait is twice as long as the one before: 15.5 in all
BLOCK = 1 << 20  # bytes of a read while the members of a tar file are listed
_OLDEST = (2025, 10)  # version of fsspec: forked processes hang with older ones, which torch may have installed
# Errors that another attempt would meet again: no right, a folder, and what a filesystem cannot do.
_PERMANENT = (PermissionError, IsADirectoryError, NotImplementedError)
_NO_NETWORK = ("file", "local", "memory")
# What filesystems tell of a file that changes when it is written, in small letters.
_STAMPS = (
    "etag", "last-modified", "content-md5", "digest",  # HTTP
    "lastmodified", "md5hash", "generation", "updated", "last_modified",  # S3, Google, Azure
    "mtime", "created", "modify", "modificationtime", "last_write_time",  # disks and memory, FTP, HDFS, SMB
    "blob_id", "sha", "crc",  # Hugging Face, GitHub, zip
)  # fmt: skip
Result = TypeVar("Result")


@dataclass(frozen=True)
class RemoteFile:
    """A file in a folder at an address, with those methods of `Path` that reading shards needs. Can be pickled.

    Args:
        folder: the address of the folder.
        name: of the file.
        key: what its filesystem calls the file; empty if the folder does not list it.
    """

    folder: str
    name: str
    key: str

    def __str__(self) -> str:
        return f"{self.folder}/{self.name}"

    def is_file(self) -> bool:
        """Return whether the folder lists the file. Asks no server."""
        return bool(self.key)

    def state(self) -> tuple[int, dict[str, str]]:
        """Return the size in bytes, and what else the filesystem tells that changes with the content: ETag, times.

        Raises:
            MachineError: the server does not answer (I33), or does not tell the size.
        """
        info = self._try(lambda files: files.info(self.key), str(self))
        if info.get("size") is None:
            remedy = "name a server that does, or copy the folder to this machine"
            raise MachineError("the server does not tell its size", where=str(self), remedy=remedy, code="I33")
        return int(info["size"]), {k.lower(): str(v) for k, v in sorted(info.items()) if k.lower() in _STAMPS}

    def read_bytes(self) -> bytes:
        """Return the whole content. Raises MachineError (I33)."""
        return self._try(lambda files: files.cat_file(self.key), str(self))

    def read(self, start: int, end: int, part: str | None = None) -> bytes:
        """Return the bytes from `start` to before `end`.

        Args:
            part: what these bytes are, for errors: the address of an image. The file if None.

        Raises:
            MachineError: they cannot be had (I33).
        """
        where = part or str(self)
        if start == end:  # HTTP has no range of no bytes: S3 would send the whole file
            return b""

        def look(files: AbstractFileSystem) -> bytes:
            data = files.cat_file(self.key, start=start, end=end, **_unbuffered(files))
            if len(data) > end - start:
                what = f"the server sent {len(data):,} bytes, not the {end - start:,} asked for: it ignores ranges"
                remedy = "name a server that answers range requests, or copy the folder to this machine"
                raise MachineError(what, where=where, remedy=remedy, code="I33")
            if len(data) < end - start:
                raise EOFError(f"{len(data):,} bytes instead of {end - start:,}")
            return data

        return self._try(look, where)

    def open(self) -> io.BufferedReader:
        """Open the file for reading, a block at a time."""
        return io.BufferedReader(_Ranges(self, self.state()[0]), BLOCK)

    def _try(self, look: Callable[[AbstractFileSystem], Result], where: str) -> Result:
        return _patiently(lambda: look(_filesystem(self.folder)[0]), where)


class RemoteFolder:
    """A folder at an address, listed once.

    Raises:
        ConfigError: no filesystem has the protocol (C01).
        DataError: there is no such folder, or the address is that of a file (A48).
        MachineError: the package for the protocol is missing, or the server does not answer (I33).
    """

    def __init__(self, address: str) -> None:
        has_path = address.rpartition("://")[2].strip("/")
        self.address = address.rstrip("/") if has_path else address  # `file:` would be a folder of this machine
        check_address(self.address)
        try:
            self._keys = dict(_patiently(lambda: list(_files_in(self.address)), self.address, (FileNotFoundError,)))
        except FileNotFoundError as error:
            remedy = "check the address: PROTOCOL://BUCKET/FOLDER or http://SERVER/FOLDER"
            raise DataError("no such folder", where=str(self), remedy=remedy, code="A48") from error

    def __str__(self) -> str:
        return self.address

    def __truediv__(self, name: str) -> RemoteFile:
        return RemoteFile(self.address, name, self._keys.get(name, ""))

    def iterdir(self) -> Iterable[RemoteFile]:
        """Return the files of the folder; folders in it are left out."""
        return [self / name for name in self._keys]


class _Ranges(io.RawIOBase):
    """The content of a remote file as a stream."""

    def __init__(self, file: RemoteFile, size: int) -> None:
        self.file = file
        self.size = size
        self.at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.at = offset + (0, self.at, self.size)[whence]
        return self.at

    def readinto(self, buffer: Any) -> int:
        end = min(self.at + len(buffer), self.size)
        data = self.file.read(self.at, end) if end > self.at else b""
        buffer[: len(data)] = data
        self.at += len(data)
        return len(data)


def check_address(address: str) -> None:
    """Check that data can have this address, without asking its server.

    Raises:
        ConfigError: no filesystem has the protocol (C01).
        DataError: the address is that of a shard instead of its folder (A48), or `REGARD_OFFLINE` forbids it (I33).
        MachineError: the package for the protocol is missing, or fsspec is too old.
    """
    import fsspec
    from fsspec.registry import known_implementations

    if tuple(map(int, fsspec.__version__.split(".")[:2])) < _OLDEST:
        what, needed = f"fsspec {fsspec.__version__} is too old", "fsspec>={}.{}".format(*_OLDEST)
        raise MachineError(what, where=address, remedy=install_command(shlex.quote(needed)))
    if address.endswith((".tar", ".tar.gz", ".tgz")):
        remedy = f"name the folder that holds it: {address[: address.rindex('/') + 1]}"
        raise DataError("a file, not a folder", where=address, remedy=remedy, code="A48")
    protocol = _protocol(address)
    if is_offline() and protocol not in _NO_NETWORK:
        remedy = "unset REGARD_OFFLINE, or name a folder of this machine"
        raise DataError("REGARD_OFFLINE forbids the network", where=address, remedy=remedy, code="I33")
    try:
        fsspec.get_filesystem_class(protocol)
    except ValueError as error:
        remedy = "name a folder, or an address such as s3://BUCKET/FOLDER"
        known = fsspec.available_protocols()
        raise unknown_name("protocol", protocol, known, where=address, code="C01", remedy=remedy) from error
    except ImportError as error:
        package = known_implementations[protocol]["class"].partition(".")[0]
        if protocol in ("http", "https"):
            package = "aiohttp"
        if package == "fsspec":  # its error names the package that it lacks
            raise MachineError(cause(error), where=address, remedy="install the package") from error
        raise MachineError(f"{protocol}:// needs {package}", where=address, remedy=install_command(package)) from error


def _protocol(address: str) -> str:
    """Return the protocol of the server: `s3` of `s3://bucket/folder` and of `simplecache::s3://bucket/folder`."""
    return address.rpartition("://")[0].rpartition("::")[2]


def _filesystem(address: str) -> tuple[AbstractFileSystem, str]:
    """Return the filesystem of an address for this process and thread, and its name for the folder."""
    return _filesystem_of(address, os.getpid(), threading.get_ident())


@functools.cache
def _filesystem_of(address: str, process: int, thread: int) -> tuple[AbstractFileSystem, str]:
    # Kept for ever: a forked process that forgot the filesystem of its parent would close the parent's connections.
    import fsspec

    return fsspec.url_to_fs(address)


def _unbuffered(files: AbstractFileSystem) -> dict[str, str]:
    """Return what keeps a filesystem without ranges of its own from reading 5 MB ahead of each."""
    from fsspec import AbstractFileSystem

    is_plain = not files.async_impl and type(files).cat_file is AbstractFileSystem.cat_file
    return {"cache_type": "none"} if is_plain else {}


def _files_in(address: str) -> Iterator[tuple[str, str]]:
    """Yield the name of each file of a folder, and what its filesystem calls it."""
    files, folder = _filesystem(address)
    files.invalidate_cache(folder)
    for entry in files.ls(folder, detail=True):
        key = entry["name"]
        name = key.rstrip("/").rpartition("/")[2]
        if _protocol(address) in ("http", "https"):  # links of a page, which may lead anywhere
            name = unquote(key.removeprefix(f"{folder}/").removeprefix("./"))
        if entry["type"] == "file" and "/" not in name:
            yield name, key


def _patiently(look: Callable[[], Result], where: str, lasting: tuple[type[Exception], ...] = (RegardError,)) -> Result:
    """Return what `look` returns, with up to `ATTEMPTS` attempts.

    Args:
        where: what is looked at, for the error.
        lasting: errors that are raised at once, as they are.

    Raises:
        MachineError: it failed to the end (I33).
    """
    attempt = 1
    while True:
        try:
            return look()
        except lasting:
            raise
        except Exception as error:  # filesystems share no class of errors
            if attempt == ATTEMPTS or isinstance(error, _PERMANENT):
                tries = f" in {attempt} attempts" if attempt > 1 else ""
                why = "no such file" if _is_missing(error) else cause(error.__cause__ or error)
                remedy = "check the address, the network and the right to read it, then resume or run again"
                raise MachineError(f"cannot be read{tries} ({why})", where=where, remedy=remedy, code="I33") from error
        time.sleep(FIRST_WAIT * 2 ** (attempt - 1))
        attempt += 1


def _is_missing(error: Exception) -> bool:
    return isinstance(error, FileNotFoundError) and error.__cause__ is None
