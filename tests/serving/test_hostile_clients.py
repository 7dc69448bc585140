"""Thirty ways to mistreat a server, S01 to S30, each with its answer: a status, one line, and a server that goes on."""

from __future__ import annotations

import json
import logging
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("fastapi", reason="fastapi is not installed")
pytest.importorskip("uvicorn", reason="uvicorn is not installed")

from command_line import run
from image_corpus import bad_images
from image_files import encode, scene
from refusals import refused as raises
from regard.errors import ConfigError, MachineError
from regard.models.detr import DETR
from regard.serving import bodies, guard
from regard.serving.options import ServingOptions
from regard.serving.protocol import Protocol
from regard.serving.served import ServedModel
from regard.serving.server import begin_to_listen, listen
from regard.structures.categories import ModelCard
from regard.structures.outputs import DetectionOutput
from run_files import PETS, SMALL, small_detector, write_run
from served import Running, form, post, running, wait_until

JPEG = encode(scene(1), "JPEG")
CHUNKED = "POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"


class Puppet(DETR):
    """A detector that a test holds, breaks and watches: `gate`, `failure` by the brightest pixel, and `batches`."""

    def __init__(self) -> None:
        super().__init__(SMALL)
        self.card = ModelCard("puppet", PETS, short_side=32, max_size=64)
        self.gate = threading.Event()
        self.gate.set()
        self.batches: list[int] = []
        self.failure: str | None = None

    def forward(self, images, targets=None, *, masks=None) -> DetectionOutput:
        self.gate.wait(30)
        self.batches.append(len(images))
        if self.failure == "raises":
            raise ValueError("a bug\nwith /secret/path")
        if self.failure == "ends":
            raise SystemExit
        output = super().forward(images, targets, masks=masks)
        return output._replace(boxes=output.boxes * torch.nan) if self.failure == "nan" else output


@pytest.fixture(scope="module")
def puppet() -> Puppet:
    torch.manual_seed(0)
    return Puppet().eval()


@pytest.fixture(scope="module")
def server(puppet):
    nets = {"mine": small_detector(), "puppet": puppet}
    with running(nets, max_megabytes=1, max_megapixels=1, max_images=4, queue=4, batch_size=2, timeout=20) as started:
        yield started


@pytest.fixture(autouse=True)
def healthy(request):
    """Whatever a client did: the server answers the next one, is ready, and keeps nothing of the first."""
    yield
    if "server" not in request.fixturenames:
        return
    server = request.getfixturevalue("server")
    assert server.post("/v1/predict", JPEG).status == 200
    wait_until(lambda: server.ask("GET", "/readyz").status == 200)
    wait_until(lambda: all(worker.admitted == 0 for worker in server.server.service.workers))
    wait_until(lambda: server.server.service.budget.used == 0)


def refused(reply, status: int, *says: str) -> str:
    """The line of an error, which is one line and tells nothing of this machine."""
    assert reply.status == status, reply
    error = reply.error
    assert set(error) == {"code", "message", "request_id"} and error["request_id"] == reply.headers["x-request-id"]
    line = error["message"]
    assert line.isprintable() and "Traceback" not in line and "/work" not in line and ".py" not in line, line
    for text in says:
        assert text in line, line
    return line


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def test_S01_body_above_the_limit(server):
    large = bytes(1024**2 + 1)
    refused(server.post("/v1/predict", large), 413, "1 MB")
    chunks = b"".join(b"%x\r\n%s\r\n" % (2**16, bytes(2**16)) for _ in range(17)) + b"0\r\n\r\n"
    assert status(server.raw(CHUNKED.format(path="/v1/predict").encode() + chunks)) == 413
    gzip = server.ask("POST", "/v1/predict", JPEG, {"Content-Type": "image/jpeg", "Content-Encoding": "gzip"})
    refused(gzip, 415, "compressed")


@pytest.mark.parametrize("length", ["-1", "abc", "1, 2", "0x10", "9" * 30])
def test_S02_length_that_is_no_number(server, length):
    request = f"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n"
    assert status(server.raw(request.encode())) == 400


def test_S03_body_that_does_not_come(server, monkeypatch):
    ten_gigabytes = b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10000000000\r\n\r\nhello"
    monkeypatch.setattr(guard, "LINGER_SECONDS", 0.1)
    assert status(server.raw(ten_gigabytes)) == 413
    monkeypatch.setattr(bodies, "READ_SECONDS", 0.2)
    announced = b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nhello"
    assert status(server.raw(announced)) == 408


def test_S04_chunked_body(server):
    chunks = b"%x\r\n%s\r\n0\r\n\r\n" % (len(JPEG), JPEG)
    request = CHUNKED.format(path="/v1/predict").encode() + chunks
    answer = server.raw(request)
    assert status(answer) == 200 and answer.count(b"HTTP/1.1") == 1
    assert status(server.raw(CHUNKED.format(path="/v1/predict").encode() + b"zz\r\n")) == 400
    assert status(server.raw(CHUNKED.format(path="/v1/nothing").encode() + b"5\r\nhello\r\nzz\r\n")) in (400, 404)


def test_S05_length_and_chunks_together(server):
    hidden = b"0\r\n\r\nGET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
    answer = server.raw(post("/v1/predict", hidden, "Transfer-Encoding: chunked"))
    assert status(answer) == 400 and answer.count(b"HTTP/1.1") == 1  # the rest is no request of its own


def test_S06_slow_clients(server, monkeypatch):
    monkeypatch.setattr(Protocol, "header_seconds", 1.0)
    before = threading.active_count()
    slow = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(40)]
    for connection in slow:
        connection.sendall(b"POST /v1/predict HTTP/1.1\r\nHost: lo")
    assert server.post("/v1/predict", JPEG).status == 200
    assert threading.active_count() == before
    for connection in slow:
        connection.settimeout(20)
        assert status(connection.recv(1000)) == 408
        connection.close()
    monkeypatch.setattr(Protocol, "max_connections", 3)
    many = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(10)]
    answers = []
    for connection in many:
        connection.settimeout(20)
        answers.append(connection.recv(1000))
        connection.close()
    assert {status(answer) for answer in answers} == {408, 503}


@pytest.mark.parametrize(
    "query",
    ["threshold=NaN", "threshold=2", "threshold=high", "tresh=1", "top=0", "segments=all", "multi_label=perhaps",
     "threshold=1e999", "top=" + "9" * 5000, "a[b]=" + "[" * 3000],
)  # fmt: skip
def test_S07_wrong_options(server, query):
    refused(server.post(f"/v1/predict?{query}", JPEG), 400, query.split("=")[0].split("[")[0])


def test_S08_content_type(server):
    for kind in ("text/plain", "application/json", "application/x-www-form-urlencoded", "multipart/mixed; boundary=x"):
        refused(server.post("/v1/predict", JPEG, kind), 415, "expected image/jpeg")
    for kind in ("image/jpeg", "image/png", "application/octet-stream", None):  # the content decides
        assert server.post("/v1/predict", JPEG, kind).status == 200


# Without those that are large, or refused for a limit of pixels of their own.
BAD = [bad for bad in bad_images() if len(bad.data) < 2**20 and bad.max_pixels >= 1000]


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: bad.id)
def test_S09_what_is_no_image(server, bad):
    reply = server.post("/v1/predict", bad.data)
    line = refused(reply, 422)
    assert reply.error["code"] == bad.code or "pixels" in line  # the server's limit of pixels is lower


def test_S10_too_many_parts(server):
    refused(server.post("/v1/predict", *form(*[JPEG] * 5)), 413, "4 images")
    refused(server.post("/v1/predict", *form(*[b""] * 10_000)), 413)
    header = b'--XX\r\nContent-Disposition: form-data; name="a"; filename="b"\r\nA: ' + b"x" * 10_000
    refused(server.post("/v1/predict", header + b"\r\n\r\nabc\r\n--XX--\r\n", form()[1]), 400, "malformed")
    many = b'--XX\r\nContent-Disposition: form-data; filename="b"' + b"\r\nA: 1" * 1000
    refused(server.post("/v1/predict", many + b"\r\n\r\nabc\r\n--XX--\r\n", form()[1]), 400, "malformed")


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "malformed"),
        (b"--XX--\r\n", "no image"),
        (b"--XX\r\nContent-Disposition: form-data; name=\"image\"\r\n\r\n/etc/passwd\r\n--XX--\r\n", "not a file"),
        (form(JPEG)[0][:-20], "cut off"),
        (b"data:image/png;base64,AAAA", "malformed"),
    ],
)  # fmt: skip
def test_S11_malformed_forms_and_encodings(server, body, says):
    reply = server.post("/v1/predict", body, form()[1])
    assert reply.status == 400 or says in ("malformed", "cut off")
    refused(reply, 400)


def hold(server: Running, puppet: Puppet, count: int) -> list[threading.Thread]:
    """Requests that the puppet holds: one is computed, the others wait."""
    puppet.gate.clear()
    threads = [
        threading.Thread(target=server.post, args=("/v1/predict?model=puppet", JPEG), daemon=True) for _ in range(count)
    ]
    for thread in threads:
        thread.start()
    worker = server.model("puppet").worker
    wait_until(lambda: worker.admitted == count and bool(worker._running))
    return threads


def let_go(puppet: Puppet, threads: list[threading.Thread]) -> None:
    puppet.gate.set()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()


def test_S12_more_than_the_queue_holds(server, puppet):
    threads = hold(server, puppet, 4)
    try:
        reply = server.post("/v1/predict?model=puppet", JPEG)
        refused(reply, 503, "busy")
        assert 1 <= int(reply.headers["retry-after"]) <= 60
        refused(server.post("/v1/predict?model=puppet", *form(JPEG, JPEG)), 503)
        assert server.post("/v1/predict?model=mine", JPEG).status == 200  # the others are not concerned
    finally:
        let_go(puppet, threads)


def test_S12_a_refusal_costs_neither_the_application_nor_a_body(server, puppet, monkeypatch):
    threads = hold(server, puppet, 4)
    try:
        asks = "POST /v1/predict?model=puppet HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\nExpect: 100-continue"
        assert status(server.raw(f"{asks}\r\n\r\n".encode())) == 503  # and not 100: the body is not asked for
        monkeypatch.setattr(server.server.guard, "app", None)
        refused(server.post("/v1/predict?model=puppet", JPEG), 503, "busy")
    finally:
        monkeypatch.undo()
        let_go(puppet, threads)


def test_S13_deadline_in_the_queue(puppet):
    with running({"puppet": puppet}, timeout=0.3) as server:
        puppet.batches.clear()
        threads = hold(server, puppet, 2)  # they wait for the same computation or one after the other
        try:
            refused(server.post("/v1/predict", JPEG), 504, "deadline")
        finally:
            let_go(puppet, threads)
        wait_until(lambda: server.model("puppet").worker.admitted == 0)
        assert sum(puppet.batches) <= 2


def test_S13_deadline_while_an_image_is_decoded(puppet, monkeypatch):
    with running({"puppet": puppet}, timeout=0.2) as server:
        released = threading.Event()
        monkeypatch.setattr(ServedModel, "prepare", lambda self, data, name: released.wait(20))
        try:
            refused(server.post("/v1/predict", JPEG), 504, "deadline")
            assert server.model("puppet").worker.admitted == 0
        finally:
            released.set()


def test_a_failure_that_nobody_foresaw_leaves_no_image_of_its_request_in_the_queue(server, puppet, monkeypatch):
    prepare = ServedModel.prepare

    def failing(self, data, name):
        if name == "image 2":
            wait_until(lambda: server.model("puppet").worker.waiting == 1)
            raise ValueError("unforeseen")
        return prepare(self, data, name)

    threads = hold(server, puppet, 1)
    monkeypatch.setattr(ServedModel, "prepare", failing)
    try:
        refused(server.post("/v1/predict?model=puppet", *form(JPEG, JPEG)), 500)
        wait_until(lambda: server.model("puppet").worker.waiting == 0, seconds=5)  # before its deadline
    finally:
        let_go(puppet, threads)


def test_S14_client_that_leaves(server, puppet):
    threads = hold(server, puppet, 1)
    try:
        puppet.batches.clear()
        leaving = socket.create_connection(("127.0.0.1", server.port))
        leaving.sendall(post("/v1/predict?model=puppet", JPEG))
        wait_until(lambda: server.model("puppet").worker.waiting == 1)
        leaving.close()
        wait_until(lambda: server.model("puppet").worker.admitted == 1)
        assert server.model("puppet").worker.waiting == 0
    finally:
        let_go(puppet, threads)
    assert sum(puppet.batches) == 1  # that of the client who stayed
    assert server.metric('regard_requests_total{path="/v1/predict",status="499"}') >= 1


def test_S15_one_bad_image_among_good_ones(server):
    good, bad, other = server.post("/v1/predict?threshold=0", *form(JPEG, JPEG[:400], JPEG)).json()["results"]
    assert bad["error"]["code"] == "I02" or bad["error"]["code"] == "I04"
    assert [row["label"] for row in good["detections"]] == [row["label"] for row in other["detections"]]
    for one, same in zip(good["detections"], other["detections"], strict=True):
        assert one["box"] == pytest.approx(same["box"], abs=1e-4) and one["score"] == pytest.approx(same["score"])
    refused(server.post("/v1/predict", *form(JPEG[:400], b"text")), 422)


@pytest.mark.parametrize(("failure", "code"), [("raises", "internal"), ("nan", "internal")])
def test_S16_model_that_fails(server, puppet, failure, code):
    puppet.failure = failure
    try:
        reply = server.post("/v1/predict?model=puppet&threshold=0", JPEG)
        line = refused(reply, 500)
        assert "secret" not in line and reply.error["code"] == code
    finally:
        puppet.failure = None
    assert server.post("/v1/predict?model=puppet", JPEG).status == 200


def test_S17_thread_that_ends(server, puppet):
    puppet.failure = "ends"
    try:
        refused(server.post("/v1/predict?model=puppet", JPEG), 503)
    finally:
        puppet.failure = None
    wait_until(lambda: server.post("/v1/predict?model=puppet", JPEG).status == 200)
    assert server.metric('regard_worker_restarts{model="puppet"}') >= 1


TRAVERSALS = [
    prefix + path
    for prefix in ("/", "/page/", "/v1/", "/static/", "//")
    for path in (
        "../pyproject.toml", "%2e%2e/pyproject.toml", "%252e%252e/pyproject.toml", "..%2fserver.py", "..%5cserver.py",
        "..\\server.py", "etc/passwd", "%2fetc%2fpasswd", "....//server.py", "index.html%00.py", ".git/config",
        "%c0%ae%c0%ae/server.py",
    )
]  # fmt: skip


def test_S18_paths_and_names_that_lead_elsewhere(server):
    assert len(TRAVERSALS) == 60
    for path in TRAVERSALS:
        request = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
        assert status(server.raw(request)) in (400, 404), path
    for name in ("../runs/x", "/etc/passwd", "mine/../mine", "..%2fmine", "mine%00"):
        refused(server.post(f"/v1/predict?model={name}", JPEG), 404, "unknown model")


def test_S19_addresses_are_never_fetched(server, monkeypatch):
    asked = []
    own = socket.socket.connect
    monkeypatch.setattr(socket.socket, "connect", lambda self, to: (asked.append(to), own(self, to))[1])
    for body in (b"http://169.254.169.254/latest/meta-data", b"file:///etc/passwd", b"camera:0", b"-", b"/etc/passwd"):
        refused(server.post("/v1/predict", body), 422)
        refused(server.post("/v1/predict", *form(body, name="http://127.0.0.1/x")), 422)
    refused(server.post("/v1/predict?image=http://127.0.0.1/x", JPEG), 400, "image")
    assert {to for to in asked if isinstance(to, tuple)} == {("127.0.0.1", server.port)}  # these requests themselves


def test_S20_no_redirects(server):
    for path in ("/v1/predict/", "/v1/models/", "//evil.example/..", "/?next=http://evil.example", "/v1"):
        reply = server.ask("GET", path)
        assert reply.status in (200, 404, 405) and "location" not in {name.lower() for name in reply.headers}


def test_S21_hosts_and_origins(server):
    def ask(**headers):
        return server.ask("GET", "/v1/models", headers={name.title(): value for name, value in headers.items()})

    for host in ("evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example", "[", "a b"):
        assert ask(host=host).status in (400, 421), host
    for host in ("localhost", "LOCALHOST:1", "127.0.0.1:8000", "[::1]:8000", "10.0.0.7"):
        assert ask(host=host).status == 200
    refused(ask(host="localhost", origin="https://evil.example"), 403)
    for origin in ("null", "http://[", "http://localhost]", "//", ""):
        refused(ask(host="localhost", origin=origin), 403)
    reply = ask(host="localhost", origin="http://localhost:9")
    assert reply.status == 200 and "access-control-allow-origin" not in {name.lower() for name in reply.headers}


def test_S22_what_is_sent_is_never_shown(server):
    svg = b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>"
    reply = server.post("/v1/predict", svg, "image/svg+xml")
    assert "script" not in refused(reply, 422, "SVG")
    assert reply.headers["content-type"] == "application/json"
    assert reply.headers["x-content-type-options"] == "nosniff"
    named = form(b"x", name="<script>alert(1)</script>.jpg")
    assert b"<script" not in server.post("/v1/predict", *named).body
    policy = server.ask("GET", "/").headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy


def test_S23_models_cannot_be_loaded(server):
    for path in ("/v1/model", "/v1/models", "/v1/models/load", "/v1/upload"):
        for method in ("POST", "PUT", "PATCH", "DELETE"):
            assert server.ask(method, path, JPEG).status in (404, 405)


def test_S24_drain(puppet):
    replies = []
    with running({"puppet": puppet}) as server:
        puppet.gate.clear()
        threads = [
            threading.Thread(target=lambda: replies.append(server.post("/v1/predict", JPEG)), daemon=True)
            for _ in range(6)
        ]
        for thread in threads:
            thread.start()
        wait_until(lambda: server.model("puppet").worker.admitted == 6)
        server.server.handle_exit(signal.SIGTERM, None)
        wait_until(lambda: server.server.service.state() == "draining")
        with pytest.raises(OSError):
            for _ in range(100):  # until the socket is closed
                socket.create_connection(("127.0.0.1", server.port), timeout=1).close()
                time.sleep(0.05)
        puppet.gate.set()
    for thread in threads:
        thread.join(30)
    assert [reply.status for reply in replies] == [200] * 6
    assert {reply.headers["connection"] for reply in replies} == {"close"}


def test_S25_port_in_use(server, tmp_path, capsys):
    write_run(tmp_path / "run", small_detector(), {1: 0.5})
    words = ("serve", tmp_path / "run", "--port", server.port)
    run(capsys, *words).refused(6, None, f"127.0.0.1:{server.port}", "in use", "--port")


def test_S25_two_servers_that_start_at_once():
    """Both may bind the address, as neither listens yet; the second to listen is told."""
    with listen(ServingOptions(port=0)) as first:
        options = ServingOptions(port=first.getsockname()[1])
        with listen(options) as second:
            begin_to_listen(first, options)
            with raises(MachineError, f"--port {options.port + 1}"):
                begin_to_listen(second, options)


@pytest.mark.parametrize(
    ("host", "kind", "says"),
    [("a..b", ConfigError, "no such host"), ("192.0.2.1", MachineError, "an address of this machine")],
)
def test_S25_hosts_that_are_none_of_this_machine(host, kind, says):
    with raises(kind, says):
        listen(ServingOptions(host=host))


def test_S26_methods(server):
    for method in ("HEAD", "OPTIONS", "TRACE", "PUT", "DELETE", "CONNECT", "BREW"):
        target = "localhost:1" if method == "CONNECT" else "/v1/predict"
        request = f"{method} {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        assert status(server.raw(request.encode())) in (400, 404, 405, 501), method
    for path in ("/v1/predict", "/v1/explain", "/v1/attention"):
        reply = server.ask("GET", path)
        refused(reply, 405, "POST")
        assert reply.headers["allow"] == "POST"
    refused(server.ask("GET", "/v1/predicts"), 404)


def test_S27_large_headers(server):
    for header in ("A: " + "x" * 70_000, "\r\n".join(f"A{i}: {'x' * 100}" for i in range(700))):
        request = f"GET / HTTP/1.1\r\nHost: localhost\r\n{header}\r\n\r\n".encode()
        assert status(server.raw(request)) == 431
    assert status(server.raw(b"GET /" + b"x" * 70_000)) == 431


def test_S28_explanations_wait_in_a_line_of_their_own(server, puppet):
    puppet.gate.clear()
    threads = [
        threading.Thread(target=server.post, args=("/v1/explain?model=puppet&what=relevance", JPEG), daemon=True)
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    explainer = server.server.service.workers[-1]
    wait_until(lambda: explainer.admitted == 4)
    try:
        refused(server.post("/v1/explain", JPEG), 503)
        assert server.post("/v1/predict?model=mine", JPEG).status == 200
    finally:
        let_go(puppet, threads)
    refused(server.post("/v1/explain?what=rollout", JPEG), 400, "rollout")
    refused(server.post("/v1/explain?layer=99", JPEG), 400, "99")
    refused(server.post("/v1/explain", *form(JPEG, JPEG)), 400, "expected one")


def test_S28_attention_that_takes_too_much_memory_is_refused(server, monkeypatch):
    monkeypatch.setattr("regard.serving.service.ATTENTION_BYTES", 100)
    for kind in ("encoder", "relevance"):
        refused(server.post(f"/v1/explain?what={kind}", JPEG), 422, "memory")
    assert server.post("/v1/explain?what=decoder", JPEG).status == 200
    refused(server.post("/v1/attention?x=1&y=1", JPEG), 422, "memory")
    assert server.post("/v1/attention?query=1", JPEG).status == 200


def test_S29_nothing_is_left_of_requests(server):
    def objects() -> tuple[int, int]:
        return threading.active_count(), len(list(Path("/proc/self/fd").iterdir()))

    server.post("/v1/predict", JPEG)
    wait_until(lambda: not server.server.server_state.connections)
    before = objects()
    for number in range(60):
        server.post(f"/v1/predict?threshold={number / 60}", JPEG)
        server.post("/v1/predict", JPEG[: 10 * number])
    wait_until(lambda: not server.server.server_state.connections)
    assert objects() == before


def test_S30_archives_are_no_images(server):
    zipped = b"PK\x03\x04" + bytes(26) + b"../../evil.py"
    refused(server.post("/v1/predict", zipped, "application/octet-stream"), 422)
    refused(server.post("/v1/predict", zipped, "application/zip"), 415)


def test_the_table_is_complete():
    here = {name.split("_")[1] for name in globals() if re.match(r"test_S\d\d_", name)}
    assert here == {f"S{number:02d}" for number in range(1, 31)}


def test_log_lines_have_no_control_characters(server, caplog):
    logging.getLogger("regard.serving").setLevel(logging.INFO)
    with caplog.at_level(logging.INFO, logger="regard.serving"):
        server.ask("GET", "/%0d%0aINJECTED%1b[31m", headers={"X-Request-ID": "a\tb"})
        # A line is written after its answer is sent.
        wait_until(lambda: any("INJECTED" in record.getMessage() for record in caplog.records))
    assert all(record.getMessage().isprintable() for record in caplog.records)


def test_tokens(tmp_path):
    file = tmp_path / "tokens"
    file.write_text("first-token\n\nsecond-token\n")
    with running({"mine": small_detector()}, token_file=file) as server:
        for path in ("/v1/models", "/metrics", "/openapi.json"):
            reply = server.ask("GET", path)
            refused(reply, 401, "Bearer")
            assert reply.headers["www-authenticate"] == "Bearer"
        for given in ("Bearer wrong", "Basic first-token", "first-token", "Bearer ", "Bearer first-token second-token"):
            refused(server.ask("GET", "/v1/models", headers={"Authorization": given}), 401)
        for token in ("first-token", "second-token"):
            assert server.ask("GET", "/v1/models", headers={"Authorization": f"Bearer {token}"}).status == 200
        for path in ("/healthz", "/readyz", "/"):
            assert server.ask("GET", path).status == 200


def test_tokens_that_a_header_cannot_hold(tmp_path):
    file = tmp_path / "tokens"
    file.write_text("\ufefffirst\r\n second \n", encoding="utf-8")  # as editors on Windows write it
    assert guard.read_tokens(file) == [b"first", b"second"]
    for token in ("geheïm", "two words", "a\x7f"):
        file.write_text(f"right\n{token}\n", encoding="utf-8")
        with raises(ConfigError, "token_urlsafe", code="C02"):
            guard.read_tokens(file)


def test_without_the_packages_one_line_says_how_to_install_them(tmp_path):
    code = (
        "import sys; sys.modules['fastapi'] = None\n"
        "from importlib.util import find_spec\n"
        "import importlib.util\n"
        "importlib.util.find_spec = lambda name: None if name == 'fastapi' else find_spec(name)\n"
        "from regard.cli import main; main(['serve', 'run'])"
    )
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert finished.returncode == 6
    (line,) = finished.stderr.splitlines()
    assert "fastapi" in line and "install fastapi" in line


def test_answers_of_bad_requests_are_json(server):
    answer = server.raw(b"GARBAGE\r\n\r\n")
    head, _, body = answer.partition(b"\r\n\r\n")
    assert status(head) == 400 and json.loads(body)["error"]["code"] == "bad_request"
    assert np.all(np.frombuffer(body, np.uint8) >= 32)
