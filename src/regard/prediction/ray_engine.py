"""`regard predict --engine ray`: the images of a job divided among the machines of a Ray cluster, by Ray Data.

The driver, which is the command, lists the images and writes all files. Each actor holds the model once and takes
blocks of images; Ray starts it again if it is killed, and repeats its block. The steps are those of `Work`.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import sys
from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from regard import errors
from regard.data.sources import is_streamed
from regard.errors import ConfigError, DataError, MachineError, RegardError, cause, counted, install_command
from regard.models.evaluation_mode import evaluation_mode
from regard.prediction.job import Done, Image, Order, Work, Written
from regard.prediction.lanes import MAX_IMAGES
from regard.prediction.progress import progress_bar
from regard.prediction.writers import Encoded

FAILED = -1  # in the place of an image's number
# Ray counts its users, says much, and with `uv run` would send the working folder to each machine.
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",  # what raylets tell of lost workers would go to stdout
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


def predict_on_ray(order: Order, todo: Sequence[Image], written: Written, device: str) -> Generator[str]:
    """Predict for images on the cluster; yield a line for each, in the order in which they come.

    Args:
        device: `cpu`, `cuda`, or `auto` for GPUs if the cluster has any and the model is no ONNX file.

    Raises:
        MachineError: Ray is not installed, cannot start, gave up or lost images; the cluster has no GPU (C10).
        ConfigError: a device that is none of the three (C09).
    """
    if device not in ("auto", "cpu", "cuda"):
        remedy = "name auto, cpu or cuda: Ray gives each actor a GPU"
        raise ConfigError("Ray takes no such device", where=f"device={device}", remedy=remedy, code="C09")
    if not todo:
        return
    files, missing = dict(todo), {number for number, _ in todo}
    again = "it goes on" if written.records is not None else "with --json or --parquet it would go on after failures"
    again = f"repeat the command: {again}"
    with _cluster() as ray, progress_bar(len(todo)) as advance:
        for row in _rows(ray, order, todo, device, again):
            number = row["number"]
            if number == FAILED:
                raise _error_of(row["error"])
            if number in missing:
                missing.remove(number)
                advance()
                yield from written.add((number, files[number]), _unpacked(row))
    if missing:
        what = f"Ray lost {counted(len(missing), 'image', of=len(todo))}"
        raise MachineError(what, remedy=again)


def _rows(ray: Any, order: Order, todo: Sequence[Image], device: str, again: str) -> Iterator[dict[str, Any]]:
    """Yield a row for each image, as the actors give it. again: the remedy if Ray gives up."""
    with _plain_errors(again):
        resources = ray.cluster_resources()
        cpus, gpus = int(resources.get("CPU", 0)), int(resources.get("GPU", 0))
        if device == "cuda" and not gpus:
            raise MachineError("the Ray cluster has no GPU", where="device=cuda", remedy="--device cpu", code="C10")
        is_onnx_file = isinstance(order.model, Path)  # it runs on CPUs alone
        on_gpus = gpus > 0 and (device == "cuda" or (device == "auto" and not is_onnx_file))
        images = [{"number": number, "file": str(file)} for number, file in todo]
        blocks = -(-len(images) // MAX_IMAGES)
        actors = max(1, min(gpus if on_gpus else cpus, blocks))
        sent = ray.put(order)  # held here, for actors that start again
        results = ray.data.from_items(images, override_num_blocks=blocks).map_batches(
            _Actor,
            fn_constructor_args=(sent, "cuda" if on_gpus else "cpu", str(Path.cwd())),
            batch_size=MAX_IMAGES if on_gpus else None,  # a block; Ray asks for a number where there are GPUs
            batch_format="pyarrow",  # arrays of numpy would cut off zeros at the end of bytes
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=actors, initial_size=actors),
            num_cpus=None if on_gpus else 1,  # Ray wants one of both
            num_gpus=1 if on_gpus else None,
        )
        for table in results.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            yield from table.to_pylist()


class _Actor:
    """A process of the cluster that holds the model. Blocks of images come in; results that Arrow holds go out.

    An exception goes out as a row too: Ray would keep its text alone, among its own.
    """

    def __init__(self, order: Any, device: str, folder: str) -> None:
        import ray

        with contextlib.suppress(OSError):  # names of images are relative to it; where it is missing, none may be
            os.chdir(folder)
        ordered: Order = ray.get(order)
        self.work: Work | Exception
        try:
            self.work = ordered.prepare(device)
        except Exception as error:
            self.work = error

    def __call__(self, block: Any) -> Any:
        import pyarrow as pa

        given = [(row["number"], row["file"]) for row in block.to_pylist()]
        try:
            rows = self._rows([(number, name if is_streamed(name) else Path(name)) for number, name in given])
        except Exception as error:
            ours = error if isinstance(error, RegardError) else RegardError(f"{type(error).__name__}: {error}")
            rows = [{"number": FAILED, **_packed(Done()), "error": _error_text(ours)}]
        return pa.Table.from_pylist(rows)

    def _rows(self, images: Sequence[Image]) -> list[dict[str, Any]]:
        work = self.work
        if isinstance(work, Exception):
            raise work
        rows = []
        with evaluation_mode(work.ready.net):
            for batch in work.batches(images):
                for image, done in zip(batch, work.on(batch, images), strict=True):
                    rows.append({"number": images[image.number][0], **_packed(done)})
        return rows


def _packed(done: Done) -> dict[str, Any]:
    """Return what comes of an image as text and bytes; what is missing is empty."""
    encoded = done.encoded
    return {
        "line": done.line,
        "picture": done.picture or b"",
        "rows": "" if encoded is None else json.dumps(encoded.rows),
        "png": b"" if encoded is None else encoded.png or b"",
        "error": "" if done.error is None else _error_text(done.error),
    }


def _unpacked(row: Mapping[str, Any]) -> Done:
    error = _error_of(row["error"]) if row["error"] else None
    assert error is None or isinstance(error, DataError)
    encoded = Encoded(json.loads(row["rows"]), row["png"] or None) if row["rows"] else None
    return Done(row["line"], row["picture"] or None, encoded, error)


def _error_text(error: RegardError) -> str:
    return json.dumps([type(error).__name__, error.what, error.where, error.remedy, error.code])


def _error_of(text: str) -> RegardError:
    name, what, where, remedy, code = json.loads(text)
    kind: type[RegardError] = getattr(errors, name)
    return kind(what, where=where, remedy=remedy, code=code)


@contextlib.contextmanager
def _cluster() -> Iterator[Any]:
    """Join the running cluster, or start one on this machine for the time of this block; yield the package ray."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise MachineError("--engine ray needs the package ray", remedy=install_command("'ray[data]'")) from error
    is_ours = not ray.is_initialized()
    if is_ours:
        _check_address(os.environ.get("RAY_ADDRESS", ""))
        try:
            with _no_stderr():
                ray.init(log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False)
        except Exception as error:
            where = os.environ.get("RAY_ADDRESS", "this machine")
            what = f"Ray cannot start or be joined: {cause(error)}"
            raise MachineError(what, where=where, remedy="check RAY_ADDRESS, or see: ray status") from error
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    try:
        yield ray
    finally:
        if is_ours:
            ray.shutdown()


def _check_address(address: str) -> None:
    """Raise MachineError if nothing answers at `host:port`; Ray would ask again for minutes."""
    host, colon, port = address.rpartition(":")
    if not colon or "/" in address or not port.isdigit():
        return  # none, or one of Ray's words for it
    try:
        socket.create_connection((host, int(port)), timeout=20).close()
    except (OSError, OverflowError) as error:
        remedy = "name the head node, or unset RAY_ADDRESS to use this machine"
        raise MachineError(f"no Ray cluster answers: {cause(error)}", where=address, remedy=remedy) from error


@contextlib.contextmanager
def _plain_errors(again: str) -> Iterator[None]:
    """Tell in one line that Ray gave up: Ray Data also raises errors of Python, such as ValueError."""
    try:
        yield
    except RegardError:
        raise
    except Exception as error:
        what = f"Ray gave up: {type(error).__name__}: {cause(error)}"
        raise MachineError(what, remedy=f"see: ray status; then {again}") from error


@contextlib.contextmanager
def _no_stderr() -> Iterator[None]:
    """Discard what is written to stderr, also by C++, which tells its log level there."""
    sys.stderr.flush()
    kept, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nothing, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)
