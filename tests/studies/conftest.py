"""Studies without training: real processes that write what a training would."""

import sys

import pytest

TRAIN = """
import json, os, sys, time, zlib
from pathlib import Path

from regard.safe_files import hold_lock

words = sys.argv[1:]
run = Path(words[words.index("--output") + 1])
run.mkdir(parents=True, exist_ok=True)
log = Path(os.environ["TRAINED"])
with log.open("a") as file:
    file.write(json.dumps(words) + "\\n")
if "--resume" in words:
    words = json.loads((run / "config.yaml").read_text())
else:
    (run / "config.yaml").write_text(json.dumps(words))
with hold_lock(run / ".lock", on_busy=lambda holder: sys.exit(f"error T14: {holder}")):
    wait = Path(os.environ.get("WAIT_FOR", log))
    while not wait.exists():
        time.sleep(0.02)
    if any(word in os.environ.get("FAIL", "").split() for word in words):
        print("error T07: the loss is not finite", file=sys.stderr)
        sys.exit(5)
    # A score that depends on the settings and the seed alone.
    text = " ".join(word for word in words if word != str(run) and not word.startswith("teacher="))
    stats = {"top1": zlib.crc32(text.encode()) % 1000 / 1000}
    (run / "metrics.json").write_text(json.dumps({"data": "digits", "stats": stats}))
"""


@pytest.fixture
def training(tmp_path, monkeypatch, blank_charts):
    """Trainings are quick processes, charts blank; returns the file that lists their words, one JSON list a line."""
    script, log = tmp_path / "train.py", tmp_path / "trained.jsonl"
    script.write_text(TRAIN)
    monkeypatch.setenv("TRAINED", str(log))
    monkeypatch.setattr("regard.studies.trainings.launch_command", lambda words, _: [sys.executable, script, *words])
    monkeypatch.chdir(tmp_path)
    return log
