"""Downloads against a small server on loopback whose faults the tests choose."""

import hashlib
import io
import multiprocessing
import os
import socket
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from refusals import refused
from regard.errors import CheckpointError, ConfigError, MachineError
from regard.weights.download import download, weights_folder

module = sys.modules[download.__module__]
CONTENT = bytes(range(256)) * 12_000  # 3 MB: several chunks
DIGEST = hashlib.sha256(CONTENT).hexdigest()
NAME = f"detr-r50-{DIGEST[:8]}.pth"


class Server(ThreadingHTTPServer):
    """Serves `content` at every path. `cuts`: number of bytes after which the next responses break off."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = CONTENT
        self.etag = '"one"'
        self.cuts: list[int] = []
        self.ranges: list[str | None] = []
        self.knows_ranges = True
        self.status = 0
        self.lock = threading.Lock()
        self.host = f"127.0.0.1:{self.server_address[1]}"
        self.url = f"http://{self.host}/weights/{NAME}?download=1"
        self.unchecked_url = f"http://{self.host}/model-v2.pth"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        server = self.server
        asked = self.headers.get("Range")
        with server.lock:
            server.ranges.append(asked)
            cut = server.cuts.pop(0) if server.cuts else None
        if server.status:
            return self.send_error(server.status)
        start = 0
        fresh = self.headers.get("If-Range") in (None, server.etag)
        if asked and server.knows_ranges and fresh:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            if start >= len(server.content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(server.content)}")
                return self.end_headers()
            self.send_response(206)
            last = len(server.content) - 1
            self.send_header("Content-Range", f"bytes {start}-{last}/{len(server.content)}")
        else:
            self.send_response(200)
        body = server.content[start:]
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", server.etag)
        self.end_headers()
        self.wfile.write(body if cut is None else body[:cut])
        return None

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("REGARD_OFFLINE", raising=False)
    monkeypatch.setattr(module, "_PAUSES", (0.01, 0.01, None))
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    """The folder of weights."""
    monkeypatch.setenv("REGARD_HOME", str(tmp_path / "home"))
    path = tmp_path / "home" / "weights"
    path.mkdir(parents=True)
    return path


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_downloads_once_and_leaves_nothing_else(server, folder):
    folder.rmdir()
    path = download(server.url)
    assert path == folder / NAME
    assert path.read_bytes() == CONTENT
    assert download(server.url) == path
    assert server.ranges == [None]
    assert files(folder) == [NAME]


def test_a_broken_connection_continues_where_it_stopped(server, folder):
    server.cuts = [1_000_000, 500_000]
    assert download(server.url).read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=1000000-", "bytes=1500000-"]


def test_gives_up_after_three_broken_connections_and_continues_in_the_next_run(server, folder):
    server.cuts = [1000, 1000, 1000]
    with refused(MachineError, "3000 of 3072000"):
        download(server.url)
    assert (folder / f"{NAME}.part").read_bytes() == CONTENT[:3000]
    assert download(server.url).read_bytes() == CONTENT
    assert server.ranges[-1] == "bytes=3000-"


def test_server_without_ranges_starts_again(server, folder):
    server.knows_ranges = False
    server.cuts = [1_000_000]
    assert download(server.url).read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=1000000-"]


def test_file_that_changes_between_two_tries_is_not_mixed(server, folder):
    """Without a checksum, only If-Range keeps the halves of two versions apart."""
    new = CONTENT[::-1]

    def replace(pause: float) -> None:
        server.content, server.etag = new, '"two"'

    server.cuts = [1_000_000]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module.time, "sleep", replace)
        path = download(server.unchecked_url)
    assert path.read_bytes() == new


@pytest.mark.parametrize("part", [b"\0" * 5000, b"\0" * len(CONTENT), b"\0" * (len(CONTENT) + 1)])
def test_wrong_part_of_an_earlier_run_is_dropped(server, folder, part):
    (folder / f"{NAME}.part").write_bytes(part)
    assert download(server.url).read_bytes() == CONTENT
    assert files(folder) == [NAME]


def test_part_that_no_checksum_can_prove_is_dropped(server, folder):
    (folder / "model-v2.pth.part").write_bytes(b"\0" * 5000)
    assert download(server.unchecked_url).read_bytes() == CONTENT


def test_complete_part_needs_no_server(folder):
    """A run that was killed between the last byte and the renaming."""
    (folder / f"{NAME}.part").write_bytes(CONTENT)
    assert download(f"http://127.0.0.1:1/{NAME}").read_bytes() == CONTENT


def test_wrong_hash_after_the_download(server, folder):
    server.content = CONTENT[:-1] + b"?"
    other = hashlib.sha256(server.content).hexdigest()
    with pytest.raises(CheckpointError) as caught:
        download(server.url)
    assert caught.value.code == "K05"
    assert other in str(caught.value) and DIGEST[:8] in str(caught.value) and "\n" not in str(caught.value)
    assert files(folder) == []
    assert len(server.ranges) == 1


def test_existing_good_file_needs_no_server_and_is_read_once(folder, monkeypatch):
    (folder / NAME).write_bytes(CONTENT)
    url = f"https://nowhere.invalid/{NAME}"
    assert download(url) == folder / NAME
    monkeypatch.setattr(hashlib, "file_digest", None)
    assert download(url) == folder / NAME


def test_existing_bad_file_stays_untouched(server, folder):
    (folder / NAME).write_bytes(CONTENT)
    download(server.url)
    (folder / NAME).write_bytes(b"mine")  # Also after it was found good in this process.
    with refused(CheckpointError, folder / NAME, "delete", code="K05"):
        download(server.url)
    assert (folder / NAME).read_bytes() == b"mine"
    assert server.ranges == []


def test_threads_download_once(server, folder):
    with ThreadPoolExecutor(6) as pool:
        paths = list(pool.map(lambda _: download(server.url), range(6)))
    assert set(paths) == {folder / NAME}
    assert server.ranges == [None]
    assert files(folder) == [NAME]


def test_processes_download_once(server, folder):
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=download, args=(server.url,)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(20)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert server.ranges == [None]
    assert files(folder) == [NAME]


def test_lock_of_a_killed_process_does_not_hold(server, folder):
    (folder / f"{NAME}.lock").touch()
    assert download(server.url).exists()


def test_offline_is_one_line_with_address_and_place(folder, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # Bound but not listening: refuses, and nobody else can take it.
        url = f"http://127.0.0.1:{free.getsockname()[1]}/{NAME}"
        with pytest.raises(MachineError) as caught:
            download(url)
    assert str(caught.value) == (
        f"cannot reach 127.0.0.1 (Connection refused) — download {url} on another machine and put it at {folder / NAME}"
    )
    assert files(folder) == []


def test_offline_by_choice(server, folder, monkeypatch):
    monkeypatch.setenv("REGARD_OFFLINE", "1")
    with refused(MachineError, "REGARD_OFFLINE", folder / NAME):
        download(server.url)
    assert server.ranges == [] and files(folder) == []


def test_silent_server_times_out(folder, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(module, "_TIMEOUT", 0.1)
    error = refused(MachineError, "127.0.0.1", "timed out")
    with socket.create_server(("127.0.0.1", 0)) as silent, error:
        download(f"http://127.0.0.1:{silent.getsockname()[1]}/{NAME}")


def test_redirect_out_of_encryption_is_refused(folder, monkeypatch):
    answer = type("Answer", (io.BytesIO,), {})(CONTENT)
    answer.url = f"http://elsewhere.invalid/{NAME}"
    monkeypatch.setattr(module, "urlopen", lambda request, timeout: answer)
    with refused(MachineError, "http://elsewhere"):
        download(f"https://host.invalid/{NAME}")
    assert answer.closed and files(folder) == []


@pytest.mark.parametrize(("status", "names"), [(404, ("404", "address")), (503, ("503", "later", NAME))])
def test_refusals_of_the_server(server, folder, status, names):
    server.status = status
    with refused(MachineError, *names, server.url):
        download(server.url)
    assert files(folder) == [] and len(server.ranges) == 1


def test_space_is_checked_before_the_first_byte(server, folder, monkeypatch):
    free = type("Usage", (), {"free": module._SPARE + len(CONTENT) - 1})
    monkeypatch.setattr(module.shutil, "disk_usage", lambda folder: free)
    with refused(MachineError, "19.8 MB", "REGARD_HOME", code="T05"):
        download(server.url)
    assert files(folder) == []


def test_full_disk_is_not_taken_for_a_broken_connection(server, folder):
    (folder / "model-v2.pth.part").symlink_to("/dev/full")
    with refused(MachineError, "No space left", folder / "model-v2.pth.part", code="T05"):
        module._Download(server.unchecked_url, folder / "model-v2.pth", "")._fetch()
    assert len(server.ranges) == 1


def test_folder_that_cannot_be_made(folder):
    folder.rmdir()
    folder.touch()
    with refused(MachineError, folder, "REGARD_HOME", code="T05"):
        download(f"http://127.0.0.1:1/{NAME}")


@pytest.mark.parametrize(
    "url",
    ["", "weights.pth", "ftp://host/a.pth", "file:///a.pth", "https://host/", "https://host/..", "https://host/%2e%2e", "http://[/a",
     "https://host/a%00b.pth", "https://host/a%0ab.pth", "https://host/ä.pth", "https://host/a%5cb.pth"],
)  # fmt: skip
def test_addresses_that_name_no_file(url, folder):
    with pytest.raises(ConfigError) as caught:
        download(url)
    assert caught.value.where == url and files(folder) == []


def test_name_of_the_address_cannot_leave_the_folder(server, folder):
    path = download(f"http://{server.host}/..%2f..%2f{NAME}")
    assert path == folder / NAME


def test_weights_folder(monkeypatch, folder, tmp_path):
    assert weights_folder() == folder
    monkeypatch.delenv("REGARD_HOME")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    assert weights_folder() == tmp_path / "torch" / "hub" / "checkpoints" == Path(torch.hub.get_dir()) / "checkpoints"


def test_file_of_torch_hub_is_used(monkeypatch, folder, server):
    """What `torch.hub.load_state_dict_from_url` downloaded is found under the same name."""
    monkeypatch.delenv("REGARD_HOME", raising=False)
    monkeypatch.setenv("TORCH_HOME", str(folder))
    torch.save({"a": torch.ones(3)}, folder / "w.pth")
    server.content = (folder / "w.pth").read_bytes()
    url = f"http://{server.host}/a-{hashlib.sha256(server.content).hexdigest()[:8]}.pth"
    torch.hub.load_state_dict_from_url(url, check_hash=True, progress=False)
    requests = len(server.ranges)
    assert download(url).read_bytes() == server.content
    assert len(server.ranges) == requests


def test_progress_bar_only_on_a_terminal(server, folder, capsys, monkeypatch):
    download(server.url).unlink()
    assert capsys.readouterr().err == f"downloading {server.url} to {folder / NAME}\n"
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "200")
    server.cuts = [1_000_000]
    download(server.url)
    shown = capsys.readouterr().err
    assert NAME in shown and "3.1/3.1 MB" in shown


def test_unchecked_name_is_not_taken_for_a_hash(server):
    path = download(server.unchecked_url)
    assert path.read_bytes() == CONTENT
    assert os.access(path, os.R_OK)
