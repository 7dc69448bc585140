"""Models by name, run and file; classes carried over by their names."""

from __future__ import annotations

import argparse
import hashlib
import http.server
import re
import shutil
import socket
import threading
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

import regard
from refusals import refused
from regard.errors import CheckpointError, ConfigError, MachineError
from regard.models.build import build, create
from regard.models.catalog import WEIGHTS, Weights, list_models, preset, table
from regard.models.configs import CONFIGS
from regard.models.configs.detr import DETRDemoConfig
from regard.models.detr import DETR
from regard.models.detr_demo import DETRDemo
from regard.structures.categories import COCO, Category
from regard.weights.detr import load_file, official_name, transfer
from regard.weights.load import best_checkpoint, load
from regard.weights.model_state import model_state
from run_files import PETS, SMALL, write_run


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch) -> Path:
    """Nothing of the user's, and no network beyond this machine."""
    connect = socket.socket.connect

    def guarded(self, address):
        assert isinstance(address, tuple) and address[0] == "127.0.0.1", f"connects to {address}"
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)
    monkeypatch.setattr(socket, "getaddrinfo", _local_only(socket.getaddrinfo))
    monkeypatch.setenv("REGARD_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def _local_only(look_up):
    def guarded(host, *rest, **options):
        assert host == "127.0.0.1", f"looks for {host}"
        return look_up(host, *rest, **options)

    return guarded


def official(net: DETR) -> dict[str, Tensor]:
    """The weights under the authors' names."""
    return {official_name(name): tensor for name, tensor in net.state_dict().items()}


@cache
def small_resnet(backbone: str = "resnet18") -> DETR:
    torch.manual_seed(5)
    # Eight heads as in the paper: the tensors do not tell how many.
    return DETR(replace(SMALL, backbone=backbone, num_queries=6, num_heads=8)).eval()


@pytest.fixture(scope="module")
def resnet18_file(tmp_path_factory) -> Path:
    """A file as the authors' training writes it."""
    path = tmp_path_factory.mktemp("weights") / "mine.pth"
    torch.save({"model": official(small_resnet()), "epoch": 3}, path)
    return path


@pytest.fixture(scope="module")
def resnet50_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "r50.pth"
    torch.save({"model": official(small_resnet("resnet50"))}, path)
    return path


# Names


def test_list_models():
    assert list_models() == sorted(CONFIGS) and "detr_resnet50" in list_models()
    assert list_models("detr_resnet50*") == [
        "detr_resnet50",
        "detr_resnet50_dc5",
        "detr_resnet50_dc5_panoptic",
        "detr_resnet50_panoptic",
    ]
    assert list_models("*dc5") == ["detr_resnet101_dc5", "detr_resnet50_dc5"]
    assert list_models("detr_tin?") == ["detr_tiny"]
    assert list_models("yolo*") == []
    assert regard.list_models is list_models


def test_create_needs_no_network(home):
    """One model of each family; the counts of parameters are of every one."""
    families = {type(preset(name)): name for name in list_models()}
    assert len(families) > 5
    for name in families.values():
        with torch.device("meta"):
            net = create(name, num_classes=4)
        assert net.card.name == name and net.config.num_classes == 4
    assert not home.exists()


def test_create_is_random_and_of_the_right_size():
    net = create("detr_tiny")
    outputs = net.class_embed.out_features
    assert outputs == 91  # sigmoid: no place for no-object
    with torch.device("meta"):
        assert create("detr_resnet18").class_embed.out_features == 92
        assert create("detr_resnet18", num_classes=2).class_embed.out_features == 3
        parameters = sum(p.numel() for p in create("detr_resnet50").parameters())
        trained = sum(p.numel() for p in create("detr_resnet50").parameters() if p.requires_grad)
    assert (parameters, trained) == (41_524_768, 41_302_368)  # 41.3 M in table 1 of the paper


@pytest.mark.parametrize(("call", "code"), [(create, "C01"), (load, "K01")])
def test_unknown_names(call, code):
    with refused(ConfigError, "'detr_resnet5'", "did you mean", "detr_resnet50", code=code) as caught:
        call("detr_resnet5")
    assert caught.value.exit_code == 2
    with refused(ConfigError, "'yolo'", "regard models", code=code):
        call("yolo")
    with refused(ConfigError, "'yolo*'", code="C01"):
        table("yolo*")


def test_wrong_number_of_classes():
    with refused(ConfigError, "num_classes is 0", code="C08"):
        create("detr_tiny", num_classes=0)
    with refused(ConfigError, "3 categories", "4 classes"):
        build(replace(SMALL, num_classes=4), "mine", PETS)


def test_card_has_coco():
    """The classes of COCO by their ids, as torchvision has them."""
    from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

    theirs = FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
    with torch.device("meta"):
        card = create("detr_resnet50").card
    assert len(theirs) == len(card.categories) == 91
    for label, (category, name) in enumerate(zip(card.categories, theirs, strict=True)):
        assert category.id == label
        assert category.name == (f"unused {label}" if name in ("N/A", "__background__") else name)
    assert len({category.name for category in COCO}) == 91
    assert (card.short_side, card.max_size) == (800, 1333)
    assert [c.name for c in create("detr_tiny", num_classes=2).card.categories] == ["0", "1"]


# Released weights by name


def test_offline(monkeypatch, home):
    monkeypatch.setenv("REGARD_OFFLINE", "1")
    with pytest.raises(MachineError) as caught:
        load("detr_resnet50")
    line = caught.value.line
    assert caught.value.exit_code == 6 and "\n" not in line
    assert "https://dl.fbaipublicfiles.com/detr/detr-r50-e632da11.pth" in line
    assert str(home / "weights" / "detr-r50-e632da11.pth") in line
    assert not home.exists()


def test_no_released_weights():
    with refused(ConfigError, "regard train detr_tiny", code="K01"):
        load("detr_tiny")


def released(path: Path, monkeypatch, address: str) -> Weights:
    """Let `detr_resnet18` have released weights: the file at `path`, under a name with its hash."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    weights = Weights(f"{address}/detr-r18-{digest}.pth")
    monkeypatch.setitem(WEIGHTS, "detr_resnet18", weights)
    return weights


def test_by_name_from_the_cache(resnet18_file, monkeypatch, home):
    monkeypatch.setenv("REGARD_OFFLINE", "1")
    weights = released(resnet18_file, monkeypatch, "https://example.org")
    (home / "weights").mkdir(parents=True)
    shutil.copy(resnet18_file, home / "weights" / weights.file_name)
    net = regard.load("detr_resnet18")
    assert net.card.name == "detr_resnet18" and not net.training
    assert_same_outputs(net, small_resnet())


def test_a_damaged_file_in_the_cache(resnet18_file, monkeypatch, home):
    weights = released(resnet18_file, monkeypatch, "https://example.org")
    (home / "weights").mkdir(parents=True)
    path = home / "weights" / weights.file_name
    path.write_bytes(resnet18_file.read_bytes()[:-1] + b"!")
    with refused(CheckpointError, path, code="K05"):
        load("detr_resnet18")
    assert path.exists()


def test_by_name_over_the_network_once(resnet18_file, monkeypatch, home):
    asked = []

    class Server(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            data = resnet18_file.read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        weights = released(resnet18_file, monkeypatch, f"http://127.0.0.1:{server.server_port}")
        first, second = load("detr_resnet18"), load("detr_resnet18")
        server.shutdown()
    assert asked == [f"/{weights.file_name}"]
    assert [path.name for path in (home / "weights").iterdir()] == [weights.file_name]
    assert_same_outputs(first, second)


def test_published_numbers_and_file_names():
    assert set(WEIGHTS) <= set(CONFIGS)
    for weights in WEIGHTS.values():
        assert weights.url.startswith("https://") != bool(weights.package)
        has_hash = re.search(r"-[0-9a-f]{8,64}\.pth$", weights.file_name) is not None
        assert has_hash != weights.file_name.startswith("deit_3_")
        assert all(20 < score < 98 for score in weights.scores.values())


# Files


def assert_same_outputs(net, other) -> None:
    torch.manual_seed(0)
    images = [torch.randn(3, 64, 96), torch.randn(3, 80, 64)]
    with torch.no_grad():
        ours, theirs = net(images), other(images)
    assert torch.equal(ours.logits, theirs.logits) and torch.equal(ours.boxes, theirs.boxes)


def test_a_file_of_the_authors_training(resnet18_file):
    net = load(resnet18_file)
    assert isinstance(net, DETR) and not net.training
    assert net.config == small_resnet().config
    assert_same_outputs(net, small_resnet())
    assert net.card.name == "detr_resnet18"
    assert [c.name for c in net.card.categories] == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("file_name", "model", "dilation"),
    [("my.pth", None, False), ("my.pth", "detr_resnet50_dc5", True), ("detr-r50-dc5-f0fb7ef5.pth", None, True)],
)  # fmt: skip
def test_dilation_is_told_by_name(resnet50_file, tmp_path, file_name, model, dilation):
    path = tmp_path / file_name
    path.symlink_to(resnet50_file)
    net = load(path, model=model)
    assert net.config.dilation is dilation and net.config.backbone == "resnet50"
    assert net.card.name == ("detr_resnet50_dc5" if dilation else "detr_resnet50")


def test_a_model_that_the_file_is_not(resnet18_file):
    for model in ("detr_resnet34", "detr_demo", "detr_tiny"):
        with refused(CheckpointError, "resnet18", model, resnet18_file, code="K07"):
            load(resnet18_file, model=model)
    with refused(ConfigError, "'detr_resnet18'", code="C01"):
        load(resnet18_file, model="detr_resnet1")


def test_demo_file(tmp_path):
    with torch.device("meta"):
        demo = DETRDemo(DETRDemoConfig()).half()  # as released
    tensors = {name: torch.zeros_like(tensor, device="cpu") for name, tensor in demo.state_dict().items()}
    tensors["query_pos"] = torch.rand(100, 256).half()
    torch.save(tensors, tmp_path / "demo.pth")
    net = load(tmp_path / "demo.pth")
    assert isinstance(net, DETRDemo) and net.card.name == "detr_demo" and net.card.categories == COCO
    assert torch.equal(net.query_pos, tensors["query_pos"].float())


def test_safetensors(tmp_path):
    from safetensors.torch import save_file

    net = small_resnet()
    save_file(official(net), tmp_path / "w.safetensors")
    assert torch.equal(load(tmp_path / "w.safetensors").class_embed.weight, net.class_embed.weight)


@pytest.mark.parametrize(
    ("name", "content", "code"),
    [("a.pth", b"<!DOCTYPE html>", "K06"), ("a.pth", b"", "K03"), ("a.safetensors", b"12", "K04"),
     ("notes.txt", b"hello there, this is text", "K06"), ("weights", b"hello there, this is text", "K06"),
     ("a.pth", {"fc.weight": torch.zeros(3, 4)}, "K07"), ("a.pth", {"epoch": 3}, "K06"), ("a.pth", [1], "K06")],
)  # fmt: skip
def test_wrong_files(tmp_path, name, content, code):
    path = tmp_path / name
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    before = path.read_bytes()
    with pytest.raises(CheckpointError) as caught:
        load(path)
    assert caught.value.code == code and str(path) in caught.value.line and caught.value.exit_code == 4
    assert path.read_bytes() == before


def test_missing_files_and_folders(tmp_path):
    (tmp_path / "mine.pth").write_bytes(b"")
    with refused(CheckpointError, tmp_path / "mien.pth", "mine.pth", code="K01"):
        load(tmp_path / "mien.pth")
    with refused(CheckpointError, tmp_path, code="K02"):
        load(tmp_path)
    with refused(ConfigError, "runs/none", code="K01"):
        load("runs/none")
    with refused(ConfigError, "'none'", "regard models", code="K01"):
        load("none")


def test_weights_of_another_shape(tmp_path):
    tensors = official(small_resnet())
    tensors["bbox_embed.layers.0.bias"] = torch.zeros(3)
    torch.save(tensors, tmp_path / "odd.pth")
    with refused(CheckpointError, "bbox_embed.layers.0.bias (3,)", "(16,)", code="K07"):
        load_file(tmp_path / "odd.pth")
    tensors = {name.replace("layer1", "layer7"): tensor for name, tensor in official(small_resnet()).items()}
    torch.save(tensors, tmp_path / "other.pth")
    with pytest.raises(CheckpointError) as caught:
        load_file(tmp_path / "other.pth")
    assert caught.value.code == "K07"


# Runs


def test_a_run_gives_its_best_checkpoint(tmp_path):
    net = build(SMALL, "mine", PETS, (40, 60))
    write_run(tmp_path / "run", net, {2: 0.1, 4: 0.3, 6: 0.2})
    assert best_checkpoint(tmp_path / "run").name == "step_4"
    found = load(tmp_path / "run")
    assert found.class_embed.bias.tolist() == [4.0] * 4 and not found.training
    assert found.card == net.card and found.config == SMALL
    newest = load(tmp_path / "run" / "checkpoints" / "step_6")
    assert newest.class_embed.bias.tolist() == [6.0] * 4


@pytest.mark.parametrize("name", ["mobilenetv1_100", "resnet10t"])
@torch.no_grad()
def test_a_run_keeps_the_normalisation_of_its_backbone(monkeypatch, tmp_path, name):
    """Also if another version of timm states another one; older checkpoints were trained with ImageNet's."""
    timm = pytest.importorskip("timm")
    net = build(replace(SMALL, backbone=f"timm/{name}"), "mine", PETS).eval()
    write_run(tmp_path / "run", net, {2: 0.1})
    pixels = [torch.rand(3, 64, 96)]
    expected = net(pixels).boxes
    other = replace(timm.get_pretrained_cfg(name), mean=(0.1, 0.2, 0.3))
    monkeypatch.setattr(timm, "get_pretrained_cfg", lambda _: other)
    loaded = load(tmp_path / "run")
    torch.testing.assert_close(loaded(pixels).boxes, expected)
    fresh = build(replace(SMALL, backbone=f"timm/{name}"), "mine", PETS).eval()
    transfer(loaded, fresh)
    torch.testing.assert_close(fresh(pixels).boxes, expected)

    earlier = {key: value for key, value in model_state(net).items() if key != "normalization"}
    monkeypatch.setattr("run_files.model_state", lambda _: earlier)
    write_run(tmp_path / "earlier", net, {2: 0.1})
    net.backbone.normalization = None
    torch.testing.assert_close(load(tmp_path / "earlier")(pixels).boxes, net(pixels).boxes)


def test_the_average_is_preferred(tmp_path):
    write_run(tmp_path / "run", build(SMALL, "mine", PETS), {2: 0.1}, average=True)
    assert load(tmp_path / "run").class_embed.bias.tolist() == [2.5] * 4


def test_a_file_of_a_checkpoint(tmp_path):
    write_run(tmp_path / "run", build(SMALL, "mine", PETS), {2: 0.1})
    part = tmp_path / "run" / "checkpoints" / "step_2" / "model.safetensors"
    with refused(CheckpointError, part, f": {part.parent}", code="K06"):
        load(part)
    part.write_bytes(part.read_bytes()[:-1] + b"!")
    with pytest.raises(CheckpointError) as caught:
        load(part.parent)
    assert caught.value.code == "K05"


# Other classes


def make(names: list[str], seed: int, **changes) -> DETR:
    torch.manual_seed(seed)
    categories = [Category(i, name) for i, name in enumerate(names)]
    return build(replace(SMALL, num_classes=len(names), **changes), f"model {seed}", categories)


def test_transfer_by_class_name():
    source, net = make(["cat", "dog", "owl", "cow"], 1), make(["owl", "fox", "cat"], 2)
    random = net.class_embed.weight[1].clone()
    note = transfer(source, net)
    assert note == "started from model 1; 3 classes, 2 of them known by name"
    for ours, theirs in ((net.class_embed.weight, source.class_embed.weight),
                         (net.class_embed.bias, source.class_embed.bias)):  # fmt: skip
        assert torch.equal(ours[0], theirs[2]) and torch.equal(ours[2], theirs[0])
        assert torch.equal(ours[3], theirs[4])  # no-object, the last
    assert torch.equal(net.class_embed.weight[1], random)
    for name, tensor in net.state_dict().items():
        if not name.startswith("class_embed."):
            assert torch.equal(tensor, source.state_dict()[name]), name


def test_transfer_of_as_many_classes_in_another_order():
    source, net = make(["cat", "dog"], 1), make(["dog", "cat"], 2)
    assert transfer(source, net).endswith("2 classes, 2 of them known by name")
    assert torch.equal(net.class_embed.weight, source.class_embed.weight[[1, 0, 2]])


def test_transfer_of_the_same_classes():
    source, net = make(["cat", "dog"], 1), make(["cat", "dog"], 2)
    assert transfer(source, net) == "started from model 1; 2 classes"
    assert all(torch.equal(a, b) for a, b in zip(source.state_dict().values(), net.state_dict().values(), strict=True))


def test_transfer_with_denoising():
    later = {"anchors": True, "sigmoid": True, "denoising_groups": 2}
    source, net = make(["cat", "dog", "owl"], 1, **later), make(["fox", "owl"], 2, **later)
    fox = net.class_embed.weight[0].clone()
    transfer(source, net)
    assert torch.equal(net.class_embed.weight[0], fox)
    assert torch.equal(net.class_embed.weight[1], source.class_embed.weight[2])  # nothing is no-object here
    assert torch.equal(net.query_embed.labels.weight[1], source.query_embed.labels.weight[2])


@pytest.mark.parametrize("count", [3, 9])
def test_transfer_to_more_or_fewer_queries(count):
    source = make(["cat", "dog"], 1)
    had = source.config.num_queries
    net = make(["cat", "dog"], 2, num_queries=count)
    fresh = net.query_embed.weight.clone()
    assert transfer(source, net).endswith(f", {min(count, had)} of {count} queries")
    assert torch.equal(net.query_embed.weight[: min(count, had)], source.query_embed.weight[:count])
    assert torch.equal(net.query_embed.weight[had:], fresh[had:])


def test_transfer_of_groups_of_queries():
    """Rows are group after group: a query stays the first of its group, and new groups stay new."""
    kept = {"anchors": True, "sigmoid": True}
    source = make(["cat"], 1, num_queries=4, query_groups=2, **kept)
    net = make(["cat"], 2, num_queries=6, query_groups=3, **kept)
    fresh = net.query_embed.anchors.weight.clone()
    assert transfer(source, net) == "started from model 1; 1 class, 4 of 6 queries"
    ours, theirs = net.query_embed.anchors.weight, source.query_embed.anchors.weight
    for group in range(2):
        assert torch.equal(ours[6 * group : 6 * group + 4], theirs[4 * group : 4 * group + 4])
        assert torch.equal(ours[6 * group + 4 : 6 * group + 6], fresh[6 * group + 4 : 6 * group + 6])
    assert torch.equal(ours[12:], fresh[12:])
    assert torch.equal(net.query_embed.content.weight[:4], source.query_embed.content.weight[:4])


def test_arguments_of_a_training_checkpoint(tmp_path):
    """Heads and dilation leave no trace in tensors."""
    net = DETR(replace(SMALL, backbone="resnet50", dilation=True, num_heads=4)).eval()
    arguments = argparse.Namespace(nheads=4, dilation=True, lr=1e-4)
    torch.save({"model": official(net), "args": arguments, "epoch": 3}, tmp_path / "checkpoint.pth")
    loaded = regard.load(tmp_path / "checkpoint.pth")
    assert (loaded.config.num_heads, loaded.config.dilation) == (4, True)
    x = [torch.randn(3, 64, 64)]
    with torch.no_grad():
        assert torch.equal(loaded(x).boxes, net(x).boxes)


@pytest.mark.parametrize("arguments", [{"nheads": "many"}, {"nheads": [8], "dilation": 3}, {"nheads": True}, [1]])
def test_odd_arguments_of_a_training_checkpoint(tmp_path, arguments):
    torch.save({"model": official(small_resnet()), "args": arguments}, tmp_path / "checkpoint.pth")
    assert load(tmp_path / "checkpoint.pth").config == small_resnet().config


def test_arguments_that_are_not_those_of_the_model(resnet50_file, tmp_path):
    torch.save({"model": official(small_resnet("resnet50")), "args": {"dilation": True}}, tmp_path / "dc5.pth")
    assert load(tmp_path / "dc5.pth").card.name == "detr_resnet50_dc5"
    with refused(CheckpointError, "resnet50, dilated", "detr_resnet50", code="K07"):
        load(tmp_path / "dc5.pth", model="detr_resnet50")


@pytest.mark.parametrize("changes", [{"anchors": True}, {"backbone": "small"}])
def test_our_own_weights_without_their_settings(tmp_path, changes):
    net = DETR(replace(SMALL, **{"backbone": "resnet18", **changes}))
    torch.save(net.state_dict(), tmp_path / "mine.pth")
    with refused(CheckpointError, tmp_path / "mine.pth", "run", code="K07"):
        load(tmp_path / "mine.pth")


def test_our_own_names_load(tmp_path):
    net = small_resnet()
    torch.save(net.state_dict(), tmp_path / "mine.pth")
    loaded = regard.load(tmp_path / "mine.pth")
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), loaded.state_dict().values(), strict=True))


@pytest.mark.parametrize(
    ("changes", "says"),
    [({"num_heads": 1}, "num_heads"), ({"decoder_layers": 3}, "decoder.layers.2"),
     ({"norm_first": True}, "norm_first"), ({"decoder_layers": 1}, "decoder_layers 2, not 1"),
     ({"embed_dim": 32}, "transformer."), ({"sigmoid": True}, "softmax and sigmoid")],
)  # fmt: skip
def test_transfer_to_another_model(changes, says):
    source, net = make(["cat", "dog", "owl"], 1), make(["cat", "fox"], 2, **changes)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with refused(CheckpointError, "model 1", "model 2", says, code="K07") as caught:
        transfer(source, net)
    assert len(caught.value.line) < 500
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
