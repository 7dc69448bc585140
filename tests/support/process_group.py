"""Runs a function in several processes that train together, forked from this one: importing torch takes seconds."""

from __future__ import annotations

import multiprocessing
import os
import queue
import socket
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from regard.training.distributed import Processes, processes


def together(function: Callable[[Processes, Path], Any], folder: Path, count: int = 2, seconds: float = 60) -> list:
    """What `function(processes, folder)` gives in each of `count` processes, by rank.

    Raises:
        AssertionError: one of them failed, with its traceback, or they took too long.
    """
    with socket.socket() as held:
        # Bound until the end, so that no other process of tests gets the port; these may listen on it nevertheless.
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("127.0.0.1", 0))
        return _on_port(str(held.getsockname()[1]), function, folder, count, seconds)


def _on_port(
    port: str, function: Callable[[Processes, Path], Any], folder: Path, count: int, seconds: float
) -> list[Any]:
    context = multiprocessing.get_context("fork")
    answers: Any = context.Queue()
    members = [context.Process(target=_member, args=(function, folder, r, count, port, answers)) for r in range(count)]
    for member in members:
        member.start()
    found: dict[int, Any] = {}
    end = time.monotonic() + seconds
    try:
        while len(found) < count:
            assert time.monotonic() < end, f"only the processes {sorted(found)} came to an end"
            try:
                rank, answer, failure = answers.get(timeout=0.2)
            except queue.Empty:
                continue
            assert failure is None, failure
            found[rank] = answer
    finally:
        for member in members:
            member.join(timeout=2)
            if member.is_alive():
                member.kill()
    return [found[rank] for rank in range(count)]


def _member(
    function: Callable[[Processes, Path], Any], folder: Path, rank: int, count: int, port: str, answers: Any
) -> None:
    torch.set_num_threads(1)  # a forked process has no other threads to wait for
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }  # fmt: skip
    try:
        with processes("cpu") as group:
            answers.put((rank, function(group, folder), None))
    except BaseException:
        answers.put((rank, None, f"process {rank}:\n{traceback.format_exc()}"))
