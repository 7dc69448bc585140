"""Answers over HTTP equal those of `regard.predict` and `regard.explain` on the same bytes."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("fastapi", reason="fastapi is not installed")
pytest.importorskip("uvicorn", reason="uvicorn is not installed")

from pycocotools import mask as coco_masks

import regard
from detr_cases import randomized
from image_files import encode, exif, scene
from refusals import refused
from regard.data.images import decode_image
from regard.errors import ConfigError
from regard.explanations.explain import explain_stack
from regard.models.configs.detr import DETRConfig
from regard.models.exported import exported_network
from regard.serving.app import PATHS
from regard.serving.options import ServingOptions
from regard.serving.page_files import page_files
from regard.serving.schema import EXAMPLES
from regard.serving.sources import named_sources
from regard.structures.categories import Category, ModelCard
from regard.structures.image_batch import ImageBatch
from run_files import small_detector
from served import Reply, form, running

IMAGES = [encode(scene(seed), kind) for seed, kind in ((1, "JPEG"), (2, "PNG"), (3, "WEBP"))]
CONFIG = DETRConfig(
    num_classes=3, backbone="small", embed_dim=16, num_heads=2, encoder_layers=1, decoder_layers=2,
    feedforward_dim=16, num_queries=6, masks=True,
)  # fmt: skip
CLASSES = (Category(1, "cat"), Category(5, "dog"), Category(9, "grass", is_thing=False))


def masked(*, panoptic: bool):
    net = randomized(CONFIG)
    net.card = ModelCard("masked", CLASSES, 32, 64, panoptic=panoptic)
    return net


def as_exported(net):
    """The network as `regard.load` gives it from an ONNX file, computed by torch: an export takes long."""

    def compute(inputs):
        output = net(ImageBatch(inputs["pixels"], tuple(inputs["pixels"].shape[-2:] for _ in inputs["pixels"])))
        return {"logits": output.logits, "boxes": output.boxes}

    return exported_network(compute, ["pixels", "padding"], net.config, net.card)


@pytest.fixture(scope="module")
def nets():
    torch.manual_seed(0)
    return {
        "boxes": small_detector(),
        "masks": masked(panoptic=False),
        "panoptic": masked(panoptic=True),
        "deit": regard.create("deit_nano_distilled_patch4_32", num_classes=7).eval(),
        "augmented": regard.create("aa_resnet20", num_classes=4).eval(),
        "onnx": as_exported(small_detector()),
    }


@pytest.fixture(scope="module")
def server(nets):
    with running(nets) as started:
        yield started


def one(reply: Reply) -> dict:
    assert reply.status == 200, reply
    (result,) = reply.json()["results"]
    return result


def offline(net, data: bytes, **options):
    return regard.predict(net, decode_image(data, name="image"), **options)


@pytest.mark.parametrize("name", ["boxes", "onnx", "masks"])
@pytest.mark.parametrize("data", IMAGES, ids=["jpeg", "png", "webp"])
def test_detections(server, nets, name, data):
    found = one(server.post(f"/v1/predict?model={name}&threshold=0", data))
    expected = offline(nets[name], data, threshold=0)
    assert found["size"] == {"height": 36, "width": 52} and len(expected) > 0
    for row, wanted in zip(found["detections"], expected.to_dicts(), strict=True):
        assert (row["label"], row["label_id"]) == (wanted["label"], wanted["label_id"])
        assert row["score"] == pytest.approx(wanted["score"], abs=1e-6)
        assert row["box"] == pytest.approx(wanted["box"], abs=1e-4)  # pixels
    assert [row["query"] for row in found["detections"]] == expected.queries.tolist()
    if name == "masks":
        masks = np.stack([decoded(row["mask"]) for row in found["detections"]])
        assert np.array_equal(masks, expected.masks.numpy())


def decoded(mask: dict) -> np.ndarray:
    return coco_masks.decode({"size": mask["size"], "counts": mask["counts"].encode()}).astype(bool)


def test_segments(server, nets):
    data = IMAGES[0]
    expected = offline(nets["panoptic"], data, threshold=0.3)
    found = one(server.post("/v1/predict?model=panoptic&threshold=0.3", data))["segments"]
    assert len(found) == len(expected) > 0
    for row, wanted, mask in zip(found, expected.to_dicts(), expected.masks, strict=True):
        assert {key: row[key] for key in wanted} == pytest.approx(wanted)
        assert np.array_equal(decoded(row["mask"]), mask.numpy())
        scores = offline(replaced(nets["panoptic"]), data, threshold=0.0)
        assert row["score"] == pytest.approx(scores.scores[scores.queries == row["query"]].item())


def replaced(net):
    """The same network with boxes as its results."""
    other = masked(panoptic=False)
    other.load_state_dict(net.state_dict())
    return other


def test_classes(server, nets):
    found = one(server.post("/v1/predict?model=deit&top=3", IMAGES[0]))
    wanted = offline(nets["deit"], IMAGES[0]).to_dicts(3)
    assert [row["label"] for row in found["classes"]] == [row["label"] for row in wanted]
    assert [row["score"] for row in found["classes"]] == pytest.approx([row["score"] for row in wanted])


def test_several_images_are_answered_in_order(server, nets):
    results = server.post("/v1/predict?model=augmented&top=4", *form(*IMAGES)).json()["results"]
    for result, data in zip(results, IMAGES, strict=True):
        wanted = offline(nets["augmented"], data).to_dicts()
        assert [row["label_id"] for row in result["classes"]] == [row["label_id"] for row in wanted]
        assert [row["score"] for row in result["classes"]] == pytest.approx([row["score"] for row in wanted], abs=1e-6)


def test_the_orientation_of_cameras_is_undone(server):
    turned = encode(Image.fromarray(scene(1)), "JPEG", exif=exif(6))
    assert one(server.post("/v1/predict", turned))["size"] == {"height": 52, "width": 36}


def test_the_first_model_answers_if_none_is_named(server):
    assert server.post("/v1/predict", IMAGES[0]).json()["model"] == "boxes"
    assert server.ask("GET", "/v1/model").json()["name"] == "boxes"
    assert server.ask("GET", "/v1/model?model=deit").json()["tokens"] == ["class", "distillation"]


def test_options_that_a_model_does_not_take(server):
    assert server.post("/v1/predict?model=deit&multi_label=true", IMAGES[0]).status == 400
    assert server.post("/v1/explain?model=onnx", IMAGES[0]).status == 400
    assert server.post("/v1/attention?model=onnx", IMAGES[0]).status == 400
    assert server.post("/v1/explain?model=augmented&threshold=0.5", IMAGES[0]).status == 400


@pytest.mark.parametrize(
    ("name", "query", "options"),
    [
        ("boxes", "threshold=0", {"threshold": 0}),
        ("boxes", "what=heads&query=2&layer=0", {"what": "heads", "query": 2, "layer": 0}),
        ("boxes", "what=encoder&x=9&y=20&head=1", {"what": "encoder", "point": (9, 20), "head": 1}),
        ("boxes", "what=relevance&query=1", {"what": "relevance", "query": 1}),
        ("deit", "", {}),
        ("deit", "what=relevance", {"what": "relevance"}),
        ("augmented", "what=heads&x=20&y=20", {"what": "heads", "point": (20, 20)}),
    ],
)
def test_explanations(server, nets, name, query, options):
    expected = regard.explain(nets[name], decode_image(IMAGES[0], name="image"), **options)
    found = server.post(f"/v1/explain?model={name}&{query}", IMAGES[0]).json()
    assert found["what"] == expected.what and len(found["maps"]) == len(expected.maps) > 0
    for row, wanted in zip(found["maps"], expected.maps, strict=True):
        torch.testing.assert_close(torch.tensor(row["weights"]), wanted.weights, atol=1e-5, rtol=1e-4)
        assert (row["title"], row["extent"]) == (wanted.title, pytest.approx(wanted.extent))
    picture = Image.open(io.BytesIO(server.post(f"/v1/explain?model={name}&{query}&format=png", IMAGES[0]).body))
    assert picture.format == "PNG" and picture.size == expected.plot().size


def test_nothing_to_explain_tells_the_best_that_was_found(server):
    found = server.post("/v1/explain?threshold=1", IMAGES[0]).json()
    assert found["maps"] == [] and 0 < found["rejected"]["score"] < 1
    assert server.post("/v1/explain?threshold=1&format=png", IMAGES[0]).status == 400


@pytest.mark.parametrize(
    ("name", "query", "options"),
    [
        ("boxes", "query=3", {"query": 3}),
        ("boxes", "x=9&y=20", {"point": (9, 20)}),
        ("deit", "token=1", {"token": 1}),
        ("augmented", "", {}),
    ],
)
def test_attention_in_all_layers_and_heads(server, nets, name, query, options):
    expected = explain_stack(nets[name], decode_image(IMAGES[0], name="image"), **options)
    found = server.post(f"/v1/attention?model={name}&{query}", IMAGES[0]).json()
    told = server.ask("GET", f"/v1/model?model={name}").json()["attention"][expected.source]
    assert [(row["name"], row["shape"][0]) for row in found["layers"]] == [(row["name"], row["heads"]) for row in told]
    for row, layer in zip(found["layers"], expected.layers, strict=True):
        weights = np.frombuffer(base64.b64decode(row["data"]), "<f4").reshape(row["shape"])
        np.testing.assert_allclose(weights, layer.weights.numpy(), rtol=1e-4, atol=1e-6)


def test_what_is_told_of_models(server, nets):
    models = {model["name"]: model for model in server.ask("GET", "/v1/models").json()["models"]}
    assert list(models) == list(nets)
    tasks = [model["task"] for model in models.values()]
    assert tasks == ["detection", "detection", "segmentation", "classification", "classification", "detection"]
    boxes = models["boxes"]
    assert [row["label"] for row in boxes["classes"]] == ["cat", "dog", "owl"] and boxes["queries"] == 5
    assert boxes["attention"]["query"] == [{"name": "decoder 0", "heads": 2}, {"name": "decoder 1", "heads": 2}]
    assert models["onnx"]["explanations"] == [] and models["onnx"]["attention"] == {}
    for name, model in models.items():  # what is offered works
        for kind in model["explanations"]:
            asked = server.post(f"/v1/explain?model={name}&what={kind['what']}", IMAGES[0])
            assert asked.status == 200, (name, kind, asked)


def test_the_description_of_the_interface(server):
    described = server.ask("GET", "/openapi.json").json()
    assert set(described["paths"]) == set(PATHS)
    for path, examples in EXAMPLES.items():
        operation = described["paths"][path]["post"]
        assert "image/*" in operation["requestBody"]["content"] and {"400", "413", "422", "503"} <= set(
            operation["responses"]
        )
        assert set(operation["responses"]["200"]["content"]["application/json"]["examples"]) == set(examples)
    found = one(server.post("/v1/predict?model=masks&threshold=0", IMAGES[0]))
    example = EXAMPLES["/v1/predict"]["detection"]["results"][0]
    assert set(found) == set(example) and set(found["detections"][0]) - {"mask"} == set(example["detections"][0])
    for path, kind, query in (("/v1/explain", "json", ""), ("/v1/attention", "query", "query=0")):
        assert set(server.post(f"{path}?{query}", IMAGES[0]).json()) == set(EXAMPLES[path][kind])


def test_figures_for_prometheus(server):
    before = server.metric('regard_requests_total{path="/v1/predict",status="200"}')
    server.post("/v1/predict", IMAGES[0])
    assert server.metric('regard_requests_total{path="/v1/predict",status="200"}') == before + 1
    assert server.metric('regard_batch_images_count{model="boxes"}') > 0
    assert server.metric('regard_admitted_images{model="boxes"}') == 0


def test_the_page_is_served_from_memory(server):
    for name, file in page_files().items():
        reply = server.ask("GET", f"/{name}")
        assert reply.body == file.content and reply.headers["content-type"] == file.media_type
    page = server.ask("GET", "/")
    assert page.body == page_files()["index.html"].content
    assert b"http://" not in page.body and b"https://" not in page.body


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
def test_what_watches_over_the_server_may_ask_for_the_head_alone(server, path):
    reply = server.ask("HEAD", path)
    assert reply.status == 200 and reply.body == b""


def test_request_ids(server):
    assert server.ask("GET", "/healthz", headers={"X-Request-ID": "job-7.a"}).headers["x-request-id"] == "job-7.a"
    assert server.ask("GET", "/healthz", headers={"X-Request-ID": "x" * 99}).headers["x-request-id"] != "x" * 99


def test_names_of_models(tmp_path):
    file = tmp_path / "best.onnx"
    file.touch()
    found = named_sources([str(tmp_path), f"mine={file}", str(file), "detr_resnet50"])
    assert found == {
        tmp_path.name: str(tmp_path),
        "mine": str(file),
        "best": str(file),
        "detr_resnet50": "detr_resnet50",
    }
    with refused(ConfigError, "two models", code="C09"):
        named_sources(["a=x.pth", "a=y.pth"])
    with refused(ConfigError, "regard serve 'a-2=my runs/y'", code="C09"):
        named_sources(["a=x.pth", "a=my runs/y"])
    with refused(ConfigError, code="C02"):
        named_sources(["a b=x.pth"])
    with refused(ConfigError, "regard serve 'model=my run'", code="C02"):
        named_sources(["my run"])
    folder = tmp_path / "lr=1"
    folder.mkdir()
    assert named_sources([f"mine={folder}"]) == {"mine": str(folder)}


@pytest.mark.parametrize(
    ("wrong", "code"),
    [({"port": -1}, "C03"), ({"port": 70000}, "C03"), ({"batch_size": 0}, "C03"), ({"timeout": 0.0}, "C03"),
     ({"queue": 3}, "C09"), ({"max_megabytes": 0}, "C03")],
)  # fmt: skip
def test_options_out_of_range(wrong, code):
    with refused(ConfigError, next(iter(wrong)), code=code):
        replace(ServingOptions(), **wrong).check()


def test_answers_are_json_without_nan(server):
    body = server.post("/v1/predict?threshold=0", IMAGES[0]).body
    json.loads(body, parse_constant=lambda name: pytest.fail(name))
