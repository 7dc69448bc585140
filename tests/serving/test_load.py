"""A server under load: no wrong answer, no lost request, nothing left behind.

The small tests run by default. The slow ones have the counts of the guide and print its figures:
`uv run pytest -m slow -s tests/serving/test_load.py`
"""

from __future__ import annotations

import asyncio
import random
import signal
import statistics
import time
from collections import Counter
from pathlib import Path

import pytest
import torch

pytest.importorskip("fastapi", reason="fastapi is not installed")
pytest.importorskip("uvicorn", reason="uvicorn is not installed")

import regard
from load import LOST, Process, answers_to, is_answer, process, read_reply, send_all, send_paced, unique_images
from regard.models.build import build
from regard.models.detr import DETR
from run_files import PETS, SMALL, small_detector, write_run
from served import form, post, running, wait_until

PATH = "/v1/predict?threshold=0"


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run with random weights, for images of 64 pixels: a computation of some milliseconds."""
    torch.manual_seed(0)
    net = build(SMALL, "mine", PETS, (64, 128))
    assert isinstance(net, DETR)
    folder = tmp_path_factory.mktemp("served") / "run"
    write_run(folder, net, {1: 0.5})
    return folder


def percentile(values, share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def spread(seconds) -> str:
    """The middle and the 99th percentile of times, in milliseconds."""
    return f"median {1000 * statistics.median(seconds):.1f} ms, p99 {1000 * percentile(seconds, 0.99):.1f} ms"


def wrong(sent, net, images) -> int:
    """The number of answers that are not those of `regard.predict`."""
    answered = [one for one in sent if one.reply.status == 200]
    expected = answers_to(net, [images[one.number] for one in answered])
    return sum(not is_answer(one.reply, right) for one, right in zip(answered, expected, strict=True))


def test_four_times_the_capacity():
    net, images = small_detector(), unique_images(120)
    with running({"mine": net}, queue=4, max_images=4, batch_size=3) as server:
        sent = asyncio.run(send_all(server.port, images, 16, PATH))
        sizes = server.metric('regard_batch_images_count{model="mine"}')
    statuses = Counter(one.reply.status for one in sent)
    assert len(sent) == 120 and set(statuses) == {200, 503} and wrong(sent, net, images) == 0
    assert all(int(one.reply.headers["retry-after"]) >= 1 for one in sent if one.reply.status == 503)
    assert sizes <= statuses[200]


def test_clients_that_disconnect_leave_nothing():
    with running({"mine": small_detector()}) as server:
        asyncio.run(disconnect(server.port, 40, 10))
        wait_until(lambda: not server.server.server_state.connections)
        service = server.server.service
        wait_until(lambda: not any(worker.admitted for worker in service.workers) and service.budget.used == 0)
        assert server.post(PATH, unique_images(1)[0]).status == 200


async def disconnect(port: int, count: int, clients: int) -> None:
    """Clients that close their connection within the headers, within the body, and while they wait."""
    numbers = iter(range(count))
    request = post(PATH, *unique_images(1))

    async def client() -> None:
        for number in numbers:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(request[: (20, 400, len(request))[number % 3]])
            await writer.drain()
            await asyncio.sleep(random.Random(number).uniform(0, 0.01))
            writer.transport.abort() if number % 2 else writer.close()

    await asyncio.gather(*(client() for _ in range(clients)))


def mutated(seed: int, images: list[bytes]) -> bytes:
    """A valid request with one to four things wrong: bits, cuts, repeats, lines of other requests."""
    rng = random.Random(seed)
    path = rng.choice(["/v1/predict", "/v1/explain", "/v1/attention?query=1", "/v1/models", "/", "/metrics"])
    body = rng.choice(images)
    headers = ["Content-Type: image/png"]
    if rng.random() < 0.3:
        body, kind = form(*rng.sample(images, rng.randint(1, 3)))
        headers = [f"Content-Type: {kind}"]
    data = bytearray(post(path, body, *headers))
    ends = data.index(b"\r\n\r\n")
    lines = [b"Transfer-Encoding: chunked", b"Content-Length: 5", b"Expect: 100-continue", b"Connection: upgrade",
             b"Upgrade: websocket", b"Host: evil", b"Range: bytes=0-1", b"Content-Encoding: gzip", b"\x00: \x01",
             b"Origin: http://x", b"X-Forwarded-For: 1.2.3.4", b"Authorization: Bearer \xff"]  # fmt: skip
    for _ in range(rng.randint(1, 4)):
        kind, at = rng.randrange(7), rng.randrange(ends if rng.random() < 0.5 else len(data))
        if kind == 0:
            data[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del data[at : at + rng.randint(1, 40)]
        elif kind == 2:
            data[at:at] = data[at : at + rng.randint(1, 200)]
        elif kind == 3:
            data[at:at] = rng.randbytes(rng.randint(1, 100))
        elif kind == 4:
            first = data.index(b"\r\n") if b"\r\n" in data else 0
            data[first:first] = b"\r\n" + rng.choice(lines)
        elif kind == 5:
            verb = rng.choice([b"GET", b"PUT", b"HEAD", b"TRACE", b"OPTIONS", b"PATCH", b"BREW", b"post", b""])
            data[: data.find(b" ")] = verb
        else:
            del data[at:]
        ends = max(2, min(ends, len(data)))
        if len(data) < 3:
            break
    return bytes(data)


async def send_raw(port: int, requests: list[bytes], clients: int) -> Counter[int]:
    """Send bytes, wait three seconds for an answer, which a busy machine may need, and close."""
    numbers = iter(range(len(requests)))
    statuses: Counter[int] = Counter()

    async def client() -> None:
        for number in numbers:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                writer.write(requests[number])
                reply = await asyncio.wait_for(read_reply(reader), 3)
                statuses[reply.status] += 1
            except (
                TimeoutError,
                OSError,
                asyncio.IncompleteReadError,
                asyncio.LimitOverrunError,
                ValueError,
                IndexError,
            ):
                statuses[LOST] += 1  # an incomplete request, of which more is awaited
            finally:
                writer.close()

    await asyncio.gather(*(client() for _ in range(clients)))
    return statuses


def test_mutated_requests_never_fail_in_the_server(caplog):
    images = unique_images(4)
    with running({"mine": small_detector()}) as server:
        statuses = asyncio.run(send_raw(server.port, [mutated(seed, images) for seed in range(150)], 50))
        wait_until(lambda: not server.server.server_state.connections)
        assert server.post(PATH, images[0]).status == 200
    assert not set(statuses) & {500, 502} and statuses[200] > 0 and statuses[400] > 0
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


# The counts of the guide, against a process of its own.


@pytest.mark.slow
def test_2000_requests_at_four_times_the_capacity(run, tmp_path):
    images = unique_images(2000, side=64)
    with process(tmp_path, f"mine={run}") as served:
        asyncio.run(send_all(served.port, images[:100], 16, PATH))
        capacity, memory = capacity_of(served, images[:300]), served.memory()
        before, used = len(logged(served, 503)), served.processor()
        start = time.monotonic()
        sent = asyncio.run(send_paced(served.port, images, 4 * capacity, PATH))
        seconds, after = time.monotonic() - start, served.memory()
        computed, waited = (now - then for now, then in zip(served.processor(), used, strict=True))
        again = capacity_of(served, images[:300])
    statuses = Counter(one.reply.status for one in sent)
    accepted = [one.seconds for one in sent if one.reply.status == 200]
    refused = [one.seconds for one in sent if one.reply.status == 503]
    inside = logged(served, 503)[before:]
    print(f"\n{capacity:.1f} requests a second, afterwards {again:.1f}; 2,000 at four times that: {dict(statuses)}")
    mistakes = wrong(sent, regard.load(run), images)
    print(f"wrong answers {mistakes}; memory {memory:.0f} -> {after:.0f} MB")
    print(f"threads of the server: computed {computed:.1f} s of {seconds:.1f}, waited {waited:.1f} s for a core")
    rate = len(accepted) / seconds
    print(f"accepted: {rate:.1f} a second, {200 * rate / (capacity + again):.0f} % of the capacity, {spread(accepted)}")
    print(f"refused: {spread(refused)} at the client, which sent late by {spread([one.late for one in sent])}")
    print(f"refused: {spread(inside)} in the server")
    assert set(statuses) == {200, 503} and mistakes == 0
    assert all("retry-after" in one.reply.headers for one in sent if one.reply.status == 503)
    assert after < memory + 300


def capacity_of(served: Process, images: list[bytes]) -> float:
    """Requests a second of 16 clients that wait for each answer."""
    start = time.monotonic()
    asyncio.run(send_all(served.port, images, 16, PATH))
    return len(images) / (time.monotonic() - start)


def logged(served: Process, status: int) -> list[float]:
    """Seconds of the requests with a status, from the log."""
    rows = [line.split() for line in served.log.read_text().splitlines()]
    return [float(row[7]) / 1000 for row in rows if len(row) > 8 and row[6] == str(status)]


@pytest.mark.slow
def test_5000_mutated_requests_200_slow_clients_500_disconnects(run, tmp_path):
    images = unique_images(8)
    with process(tmp_path, f"mine={run}") as served:
        asyncio.run(send_all(served.port, images, 4, PATH))
        time.sleep(1)
        before, memory = served.threads_and_files(), served.memory()
        statuses = asyncio.run(send_raw(served.port, [mutated(seed, images) for seed in range(5000)], 50))
        print(f"\n5,000 mutated requests: {dict(sorted(statuses.items()))} (0: more was awaited)")
        quiet, slow = asyncio.run(beside_slow_clients(served.port, 200, images[0]))
        print(f"beside 200 slow clients: p99 {1000 * slow:.0f} ms, alone {1000 * quiet:.0f} ms")
        asyncio.run(disconnect(served.port, 500, 20))
        end = time.monotonic() + 60
        while served.threads_and_files() != before and time.monotonic() < end:
            time.sleep(0.5)
        after = served.threads_and_files()
        sent = asyncio.run(send_all(served.port, images, 2, PATH))
        print(
            f"500 disconnects; threads and files {before} -> {after}; memory {memory:.0f} -> {served.memory():.0f} MB"
        )
        assert "Traceback" not in served.log.read_text()
    assert not set(statuses) & {500, 502}
    assert [one.reply.status for one in sent] == [200] * 8 and after == before


async def beside_slow_clients(port: int, count: int, image: bytes) -> tuple[float, float]:
    """The p99 of a client alone, and beside so many that send a byte a second."""
    alone = [one.seconds for one in await send_all(port, [image] * 100, 1, PATH)]
    slow = [await asyncio.open_connection("127.0.0.1", port) for _ in range(count)]
    for number, (_, writer) in enumerate(slow):
        writer.write(post(PATH, image)[: 30 if number % 2 else 300])
    async with asyncio.TaskGroup() as group:
        trickling = group.create_task(_trickle([writer for _, writer in slow]))
        beside = [one.seconds for one in await send_all(port, [image] * 100, 1, PATH)]
        trickling.cancel()
    for _, writer in slow:
        writer.close()
    return percentile(alone, 0.99), percentile(beside, 0.99)


async def _trickle(writers: list[asyncio.StreamWriter]) -> None:
    while True:
        for writer in writers:
            if not writer.is_closing():
                writer.write(b"x")
        await asyncio.sleep(1)


@pytest.mark.slow
def test_sigterm_under_load_loses_no_accepted_request(run, tmp_path):
    images = unique_images(3000, side=64)

    async def load(served: Process):
        sending = asyncio.create_task(send_all(served.port, images, 64, PATH, keep=False))
        while len(logged(served, 200)) < 40:
            await asyncio.sleep(0.05)
        served.process.send_signal(signal.SIGTERM)
        return await sending

    with process(tmp_path, f"mine={run}") as served:
        sent = asyncio.run(load(served))
        code = served.process.wait(60)
    statuses = Counter(one.reply.status for one in sent)
    answered = {status: len(logged(served, status)) for status in (200, 503, 499)}
    print(f"\nSIGTERM under load: exit code {code}; clients got {dict(statuses)} (0: no connection any more)")
    print(f"the server answered {answered}")
    assert code == 0 and statuses[LOST] > 0
    assert answered[200] == statuses[200] and answered[503] == statuses[503] and answered[499] == 0


@pytest.mark.slow
def test_20000_requests_and_flat_memory(run, tmp_path):
    images = unique_images(100, side=32)
    with process(tmp_path, f"mine={run}") as served:
        memory = []
        for _ in range(20):
            sent = asyncio.run(send_all(served.port, images * 10, 16, PATH))
            assert {one.reply.status for one in sent} == {200}
            memory.append(served.memory())
    print(f"\n20,000 requests: memory after each 1,000 in MB: {' '.join(f'{one:.0f}' for one in memory)}")
    assert memory[-1] < memory[4] + 20


@pytest.mark.slow
def test_batches_answer_more_requests_a_second(run, tmp_path):
    images = unique_images(100, side=64)[::4] * 8  # of one size
    speeds: dict[int, list[float]] = {1: [], 8: []}
    with process(tmp_path, f"mine={run}", "--batch-size", "1") as one, process(tmp_path, f"mine={run}") as eight:
        for turn in range(6):
            for size, served in ((1, one), (8, eight))[:: 1 if turn % 2 else -1]:
                start = time.monotonic()
                asyncio.run(send_all(served.port, images, 16, PATH))
                speeds[size] += [len(images) / (time.monotonic() - start)] if turn else []
    ratio = statistics.median(speeds[8]) / statistics.median(speeds[1])
    print(f"\nrequests a second in batches of up to 8 over one at a time: {ratio:.2f}")
