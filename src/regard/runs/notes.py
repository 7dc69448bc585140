"""`RUN/notes.json`: what a training told its user, for the report. A warning begins so.

`start` is what data, device and weights have decided; `length` is about the number of steps.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from regard.results.reports.run_files import NOTES, RunFiles
from regard.safe_files import replace_text


def keep_notes(run: Path, start: Sequence[str], length: Sequence[str], *, resumed: bool) -> None:
    """Write the notes of a run, one line each.

    resumed: whether the file has those of the start already. A resumed run knows less: the data have decided before.
    """
    first = (RunFiles(run).notes("start") if resumed else []) or start
    replace_text(run / NOTES, json.dumps({"start": [*first], "length": [*length]}, indent=2))
