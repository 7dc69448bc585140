"""`regard predict --engine ray`: the answers of one process, each image once, whatever is killed on the way.

`uv run --extra ray pytest -m slow tests/prediction/test_ray_engine.py -s` prints the times.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from command_line import run
from photo_folder import write_photos
from ray_nodes import Nodes, can_make_namespaces, two_nodes
from refusals import refused
from regard.errors import ConfigError, MachineError
from regard.prediction import files, ray_engine
from regard.prediction.files import predict_files
from regard.prediction.job import Image, Order, Written
from regard.prediction.options import JobOptions, PredictionOptions
from regard.prediction.ray_engine import _rows
from run_files import small_detector, write_run

IMAGES, SOME = 2000, 600
BROKEN = 177
SHAPES = ((320, 480), (480, 320), (360, 360))


class Cluster:
    """What `_rows` asks of the package ray. It refuses what Ray does, and computes nothing."""

    def __init__(self, gpus: int, error: Exception | None = None) -> None:
        self.gpus = gpus
        self.error = error
        self.asked: dict[str, Any] = {}
        self.data = SimpleNamespace(from_items=lambda items, override_num_blocks: self, ActorPoolStrategy=dict)

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 8.0, "GPU": float(self.gpus)}

    def put(self, order: Order) -> Order:
        return order

    def map_batches(self, _: type, **asked: Any) -> Cluster:
        if asked["num_gpus"] and not isinstance(asked["batch_size"], int):
            raise ValueError("You must provide `batch_size` to `map_batches` when requesting GPUs.")
        if asked["num_gpus"] and asked["num_cpus"]:
            raise ValueError("It is not allowed to specify both num_cpus and num_gpus for map tasks.")
        self.asked = asked
        return self

    def iter_batches(self, **_: object) -> Iterator[Any]:
        if self.error is not None:
            raise self.error
        return iter(())


def rows_of(cluster: Cluster, model: Any, device: str) -> list[dict[str, Any]]:
    order = Order(model, PredictionOptions(), None, {}, None)
    return list(_rows(cluster, order, [(number, Path("a.jpg")) for number in range(40)], device, "repeat it"))


@pytest.mark.parametrize(
    ("model", "device", "taken"),
    [("net", "auto", "cuda"), ("net", "cuda", "cuda"), ("net", "cpu", "cpu"), (Path("a.onnx"), "auto", "cpu")],
)
def test_the_device_of_actors_on_a_cluster_with_gpus(model, device, taken):
    cluster = Cluster(gpus=2)
    assert rows_of(cluster, model, device) == []
    assert cluster.asked["fn_constructor_args"][1] == taken
    assert cluster.asked["num_gpus"] == (1 if taken == "cuda" else None)
    assert cluster.asked["compute"]["max_size"] == (2 if taken == "cuda" else 3)  # 40 images are three blocks


def test_errors_of_ray_are_one_line():
    for error in (ValueError("no such\nblock"), RuntimeError("lost"), OSError(5, "broken")):
        with refused(MachineError, type(error).__name__, "ray status", "repeat it"):
            rows_of(Cluster(gpus=0, error=error), "net", "auto")
    ours = ConfigError("a setting", code="C03")
    with refused(ConfigError, code="C03"):
        rows_of(Cluster(gpus=0, error=ours), "net", "auto")
    with refused(MachineError, "device=cuda", code="C10"):
        rows_of(Cluster(gpus=0), "net", "cuda")


def test_an_order_is_sent_without_the_rows_that_are_recorded(tmp_path, monkeypatch):
    photos, net = write_photos(tmp_path / "photos", 6, ((40, 60),)), small_detector()
    sent: list[int] = []

    def as_an_actor_does(order: Order, todo: Sequence[Image], written: Written, device: str) -> Iterator[str]:
        assert order.writer is not None
        sent.append(len(order.writer.rows))
        work = order.prepare("cpu")
        for batch in work.batches(todo):
            for image, done in zip(batch, work.on(batch, todo), strict=True):
                yield from written.add(todo[image.number], done)

    monkeypatch.setattr(files, "predict_on_ray", as_an_actor_does)
    options = PredictionOptions(threshold=0.0)
    for name, jobs in (("plain", ["local"]), ("found", ["0/2", "ray"])):
        for job in jobs:
            chosen = JobOptions(shard=job) if "/" in job else JobOptions(engine=job)
            target = tmp_path / f"{name}.json"
            list(predict_files(net, photos, json_file=target, options=options, batch_size=1, job=chosen))
    assert sent == [0]
    assert (tmp_path / "found.json").read_bytes() == (tmp_path / "plain.json").read_bytes()


def test_without_records_the_remedy_does_not_say_that_it_goes_on(monkeypatch):
    monkeypatch.setattr(ray_engine, "_cluster", lambda: nullcontext(Cluster(gpus=0)))
    order = Order("net", PredictionOptions(), None, {}, None)
    with refused(MachineError, "lost 1 of 1 image", "with --json or --parquet"):
        list(ray_engine.predict_on_ray(order, [(0, Path("a.jpg"))], Written({}, None, None), "cpu"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """2,000 photographs of three shapes, one of which cannot be read, a run, and what one process says."""
    pytest.importorskip("ray")
    folder = tmp_path_factory.mktemp("ray")
    write_run(folder / "run", small_detector(), {1: 0.5})
    write_photos(folder / "photos", IMAGES, SHAPES, ".jpg")
    image_path(folder, BROKEN).write_bytes(b"\xff\xd8\xff\xe0")
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", *words(folder, "plain", IMAGES)], capture_output=True, text=True, cwd=folder
    )
    assert done.returncode == 3 and f"{BROKEN:04}.jpg" in done.stderr
    print(f"\none process: {time.monotonic() - started:.0f} s")
    return folder


@pytest.fixture(scope="module")
def nodes(folder) -> Iterator[Nodes]:
    if not can_make_namespaces():
        pytest.skip("network namespaces need root")
    with two_nodes() as nodes:
        yield nodes


def image_path(folder: Path, number: int) -> Path:
    return folder / "photos" / f"{number:04}.jpg"


def words(folder: Path, name: str, images: int, model: str = "run") -> list[str]:
    """The arguments of Python. One image a batch: products of other shapes would differ in the last digits."""
    pattern = "*" if images == IMAGES else f"0[0-{images // 100 - 1}]*.jpg"
    return ["regard", "predict", str(folder / model), str(folder / "photos" / pattern), "--threshold", "0",
            "--batch-size", "1", "--device", "cpu", "--json", str(folder / f"{name}.json")]  # fmt: skip


def predict(
    nodes: Nodes,
    command: list[str],
    output: Path,
    meanwhile: Callable[[subprocess.Popen[bytes]], object] | None = None,
) -> list[str]:
    """Run a command on the first node, `meanwhile` once it has told 200 images; return the lines of its streams."""
    started = time.monotonic()
    driver = nodes.run([*command, "--engine", "ray"], output=output)
    while meanwhile is not None and driver.poll() is None and output.read_bytes().count(b"\n") < 200:
        time.sleep(0.1)
    if meanwhile is not None:
        told = output.read_bytes().count(b"\n")
        print(f"{output.stem}: killed after {time.monotonic() - started:.0f} s and {told} images: {meanwhile(driver)}")
    driver.wait()
    print(f"{output.stem}: {time.monotonic() - started:.0f} s, exit code {driver.returncode}")
    return output.read_text().splitlines() + output.with_suffix(".err").read_text().splitlines()


def told(lines: list[str]) -> dict[str, int]:
    """How often each image has a line."""
    return dict(Counter(line.split(": ")[0] for line in lines if ".jpg: " in line and not line.startswith("error")))


def good(folder: Path, images: int) -> dict[str, int]:
    return {str(image_path(folder, number)): 1 for number in range(images) if number != BROKEN}


def assert_same(folder: Path, name: str, images: int) -> None:
    """The rows are those of one process, to the last bit."""
    found, plain = (json.loads((folder / f"{stem}.json").read_text()) for stem in (name, "plain"))
    assert found == [row for row in plain if row["image_id"] <= images]
    print(f"{name}: {len(found)} rows of {len({row['image_id'] for row in found})} images are equal")
    assert not (folder / f"{name}.json.parts").exists()


@pytest.mark.slow
def test_one_worker_is_killed_on_the_way(nodes, folder):
    killed: list[int] = []
    command = words(folder, "worker", IMAGES)
    lines = predict(
        nodes, command, folder / "worker.out", lambda driver: killed.extend(nodes.kill(1, "ray::MapWorker")) or killed
    )
    assert len(killed) == 1
    assert told(lines) == good(folder, IMAGES)
    (error,) = (line for line in lines if line.startswith("error"))
    assert image_path(folder, BROKEN).name in error
    assert_same(folder, "worker", IMAGES)
    assert (folder / "worker.json").read_bytes() == (folder / "plain.json").read_bytes()


@pytest.mark.slow
def test_the_command_is_killed_and_goes_on(nodes, folder):
    command = words(folder, "driver", SOME)
    before = told(predict(nodes, command, folder / "driver.out", lambda driver: driver.kill()))
    lines = predict(nodes, command, folder / "again.out")
    (note,) = (line for line in lines if line.endswith("are done already"))
    print(note)
    assert int(note.split()[0]) + len(told(lines)) == SOME - 1
    assert not before.keys() & told(lines).keys()
    assert_same(folder, "driver", SOME)


@pytest.mark.slow
def test_an_error_of_a_worker_is_one_line(nodes, folder):
    net = small_detector()
    with torch.no_grad():
        first = net.bbox_embed.layers[0].weight
        first.copy_(first.sign() * 3e38)  # finite, and its products are not
    write_run(folder / "diverged", net, {1: 0.5})
    lines = predict(nodes, words(folder, "diverged", 100, model="diverged"), folder / "diverged.out")
    print(lines)
    (line,) = lines
    assert line.startswith("error") and "not finite" in line


@pytest.mark.slow
@pytest.mark.parametrize("address", ["127.0.0.1:9", "nowhere.invalid:6379"])
def test_an_address_where_nothing_answers(folder, capsys, monkeypatch, address):
    monkeypatch.setenv("RAY_ADDRESS", address)
    words = ["predict", folder / "run", image_path(folder, 0), "--threshold", "0", "--engine", "ray"]
    run(capsys, *words).refused(6, None, address)
    run(capsys, *words, "--device", "cuda:1").refused(2, "C09", "cuda:1")


@pytest.mark.slow
def test_a_machine_is_lost_on_the_way(nodes, folder):
    """The last test: the node does not come back."""
    command = words(folder, "machine", SOME)
    lines = predict(nodes, command, folder / "machine.out", lambda driver: len(nodes.kill(1)))
    assert told(lines) == good(folder, SOME)
    assert_same(folder, "machine", SOME)
