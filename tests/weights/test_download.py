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

from regard.errors import CheckpointError, ConfigError, MachineError
from regard.weights.download import download, weights_folder

module = sys.modules[download.__module__]
CONTENT = bytes(range(256)) * 12_000  # 3 MB: several chunks
DIGEST = hashlib.sha256(CONTENT).hexdigest()
NAME = f"detr-r50-{DIGEST[:8]}.pth"


class Server(ThreadingHTTPServer):
    """Serves `content` at every path. `cuts`: after how many bytes the next answers break off."""

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


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_downloads_once_and_leaves_nothing_else(server, tmp_path):
    folder = tmp_path / "new" / "folder"
    path = download(server.url, folder=folder)
    assert path == folder / NAME
    assert path.read_bytes() == CONTENT
    assert download(server.url, folder=folder) == path
    assert server.ranges == [None]
    assert files(folder) == [NAME]


def test_file_url(tmp_path, monkeypatch):
    monkeypatch.setenv("REGARD_OFFLINE", "1")
    (tmp_path / NAME).write_bytes(CONTENT)
    assert download((tmp_path / NAME).as_uri(), folder=tmp_path / "w").read_bytes() == CONTENT
    with pytest.raises(CheckpointError, match=r"No such file.*nothing\.pth"):
        download((tmp_path / "nothing.pth").as_uri(), folder=tmp_path / "w")


def test_a_cut_connection_goes_on_where_it_stopped(server, tmp_path):
    server.cuts = [1_000_000, 500_000]
    assert download(server.url, folder=tmp_path).read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=1000000-", "bytes=1500000-"]


def test_gives_up_after_three_cuts_and_goes_on_in_the_next_run(server, tmp_path):
    server.cuts = [1000, 1000, 1000]
    with pytest.raises(MachineError, match=r"connection broke 3 times after 0\.0 MB .*3000 of 3072000") as caught:
        download(server.url, folder=tmp_path)
    assert "\n" not in str(caught.value)
    assert (tmp_path / f"{NAME}.part").read_bytes() == CONTENT[:3000]
    assert download(server.url, folder=tmp_path).read_bytes() == CONTENT
    assert server.ranges[-1] == "bytes=3000-"


def test_server_without_ranges_starts_again(server, tmp_path):
    server.knows_ranges = False
    server.cuts = [1_000_000]
    assert download(server.url, folder=tmp_path).read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=1000000-"]


def test_file_that_changes_between_two_tries_is_not_mixed(server, tmp_path):
    """Without a checksum, only If-Range keeps the halves of two versions apart."""
    new = CONTENT[::-1]

    def replace(pause: float) -> None:
        server.content, server.etag = new, '"two"'

    server.cuts = [1_000_000]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module.time, "sleep", replace)
        path = download(server.url, sha256_prefix="", folder=tmp_path)
    assert path.read_bytes() == new


@pytest.mark.parametrize("part", [b"\0" * 5000, b"\0" * len(CONTENT), b"\0" * (len(CONTENT) + 1)])
def test_wrong_part_of_an_earlier_run_is_dropped(server, tmp_path, part):
    (tmp_path / f"{NAME}.part").write_bytes(part)
    assert download(server.url, folder=tmp_path).read_bytes() == CONTENT
    assert files(tmp_path) == [NAME]


def test_part_that_no_checksum_can_prove_is_dropped(server, tmp_path):
    (tmp_path / f"{NAME}.part").write_bytes(b"\0" * 5000)
    assert download(server.url, sha256_prefix="", folder=tmp_path).read_bytes() == CONTENT


def test_complete_part_needs_no_server(tmp_path):
    """A run that was killed between the last byte and the renaming."""
    (tmp_path / f"{NAME}.part").write_bytes(CONTENT)
    assert download(f"http://127.0.0.1:1/{NAME}", folder=tmp_path).read_bytes() == CONTENT


def test_wrong_hash_after_the_download(server, tmp_path):
    server.content = CONTENT[:-1] + b"?"
    other = hashlib.sha256(server.content).hexdigest()
    with pytest.raises(CheckpointError) as caught:
        download(server.url, folder=tmp_path)
    assert caught.value.code == "K05"
    assert other in str(caught.value) and DIGEST[:8] in str(caught.value) and "\n" not in str(caught.value)
    assert files(tmp_path) == []
    assert len(server.ranges) == 1


def test_given_prefix_goes_before_the_name(server, tmp_path):
    with pytest.raises(CheckpointError, match="expected 0123456789"):
        download(server.url, sha256_prefix="0123456789", folder=tmp_path)
    assert download(server.url, sha256_prefix=DIGEST.upper(), folder=tmp_path).exists()


def test_existing_good_file_needs_no_server_and_is_read_once(tmp_path, monkeypatch):
    (tmp_path / NAME).write_bytes(CONTENT)
    url = f"https://nowhere.invalid/{NAME}"
    assert download(url, folder=tmp_path) == tmp_path / NAME
    monkeypatch.setattr(module.hashlib, "file_digest", None)
    assert download(url, folder=tmp_path) == tmp_path / NAME


def test_existing_bad_file_stays_untouched(server, tmp_path):
    (tmp_path / NAME).write_bytes(CONTENT)
    download(server.url, folder=tmp_path)
    (tmp_path / NAME).write_bytes(b"mine")  # Also after it was found good in this process.
    with pytest.raises(CheckpointError, match=r"checksum mismatch.*delete the file and try again") as caught:
        download(server.url, folder=tmp_path)
    assert caught.value.line.startswith("error[K05]") and str(tmp_path / NAME) in str(caught.value)
    assert (tmp_path / NAME).read_bytes() == b"mine"
    assert server.ranges == []


def test_threads_download_once(server, tmp_path):
    with ThreadPoolExecutor(6) as pool:
        paths = list(pool.map(lambda _: download(server.url, folder=tmp_path), range(6)))
    assert set(paths) == {tmp_path / NAME}
    assert server.ranges == [None]
    assert files(tmp_path) == [NAME]


def test_processes_download_once(server, tmp_path):
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=download, args=(server.url,), kwargs={"folder": tmp_path}) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(20)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert server.ranges == [None]
    assert files(tmp_path) == [NAME]


def test_lock_of_a_killed_process_does_not_hold(server, tmp_path):
    (tmp_path / f"{NAME}.lock").touch()
    assert download(server.url, folder=tmp_path).exists()


def test_offline_is_one_line_with_address_and_place(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # Bound but not listening: refuses, and nobody else can take it.
        url = f"http://127.0.0.1:{free.getsockname()[1]}/{NAME}"
        with pytest.raises(MachineError) as caught:
            download(url, folder=tmp_path)
    assert str(caught.value) == (
        "cannot reach 127.0.0.1 (Connection refused) — "
        f"download {url} on another machine and put it at {tmp_path / NAME}"
    )
    assert files(tmp_path) == []


def test_offline_by_choice(server, tmp_path, monkeypatch):
    monkeypatch.setenv("REGARD_OFFLINE", "1")
    with pytest.raises(MachineError, match=f"REGARD_OFFLINE forbids.*put it at {tmp_path / NAME}"):
        download(server.url, folder=tmp_path)
    assert server.ranges == [] and files(tmp_path) == []


def test_silent_server_times_out(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(module, "_TIMEOUT", 0.1)
    error = pytest.raises(MachineError, match=r"cannot reach .*timed out")
    with socket.create_server(("127.0.0.1", 0)) as silent, error:
        download(f"http://127.0.0.1:{silent.getsockname()[1]}/{NAME}", folder=tmp_path)


def test_redirect_out_of_encryption_is_refused(tmp_path, monkeypatch):
    answer = type("Answer", (io.BytesIO,), {})(CONTENT)
    answer.url = f"http://elsewhere.invalid/{NAME}"
    monkeypatch.setattr(module, "urlopen", lambda request, timeout: answer)
    with pytest.raises(MachineError, match="unencrypted address — http://elsewhere"):
        download(f"https://host.invalid/{NAME}", folder=tmp_path)
    assert answer.closed and files(tmp_path) == []


@pytest.mark.parametrize(("status", "text"), [(404, "404 Not Found.*check the address"), (503, "503.*later")])
def test_refusals_of_the_server(server, tmp_path, status, text):
    server.status = status
    with pytest.raises(MachineError, match=text) as caught:
        download(server.url, folder=tmp_path)
    assert server.url in str(caught.value)
    assert files(tmp_path) == [] and len(server.ranges) == 1


def test_space_is_checked_before_the_first_byte(server, tmp_path, monkeypatch):
    free = type("Usage", (), {"free": module._SPARE + len(CONTENT) - 1})
    monkeypatch.setattr(module.shutil, "disk_usage", lambda folder: free)
    with pytest.raises(MachineError, match=r"no space: .* needs 19\.8 MB, 19\.8 MB are free") as caught:
        download(server.url, folder=tmp_path)
    assert caught.value.code == "T05"
    assert files(tmp_path) == []


def test_full_disk_is_not_taken_for_a_broken_connection(server, tmp_path, monkeypatch):
    (tmp_path / f"{NAME}.part").symlink_to("/dev/full")
    monkeypatch.setattr(module, "_sha256", lambda path: "")
    with pytest.raises(MachineError, match=r"cannot write \(No space left on device\)"):
        module._fetch(server.url, tmp_path / f"{NAME}.part", tmp_path / NAME)
    assert len(server.ranges) == 1


def test_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(MachineError, match=r"cannot write .*REGARD_HOME"):
        download(f"http://127.0.0.1:1/{NAME}", folder=tmp_path / "file" / "weights")


@pytest.mark.parametrize(
    "url",
    ["", "weights.pth", "ftp://host/a.pth", "https://host/", "https://host/..", "https://host/%2e%2e", "http://[/a",
     "https://host/a%00b.pth", "https://host/a%0ab.pth", "https://host/ä.pth", "https://host/a%5cb.pth"],
)  # fmt: skip
def test_addresses_that_name_no_file(url, tmp_path):
    with pytest.raises(ConfigError, match="not the https, http or file address"):
        download(url, folder=tmp_path)


def test_name_of_the_address_cannot_leave_the_folder(server, tmp_path):
    path = download(f"http://{server.host}/..%2f..%2f{NAME}", folder=tmp_path)
    assert path == tmp_path / NAME


def test_weights_folder(monkeypatch, tmp_path):
    monkeypatch.delenv("REGARD_HOME", raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    assert weights_folder() == tmp_path / "torch" / "hub" / "checkpoints"
    assert weights_folder() == Path(torch.hub.get_dir()) / "checkpoints"
    monkeypatch.setenv("REGARD_HOME", str(tmp_path / "home"))
    assert weights_folder() == tmp_path / "home" / "weights"


def test_file_of_torch_hub_is_used(monkeypatch, tmp_path, server):
    """What `torch.hub.load_state_dict_from_url` downloaded is found under the same name."""
    monkeypatch.delenv("REGARD_HOME", raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    torch.save({"a": torch.ones(3)}, tmp_path / "w.pth")
    server.content = (tmp_path / "w.pth").read_bytes()
    url = f"http://{server.host}/a-{hashlib.sha256(server.content).hexdigest()[:8]}.pth"
    torch.hub.load_state_dict_from_url(url, check_hash=True, progress=False)
    requests = len(server.ranges)
    assert download(url).read_bytes() == server.content
    assert len(server.ranges) == requests


def test_progress_bar_only_on_a_terminal(server, tmp_path, capsys, monkeypatch):
    download(server.url, folder=tmp_path / "a")
    assert capsys.readouterr().err == f"downloading {server.url} to {tmp_path / 'a' / NAME}\n"
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "200")
    server.cuts = [1_000_000]
    download(server.url, folder=tmp_path / "b")
    shown = capsys.readouterr().err
    assert NAME in shown and "3.1/3.1 MB" in shown


def test_unchecked_name_is_not_taken_for_a_hash(server, tmp_path):
    path = download(f"http://{server.host}/model-v2.pth", folder=tmp_path)
    assert path.read_bytes() == CONTENT
    assert os.access(path, os.R_OK)
