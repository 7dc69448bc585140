"""The folder where generated and unpacked data are cached, and how a folder is added to it."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path


def cache_folder() -> Path:
    """Return the folder of cached data: `$REGARD_HOME/data`, or `regard/data` in the user's cache folder."""
    home = os.environ.get("REGARD_HOME")
    root = Path(home) if home else Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "regard"
    return root / "data"


def cached_folder(name: str, write: Callable[[Path], None]) -> Path:
    """Return the folder `name` of the cache; `write` makes it at the first call. It is complete or absent.

    Files are not flushed to the disk: that takes twice as long as drawing the images, which can be drawn again.
    """
    folder = cache_folder() / name
    if not folder.exists():
        temporary = folder.with_name(f"{name}.tmp-{uuid.uuid4().hex}")
        try:
            write(temporary)
            temporary.rename(folder)
        except OSError:
            if not folder.exists():  # otherwise another process was faster
                raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return folder
