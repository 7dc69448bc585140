"""CI skips no test for want of a peer."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = """
import pytest

def test_without_its_peer():
    pytest.importorskip("a_peer_that_nobody_has")

@pytest.mark.skipif(True, reason="there is a GPU")
def test_for_machines_without_a_gpu():
    pass
"""


@pytest.mark.parametrize(("strict", "outcome"), [("1", "1 failed, 1 skipped"), ("0", "2 skipped")])
def test_a_skipped_peer_fails_ci(tmp_path, strict, outcome):
    (tmp_path / "test_peer.py").write_text(TESTS)
    (tmp_path / "conftest.py").write_text((Path(__file__).parent / "conftest.py").read_text())
    support = str(Path(__file__).parent / "support")
    environment = {**os.environ, "REGARD_NO_SKIPS": strict, "PYTHONPATH": os.pathsep.join([support, *sys.path])}
    words = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "test_peer.py"]
    finished = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert outcome in finished.stdout, finished.stdout + finished.stderr
