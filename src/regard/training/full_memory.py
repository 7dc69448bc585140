"""What to lower when a training does not fit into memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from regard.errors import MachineError
from regard.training.config import TrainingConfig


def is_full_memory(error: BaseException) -> bool:
    """Return whether memory ran out: torch has an error of its own for GPUs, and a RuntimeError for the CPU."""
    return type(error).__name__ in ("MemoryError", "OutOfMemoryError") or "can't allocate memory" in str(error)


@contextmanager
def explain_full_memory(config: TrainingConfig) -> Iterator[None]:
    """Turn an error about memory into one that names the settings to lower. Nothing is tried again with others.

    Raises:
        MachineError: memory ran out (T18).
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_full_memory(error):
            raise
        raise MachineError(
            f"out of memory with batch_size={config.batch_size}", remedy=_lower(config), code="T18"
        ) from error


def _lower(config: TrainingConfig) -> str:
    """Return the settings that need less memory. The first takes as many images a step as before, if they halve."""
    ways = []
    if config.batch_size > 1:
        ways.append(f"batch_size={config.batch_size // 2} accumulate={2 * config.accumulate}")
    if not config.checkpoint_activations:
        ways.append("checkpoint_activations=true")
    return f"set {' or '.join([*ways, 'smaller images'])}"
