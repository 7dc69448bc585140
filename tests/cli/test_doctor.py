"""`regard doctor`: everything is told, and a broken part hides no other."""

import importlib.metadata
import json

import pytest
import torch

from command_line import run
from regard.cli import doctor


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(doctor, "SECONDS", 0.0)


def test_text_and_json(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = json.loads(run(capsys, "doctor", "--json").worked())
    assert list(found) == ["versions", "devices", "rates", "disk", "extras"]
    assert not [section for section, rows in found.items() if "failed" in rows], found
    assert found["versions"]["torch"] == importlib.metadata.version("torch")
    assert set(found["rates"]["cpu"]) == {"matrix_gflops", "convolution_gflops", "memory_gb_per_second"}
    assert all(rate > 0 for rate in found["rates"]["cpu"].values()) and found["rates"]["jpeg_640x480_per_second"] > 0
    assert found["disk"]["folder"] == str(tmp_path) and found["disk"]["free_gb"] >= 0
    assert not list(tmp_path.iterdir())
    text = run(capsys, "doctor").worked()
    assert all(line.startswith(tuple(found)) for line in text.splitlines()) and "matrix_gflops" in text


def test_extras_and_their_command(capsys, monkeypatch):
    lines = ["torch>=2", "scipy>=1.13; extra == 'train'", 'zzz>=1 ; extra == "far"', "regard[train]; extra == 'far'"]
    monkeypatch.setattr(importlib.metadata, "requires", lambda _: lines)
    found = json.loads(run(capsys, "doctor", "--json").worked())["extras"]
    assert list(found) == ["train", "far"] and found["far"]["missing"] == ["zzz"]
    assert set(found["far"]["packages"]) == {"zzz", "scipy"}
    assert found["far"]["install"].endswith("pip install 'zzz>=1'") and found["train"]["install"] is None
    assert "missing zzz: " in run(capsys, "doctor").worked()


def test_it_never_fails(capsys, monkeypatch):
    def broken(*_):
        raise RuntimeError("driver\nis broken")

    monkeypatch.setattr(torch.cuda, "device_count", broken)
    monkeypatch.setattr("shutil.disk_usage", broken)
    found = json.loads(run(capsys, "doctor", "--json").worked())
    assert found["devices"] == found["disk"] == {"failed": "driver"} and "cpu" in found["rates"]
    assert "disk     failed" in run(capsys, "doctor").worked()
