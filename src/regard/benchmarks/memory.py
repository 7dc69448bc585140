"""Peak memory and time of an action, measured in a fork of this process."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from regard.errors import MachineError, cause


def peak_memory(action: Callable[[int], object]) -> int:
    """Return the peak growth of memory in bytes by an action, measured in a fork of this process (not on Windows).

    Raises:
        MachineError: the action failed, or was killed.
    """
    return measured(action)[1]


def measured(action: Callable[[int], object]) -> tuple[float, int]:
    """Return the seconds of CPU time of an action and its `peak_memory`, both measured in a fork of this process.

    Raises:
        MachineError: the action failed, or was killed.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            answer = "{} {}".format(*_taken_by(action))
        except BaseException as error:
            answer = f"{type(error).__name__}: {cause(error)}"
        os.write(writer, answer.encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as stream:
        answer = stream.read()
    os.waitpid(child, 0)
    seconds, _, grown = answer.partition(" ")
    if not grown.isdecimal():
        what = f"memory could not be measured: {answer or 'the process was killed'}"
        raise MachineError(what, remedy="look whether memory was short")
    return float(seconds), int(grown)


def _taken_by(action: Callable[[int], object]) -> tuple[float, int]:
    torch.set_num_threads(1)
    scale = 1 if sys.platform == "darwin" else 1024
    # What the first gradient of a process takes, threads and buffers, is not the action's. torch refuses it in a fork
    # of a process with threads for gradients.
    with contextlib.suppress(RuntimeError):
        (torch.ones(64, 64, requires_grad=True) @ torch.ones(64, 64)).sum().backward()
    with contextlib.suppress(AttributeError, OSError):  # glibc alone has it
        ctypes.CDLL(None).malloc_trim(0)  # or free memory of this process would be used again and not counted
    with contextlib.suppress(OSError):  # Linux alone: begin the peak anew
        Path("/proc/self/clear_refs").write_text("5")
    gc.freeze()  # objects of the imports are not the action's
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    action(0)
    seconds = time.process_time() - start
    return seconds, max(0, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * scale
