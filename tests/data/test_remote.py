"""Shards at an address: what a folder of this machine gives, whatever fails for a while, and one line for the rest."""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import fsspec
import pytest
import torch
from fsspec import AbstractFileSystem
from fsspec.registry import _registry, known_implementations
from fsspec.spec import AbstractBufferedFile

from class_data import LABELS, members, pixels, png, write_shard, write_shards
from command_line import run
from file_server import FileServer, serving
from process_group import together
from refusals import refused
from regard.data import remote
from regard.data.class_images.dataset import ClassificationDataset, open_classification
from regard.data.generated.shapes import data_folder
from regard.data.remote import RemoteFolder
from regard.errors import ConfigError, DataError, MachineError
from regard.training.data_loader import Augmented, InfiniteBatchSampler, raise_errors, training_loader
from regard.training.distributed import Processes

CPU = torch.device("cpu")
FOLDER = "Bilder für alle"  # with a space and a letter beyond ASCII
pytestmark = pytest.mark.usefixtures("remote_folders")
forks = pytest.mark.skipif(sys.platform != "linux", reason="forks processes")


@pytest.fixture
def root(tmp_path) -> Path:
    """Nine training images in two shards, whose names are odd too, four for validation, and the classes' names."""
    folder = write_shards(tmp_path / "served" / FOLDER, ".tar")
    for path in folder.glob("train-*.tar"):
        path.rename(folder / f"größer 100% & mehr-{path.name}")
    return folder


@pytest.fixture
def server(root) -> Iterator[FileServer]:
    with serving(root.parent) as found:
        yield found


def in_memory(folder: Path, address: str = "memory://data") -> str:
    files = fsspec.filesystem("memory")
    for path in folder.iterdir():
        files.pipe(f"{address}/{path.name}", path.read_bytes())
    return address


def assert_same(found: ClassificationDataset, wanted: ClassificationDataset) -> None:
    assert found.fingerprint() == wanted.fingerprint()
    assert found.categories == wanted.categories and torch.equal(found.labels, wanted.labels)
    for index in range(len(wanted)):
        mine, other = found[index], wanted[index]
        assert torch.equal(mine.image, other.image) and mine.label == other.label
        assert mine.path.split("/")[-2:] == other.path.split("/")[-2:]  # train-0000.tar:ape, 0000.png


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("protocol", ["memory", "http", "file", "simplecache"])
def test_images_labels_and_order_are_those_of_the_folder(root, server, protocol, split):
    places = {
        "memory": lambda: in_memory(root, f"memory://{FOLDER}"),
        "http": lambda: f"{server.address}/{FOLDER}/",
        "file": lambda: f"file://{root}",
        "simplecache": lambda: f"simplecache::{server.address}/{FOLDER}",
    }
    found = open_classification(places[protocol](), split)
    assert len(found) == (9 if split == "train" else 4) and found.at_once == found.subset(3).at_once > 1
    assert_same(found, open_classification(root, split))
    assert_same(pickle.loads(pickle.dumps(found)), open_classification(root, split))


@pytest.mark.parametrize("address", ["memory://", "memory:///"])
def test_the_root_of_a_filesystem_is_no_folder_of_this_machine(tmp_path, monkeypatch, address):
    monkeypatch.chdir(write_shards(tmp_path / "here", ".tar"))
    with refused(DataError, address, "no shards", code="A48"):
        open_classification(address)
    root = write_shards(tmp_path / "data", ".tar")
    in_memory(root, "memory://")
    assert open_classification(address).labels.tolist() == open_classification(root).labels.tolist()
    with refused(DataError, "name the folder that holds it: memory://", code="A48"):
        open_classification("memory://train-0000.tar")


def test_without_labels_the_classes_are_those_of_the_members(tmp_path):
    root = tmp_path / "data"
    write_shard(root / "train.tar", {"dog/1.png": png(0), "cat/1.png": png(1)})
    data = open_classification(in_memory(root))
    assert [category.name for category in data.categories] == ["cat", "dog"] and data.labels.tolist() == [1, 0]


def test_an_image_is_one_range_and_members_are_listed_once(root, server):
    address = f"{server.address}/{FOLDER}"
    open_classification(address)
    server.asked.clear()
    data = open_classification(address)
    asked = [path.rpartition("/")[2] for path, _ in server.asked if path.count("/") > 1]  # one is redirected
    assert asked == ["", "labels.txt"]  # the folder, and the names of its classes
    server.asked.clear()
    data[3]
    start, size = data.images.offsets[3], data.images.sizes[3]
    assert [asked for _, asked in server.asked] == [f"bytes={start}-{start + size - 1}"]


class Slow(AbstractFileSystem):
    """Files of this machine, as a filesystem has them that is given `_fetch_range` alone: hf, ftp."""

    protocol = "slow"
    asked: ClassVar[list[int]] = []  # lengths in bytes

    def info(self, path, **_):
        return {"name": path, "type": "file", "size": Path(path).stat().st_size}

    def ls(self, path, detail=True, **_):
        return [self.info(str(file)) for file in Path(path).iterdir()]

    def _open(self, path, mode="rb", **more):
        return SlowFile(self, path, mode, **more)


class SlowFile(AbstractBufferedFile):
    def _fetch_range(self, start, end):
        Slow.asked.append(end - start)
        return Path(self.path).read_bytes()[start:end]


class Whole(Slow):
    """Sends the whole file for a range of no bytes."""

    protocol = "whole"

    def cat_file(self, path, start=None, end=None, **_):
        data = Path(path).read_bytes()
        return data[start:end] or data


def test_nothing_is_read_ahead_of_an_image(root, monkeypatch):
    monkeypatch.setitem(_registry, "slow", Slow)
    data = open_classification(f"slow://{root}")
    assert_same(data, open_classification(root))
    Slow.asked.clear()
    data[3]
    assert Slow.asked == [data.images.sizes[3]]


def test_listing_reads_blocks_that_are_as_long_as_needed(tmp_path, monkeypatch):
    """Images that are longer than a block are passed over."""
    monkeypatch.setattr(remote, "BLOCK", 1024)
    root = tmp_path / "data"
    noise = {f"{name}/1.png": os.urandom(200_000) for name in LABELS}
    write_shard(root / "train.tar", noise)
    with serving(root) as server:
        data = open_classification(server.address)
        ranges = [asked for _, asked in server.asked if asked is not None]
    assert data.images.offsets.tolist() == open_classification(root).images.offsets.tolist()
    assert len(ranges) < 15  # of 1024 bytes; the shard has 600


@pytest.mark.parametrize("protocol", ["memory", "http"])
def test_a_shard_that_changed_is_listed_again(tmp_path, protocol):
    """To the same size too: memory tells when a file was made, HTTP its Last-Modified."""
    root = write_shards(tmp_path / "data", ".tar")
    with serving(root) as server:
        address = in_memory(root) if protocol == "memory" else server.address
        before = open_classification(address)
        size = (root / "train-0001.tar").stat().st_size
        write_shard(root / "train-0001.tar", members(range(6, 10)))
        assert (root / "train-0001.tar").stat().st_size == size
        os.utime(root / "train-0001.tar", (1, 1))
        after = open_classification(in_memory(root) if protocol == "memory" else address)
        assert (before.labels.tolist()[5:], after.labels.tolist()[5:]) == ([2, 0, 1, 2], [0, 1, 2, 0])
        assert after.fingerprint() != before.fingerprint()
        assert torch.equal(after[5].image, torch.from_numpy(pixels(6)).permute(2, 0, 1))


# Faults


@pytest.mark.parametrize("what", ["the page", "labels.txt", "train-0000.tar", "an image"])
def test_what_fails_at_first_is_tried_again(tmp_path, what):
    root = write_shards(tmp_path / "data", ".tar")
    wanted = open_classification(root)
    with serving(root) as server:
        path = {"the page": "/", "an image": "/train-0000.tar"}.get(what, f"/{what}")
        data = open_classification(server.address) if what == "an image" else None
        server.fails[path] = remote.ATTEMPTS - 1
        data = data or open_classification(server.address)
        assert_same(data, wanted)
        assert server.fails[path] == 0


def test_a_range_that_is_cut_is_read_again(tmp_path):
    root = write_shards(tmp_path / "data", ".tar")
    with serving(root) as server:
        server.cuts["/train-0000.tar"] = 1
        data = open_classification(server.address)
        server.cuts["/train-0000.tar"] = 1
        assert_same(data, open_classification(root))
        server.cuts["/train-0000.tar"] = 1000
        with refused(MachineError, f"{server.address}/train-0000.tar:ape/0000.png", "bytes instead of", code="I33"):
            data[0]


@pytest.mark.parametrize("path", ["/", "/labels.txt", "/train-0000.tar"])
def test_what_always_fails_is_one_line(tmp_path, path):
    root = write_shards(tmp_path / "data", ".tar")
    with serving(root) as server:
        data = open_classification(server.address)
        server.fails[path] = 1000
        where = f"{server.address}{path}".rstrip("/")
        with refused(MachineError, where, "503", "6 attempts", code="I33"):
            open_classification(server.address) if path != "/train-0000.tar" else data[0]
        assert server.fails[path] == 1000 - remote.ATTEMPTS


def test_an_image_that_always_fails_is_named(tmp_path):
    root = write_shards(tmp_path / "data", ".tar")
    with serving(root) as server:
        data = open_classification(server.address)
        server.fails["/train-0001.tar"] = 1000
        with refused(MachineError, f" {server.address}/train-0001.tar:cow/0005.png ", "503", code="I33"):
            data[5]
    with refused(MachineError, "train-0000.tar:ape/0000.png", code="I33"):  # the server is gone
        data[0]


def test_a_damaged_image_is_one_line(tmp_path):
    write_shard(tmp_path / "data" / "train.tar", {"cat/1.png": png(1)[:-20], "dog/2.png": png(2)})
    data = open_classification(in_memory(tmp_path / "data"))
    with refused(DataError, "memory://data/train.tar:cat/1.png", code="I09"):
        data[0]


def test_an_empty_image_is_one_line_and_no_request(tmp_path, monkeypatch):
    """There is no range of no bytes: S3 answers what comes closest to one with the whole shard."""
    monkeypatch.setitem(_registry, "whole", Whole)
    root = tmp_path / "data"
    write_shard(root / "train.tar", {"cat/1.png": b"", "dog/2.png": png(2)})
    data = open_classification(f"whole://{root}")
    with refused(DataError, f"whole://{root}/train.tar:cat/1.png", "empty file", code="I01"):
        data[0]
    assert data[1].label == 1


def test_a_damaged_shard_is_one_line(tmp_path):
    root = write_shards(tmp_path / "data", ".tar")
    path = root / "train-0000.tar"
    path.write_bytes(path.read_bytes()[:700])
    with refused(DataError, "memory://data/train-0000.tar", "damaged"):
        open_classification(in_memory(root))


def test_a_server_without_ranges_is_one_line(tmp_path):
    root = write_shards(tmp_path / "data", ".tar")
    with serving(root, ranges=False) as server:
        data = open_classification(server.address)  # the shards are shorter than a block
        with refused(MachineError, f"{server.address}/train-0000.tar:ape/0000.png", "ignores ranges", code="I33"):
            data[0]
        assert (
            len([path for path, asked in server.asked if asked and path == "/train-0000.tar"]) == 2
        )  # not tried again


def test_folders_without_shards(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "cat.png").write_bytes(png(1))
    with serving(tmp_path) as server:
        for name, found in (("empty", "no file"), ("other", "cat.png")):
            for address in (f"{server.address}/{name}", f"file://{tmp_path}/{name}"):
                with refused(DataError, address, "train-*.tar", found, code="A48"):
                    open_classification(address)
        for address in (f"{server.address}/gone", f"file://{tmp_path}/gone", "memory://gone"):
            with refused(DataError, address, "no such folder", code="A48"):
                open_classification(address)
    write_shard(tmp_path / "half" / "train.tar", members(range(3)))
    with refused(DataError, "memory://half", "no split val", "train.tar"):
        open_classification(in_memory(tmp_path / "half", "memory://half"), "val")


def test_links_to_other_places_are_not_followed(tmp_path):
    """A page may link to anything; only names in the folder itself are its files."""
    write_shards(tmp_path / "data", ".tar")
    names = ["../else/train-0007.tar", "/train-0008.tar", "..%2Ftrain-0009.tar", "http://127.0.0.1:9/train-0005.tar"]
    links = [*names, "./train-0002.tar", *(path.name for path in (tmp_path / "data").iterdir())]
    page = tmp_path / "data" / "index.html"
    page.write_text("".join(f'<a href="{link}">{link}</a>\n' for link in links))
    with serving(tmp_path) as server:
        found = {file.name for file in RemoteFolder(f"{server.address}/data").iterdir()}
    assert found == {"train-0000.tar", "train-0001.tar", "train-0002.tar", "test-0000.tar", "labels.txt"}


@pytest.mark.parametrize("ending", [".tar.gz", ".tgz"])
def test_packed_shards_are_refused(tmp_path, ending):
    address = in_memory(write_shards(tmp_path / "data", ending))
    with refused(DataError, f"{address}/train-000", ending, "gunzip", code="A48"):
        open_classification(address)


def test_addresses_that_no_data_can_have(monkeypatch):
    with refused(ConfigError, "'htps'", "did you mean 'https'", code="C01"):
        open_classification("htps://bucket/data")
    with refused(DataError, "name the folder that holds it: memory://data", code="A48"):
        open_classification("memory://data/train-0000.tar")
    absent = {"class": "no_such_shop.Files", "err": "Install no_such_shop to go shopping"}
    monkeypatch.setitem(known_implementations, "shop", absent)
    with refused(MachineError, "shop:// needs no_such_shop", "pip install no_such_shop"):
        open_classification("shop://bucket/data")
    monkeypatch.setitem(known_implementations, "shop", {**absent, "class": "fsspec.no_such.Files"})
    with refused(MachineError, "shop://bucket/data", "Install no_such_shop"):
        open_classification("shop://bucket/data")
    with monkeypatch.context() as patch, refused(MachineError, "2025.9.1", "pip install 'fsspec>=2025.10'"):
        patch.setattr(fsspec, "__version__", "2025.9.1")
        open_classification("memory://data")
    monkeypatch.setenv("REGARD_OFFLINE", "1")
    with refused(DataError, "REGARD_OFFLINE", code="I33"):
        open_classification("http://127.0.0.1:9/data")


def test_a_protocol_whose_package_is_missing_names_it(monkeypatch):
    """http with aiohttp hidden."""
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    monkeypatch.delitem(sys.modules, "fsspec.implementations.http", raising=False)
    monkeypatch.delitem(_registry, "http", raising=False)
    with refused(MachineError, "http:// needs aiohttp", "pip install aiohttp"):
        open_classification("http://127.0.0.1:9/data")


# Processes


@forks
def test_parent_and_forked_processes_read_by_turns(tmp_path):
    """A connection that the parent has open must not be used, nor closed, by its children."""
    root = write_shards(tmp_path / "data", ".tar")
    wanted, context = open_classification(root), multiprocessing.get_context("fork")
    with serving(root) as server:
        data = open_classification(server.address)

        def read() -> None:
            gc.collect()  # what is forgotten here ends now, not at some time
            assert_same(data, wanted)

        for _ in range(2):
            assert_same(data, wanted)
            children = [context.Process(target=read) for _ in range(2)]
            for child in children:
                child.start()
            for child in children:
                child.join(timeout=30)
            assert [child.exitcode for child in children] == [0, 0]


@forks
@pytest.mark.parametrize("workers", [0, 2])
def test_three_processes_on_two_shards_see_each_image_once(tmp_path, monkeypatch, workers):
    """With one cache, and with workers of their own. A later start has the same order."""
    monkeypatch.setattr("regard.training.data_loader.worker_count", lambda wanted: wanted)
    root = write_shards(tmp_path / "data", ".tar")

    with serving(root) as server:

        def seen(group: Processes, _: Path, start: int = 0) -> list[list[str]]:
            data = Augmented(open_classification(server.address), lambda sample, _: sample.path, seed=1)
            order = InfiniteBatchSampler(len(data.dataset), 1, 1, group, start)
            batches = raise_errors(training_loader(data, order, list, workers, CPU))
            return [next(batches) for _ in range(3)]

        found = together(seen, tmp_path, 3)
        later = together(lambda group, folder: seen(group, folder, start=2), tmp_path, 3)
        names = [name for batches in found for (name,) in batches]
        assert sorted(names) == sorted(open_classification(server.address).images.path(index) for index in range(9))
        assert [batches[2] for batches in found] == [batches[0] for batches in later]


# Verbs


def test_check_and_show(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = write_shards(tmp_path / "data", ".tar")
    address = in_memory(root)
    said = run(capsys, "data", "check", address, "--json", tmp_path / "found.json").worked()
    assert said.startswith(run(capsys, "data", "check", root).worked().partition("\n")[0])
    assert f'"{address}"' in (tmp_path / "found.json").read_text()
    assert run(capsys, "data", "show", address).worked() == "data-sheet.png\n"
    write_shard(root / "train-0001.tar", {"cow/1.png": png(1)[:-20]})
    line = run(capsys, "data", "check", in_memory(root))
    assert line.code == 3 and "memory://data/train-0001.tar:cow/1.png" in line.out


def test_detection_data_are_read_from_folders(capsys, tmp_path):
    says = "detection data are read from folders — memory://data"
    run(capsys, "train", "detr_tiny", "--data", "memory://data").refused(3, "A64", says)
    run(capsys, "data", "convert", "memory://data", "--to", "coco", "--output", tmp_path / "o").refused(3, "A64", says)
    with refused(DataError, says, code="A64"):
        data_folder("memory://data")


def test_a_mistyped_protocol_is_answered_by_every_verb(capsys, tmp_path):
    for words in (["train", "resnet20", "--data"], ["train", "--data"], ["data", "check"], ["data", "show"]):
        run(capsys, *words, "s4://bucket/data").refused(2, "C01", "s4://bucket/data")
