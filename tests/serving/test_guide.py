"""The commands of the guide work as they are pasted."""

from __future__ import annotations

import json
import shlex
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("fastapi", reason="fastapi is not installed")
pytest.importorskip("uvicorn", reason="uvicorn is not installed")

import regard
from documents import blocks
from image_files import encode, scene
from regard.models.build import build
from regard.serving.options import ServingOptions
from run_files import PETS, SMALL
from served import running

GUIDE = (Path(__file__).parents[2] / "docs" / "guide" / "serve.md").read_text()


def test_curl(tmp_path):
    torch.manual_seed(0)
    detector = build(replace(SMALL, num_queries=40), "mine", PETS, (32, 64)).eval()
    with torch.no_grad():
        detector.class_embed.bias[1] = 5.0  # dogs everywhere
    nets = {"detector": detector, "digits": regard.create("deit_nano_distilled_patch4_32", num_classes=10).eval()}
    for number, (name, kind) in enumerate({"street.jpg": "JPEG", "park.png": "PNG"}.items()):
        (tmp_path / name).write_bytes(encode(scene(number), kind))
    (block,) = blocks(GUIDE, "sh")
    lines = [line for line in block.splitlines() if line]
    assert len(lines) >= 6
    with running(nets) as server:
        for line in lines:
            words = shlex.split(line.replace("127.0.0.1:8000", f"127.0.0.1:{server.port}"))
            done = subprocess.run([*words, "--silent", "--fail"], cwd=tmp_path, capture_output=True, timeout=60)
            assert done.returncode == 0, line
            if "-o" not in words:
                assert "error" not in json.loads(done.stdout), line
    assert (tmp_path / "looks.png").read_bytes().startswith(b"\x89PNG")


def test_python_of_the_guide():
    for block in blocks(GUIDE, "python"):
        found: dict[str, object] = {}
        exec(block, found)
        assert found["weights"].tolist() == [[[1.0, 0.0]], [[0.0, 1.0]]]


def test_options_of_the_guide_and_the_unit_exist():
    names = {f"--{name.replace('_', '-')}" for name in ServingOptions.__dataclass_fields__} | {"--device"}
    units = "".join(blocks(GUIDE, "ini") + blocks(GUIDE, "console"))
    named = {word for line in units.splitlines() if "serve" in line for word in line.split() if word.startswith("--")}
    assert named and named <= names
