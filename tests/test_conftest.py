"""CI skips no test for want of a peer."""

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
def test_a_skipped_peer_fails_ci(tmp_path, monkeypatch, capsys, strict, outcome):
    monkeypatch.setenv("REGARD_NO_SKIPS", strict)
    (tmp_path / "test_peer.py").write_text(TESTS)
    (tmp_path / "conftest.py").write_text((Path(__file__).parent / "conftest.py").read_text())
    pytest.main([str(tmp_path), f"--rootdir={tmp_path}", "--import-mode=importlib", "-p", "no:cacheprovider"])
    assert outcome in capsys.readouterr().out
