"""Many clients at once against a server: requests as fast as they are answered, and what became of each.

A server that is a process of its own has the last core of the machine, and its clients, this process, the first.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import regard
from image_files import encode
from regard.models.build import Model
from served import Reply, post

LOST = 0  # the status of a request without an answer


@dataclass(frozen=True)
class Sent:
    """A request: its number, its answer (status `LOST` if there was none), and the seconds until it was there.

    late: seconds by which the client itself sent it after it was due; `seconds` begin when it was due.
    """

    number: int
    reply: Reply
    seconds: float
    late: float = 0.0


def unique_images(count: int, side: int = 40) -> list[bytes]:
    """PNG files that all differ, in four sizes."""
    rng = np.random.default_rng(0)
    shapes = [(side, side, 3), (side, 2 * side, 3), (2 * side, side, 3), (side + 9, side, 3)]
    return [encode(rng.integers(0, 256, shapes[i % 4], dtype=np.uint8), "PNG", compress_level=0) for i in range(count)]


def answers_to(net: Model, images: Sequence[bytes]) -> list[regard.Detections]:
    """What `regard.predict` finds in each image, one at a time."""
    from regard.data.images import decode_image

    return [regard.predict(net, decode_image(image, name="image"), threshold=0.0) for image in images]


def is_answer(reply: Reply, expected: regard.Detections) -> bool:
    """Whether an answer is that of `regard.predict`, query by query, to 1e-5 (scores) and 1e-3 pixels (boxes)."""
    rows = {row["query"]: row for row in reply.json()["results"][0]["detections"]}
    if sorted(rows) != sorted(expected.queries.tolist()):
        return False
    found = [rows[query] for query in expected.queries.tolist()]
    scores = [row["score"] for row in found]
    boxes = [[*row["box"].values()] for row in found]
    labels = [row["label_id"] for row in found]
    return (
        labels == expected.labels.tolist()
        and np.allclose(scores, expected.scores.numpy(), rtol=0, atol=1e-5)
        and np.allclose(boxes, expected.boxes.numpy(), rtol=0, atol=1e-3)
    )


async def read_reply(reader: asyncio.StreamReader) -> Reply:
    """Read one answer."""
    head = await reader.readuntil(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    headers = {key.lower(): value for key, _, value in (line.partition(": ") for line in lines[1:] if line)}
    return Reply(int(lines[0].split()[1]), headers, await reader.readexactly(int(headers.get("content-length", 0))))


async def send_all(port: int, bodies: Sequence[bytes], clients: int, path: str, *, keep: bool = True) -> list[Sent]:
    """Send each body once, from so many clients at once.

    keep: whether a client keeps its connection for its next request.
    """
    numbers = iter(range(len(bodies)))
    sent: list[Sent] = []

    async def client() -> None:
        writer = None
        for number in numbers:
            start = time.monotonic()
            try:
                if writer is None or not keep:
                    reader, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(post(path, bodies[number], "Content-Type: image/png"))
                reply = await read_reply(reader)
            except (OSError, asyncio.IncompleteReadError):
                reply = Reply(LOST, {}, b"")
            sent.append(Sent(number, reply, time.monotonic() - start))
            if writer is not None and (not keep or reply.status == LOST or reply.headers.get("connection") == "close"):
                writer.close()
                writer = None
        if writer is not None:
            writer.close()

    await asyncio.gather(*(client() for _ in range(clients)))
    return sent


async def send_paced(port: int, bodies: Sequence[bytes], rate: float, path: str) -> list[Sent]:
    """Send each body once, so many a second, whether earlier ones are answered or not."""
    idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
    sent: list[Sent] = []
    requests = [post(path, body, "Content-Type: image/png") for body in bodies]

    async def one(number: int, due: float) -> None:
        late = time.monotonic() - due
        reader, writer = idle.pop() if idle else await asyncio.open_connection("127.0.0.1", port)
        writer.write(requests[number])
        try:
            reply = await read_reply(reader)
            idle.append((reader, writer))
        except (OSError, asyncio.IncompleteReadError):
            reply = Reply(LOST, {}, b"")
        sent.append(Sent(number, reply, time.monotonic() - due, late))

    start, tasks = time.monotonic(), []
    for number in range(len(bodies)):
        due = start + number / rate
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        tasks.append(asyncio.create_task(one(number, due)))
    await asyncio.gather(*tasks)
    for _, writer in idle:
        writer.close()
    return sent


@dataclass(frozen=True)
class Process:
    """`regard serve` as a process of its own. log: the file of its stderr."""

    process: subprocess.Popen[str]
    port: int
    log: Path

    def memory(self) -> float:
        """Its memory in MB."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(r"VmRSS:\s+(\d+)", text)
        assert found
        return int(found[1]) / 1024

    def processor(self) -> tuple[float, float]:
        """Seconds in which its threads computed, and in which they waited for a core that others had."""
        folders = Path(f"/proc/{self.process.pid}/task").iterdir()
        rows = [(folder / "schedstat").read_text().split() for folder in folders]
        return sum(int(row[0]) for row in rows) / 1e9, sum(int(row[1]) for row in rows) / 1e9

    def threads_and_files(self) -> tuple[int, int]:
        """The number of its threads and of its open files."""
        folder = Path(f"/proc/{self.process.pid}")
        return len(list((folder / "task").iterdir())), len(list((folder / "fd").iterdir()))


@contextlib.contextmanager
def process(folder: Path, *words: str) -> Iterator[Process]:
    """Start `regard serve WORDS` on a free port, on the last core; the block runs on the first."""
    cores = sorted(os.sched_getaffinity(0))
    log = folder / f"log-{time.monotonic_ns()}.txt"
    with log.open("w") as stderr:
        command = [sys.executable, "-m", "regard", "serve", *words, "--port", "0"]
        started = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True)
    os.sched_setaffinity(started.pid, cores[-1:])
    os.sched_setaffinity(0, cores[:1])
    try:
        assert started.stdout is not None
        line = started.stdout.readline()
        found = re.search(r":(\d+)$", line.strip())
        assert found, log.read_text()
        port = int(found[1])
        _wait_for(port)
        yield Process(started, port, log)
    finally:
        os.sched_setaffinity(0, cores)
        started.terminate()
        started.wait(60)


def _wait_for(port: int) -> None:
    import socket

    for _ in range(600):
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", port), timeout=5).close()
            return
        time.sleep(0.1)
    raise AssertionError("the server does not listen")
