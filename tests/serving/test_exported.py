"""A file that `regard export` wrote, served: answers over HTTP are those of `regard.predict` with the same file."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
import torch

pytest.importorskip("fastapi", reason="fastapi is not installed")
pytest.importorskip("uvicorn", reason="uvicorn is not installed")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")

import regard
from exported_files import randomized
from load import answers_to, is_answer, send_all, unique_images
from regard.models.build import build
from regard.models.configs.detr import DETR_PRESETS
from run_files import PETS
from served import running


@pytest.mark.slow  # the export
def test_answers_of_an_onnx_file(tmp_path):
    torch.manual_seed(0)
    net = randomized(build(replace(DETR_PRESETS["detr_tiny"], num_classes=3), "tiny", PETS, (64, 128)))
    file = regard.export(net, output=tmp_path / "tiny.onnx", quiet=True)
    loaded, images = regard.load(file), unique_images(8)
    with running({"tiny": loaded}) as server:
        sent = asyncio.run(send_all(server.port, images, 8, "/v1/predict?threshold=0"))
        (described,) = server.ask("GET", "/v1/models").json()["models"]
    assert [one.reply.status for one in sent] == [200] * 8
    for one, expected in zip(sent, answers_to(loaded, [images[one.number] for one in sent]), strict=True):
        assert len(expected) > 0 and is_answer(one.reply, expected)
    assert [row["label"] for row in described["classes"]] == ["cat", "dog", "owl"] and not described["explanations"]
