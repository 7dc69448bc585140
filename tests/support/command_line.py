"""Runs commands in this process, and holds their errors to one line."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from regard.cli import main


@dataclass(frozen=True)
class Finished:
    """What a command left: its exit code and what it printed."""

    code: int
    out: str
    err: str

    @property
    def complaints(self) -> list[str]:
        """The lines of stderr beside progress and the threshold of `predict`."""
        return [line for line in self.err.splitlines() if not line.startswith(("evaluation: ", "threshold "))]

    def refused(self, exit_code: int, code: str | None, *says: object) -> str:
        """The line of an error: one line on stderr beside progress, with this exit code, code and these texts."""
        assert self.code == exit_code, (self.code, self.err)
        (line,) = self.complaints
        assert line.startswith(f"error {code}: " if code else "error: "), line
        assert "Traceback" not in self.out + self.err and line.isprintable() and len(line) < 2000
        for text in says:
            assert str(text) in line, line
        return line

    def worked(self) -> str:
        assert self.code == 0, self.err
        assert not re.search(r"^error|Traceback", self.err, re.MULTILINE), self.err
        return self.out


def run(capsys: pytest.CaptureFixture[str], *words: object) -> Finished:
    """`regard WORDS` without a new process."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as left:
        main([str(word) for word in words])
    captured = capsys.readouterr()
    assert isinstance(left.value.code, int)
    return Finished(left.value.code, captured.out, captured.err)


def digest(folder: Path) -> str:
    """Of all names below a folder, what links point to, and the bytes of files."""
    total = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        total.update(bytes(path.relative_to(folder)) + b"\0")
        if path.is_symlink():
            total.update(bytes(path.readlink()))
        elif path.is_file():
            total.update(path.read_bytes())
    return total.hexdigest()
