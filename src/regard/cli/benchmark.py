"""`regard benchmark`: speed next to other libraries, or of a model of the user's."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from regard.cli.groups import app
from regard.cli.typed import as_typed
from regard.errors import ConfigError, unknown_name
from regard.safe_files import make_writable

if TYPE_CHECKING:
    from regard.benchmarks.networks import NetworkRow


@app.command
def benchmark(
    name: str | None = None,
    *,
    data: Path | None = None,
    rounds: int = 10,
    device: str = "cpu",
    threads: int = 1,
    output: Path | None = None,
) -> None:
    """Measure speed against other libraries, or the speed of a model of yours, in alternating rounds of one process.

    Args:
        name: a benchmark; lists what they measure if not given. Or a run, a file of weights, an ONNX file or the name
            of a model with released weights: its time and memory on this machine.
        data: folder of images for `loading` and `predict`; generated photographs if not given.
        rounds: number of measurements of each.
        device: for a model of yours: cpu or cuda. On a GPU, `python -m regard.benchmarks.gpu` compares with others.
        threads: of torch, for `training`.
        output: folder for NAME.json, with the machine and every number, and NAME.png; it may exist.
    """
    from regard.benchmarks import BENCHMARKS, OWN, check_benchmark, run_benchmark

    if name is None:
        for known, what in BENCHMARKS.items():
            print(f"{as_typed(f'regard benchmark {known}'):<37}{what}")
        print(f"{as_typed(OWN):<37}a model of yours, or an ONNX file")
        return
    title = _title(name)
    check = check_benchmark if name in BENCHMARKS else _check_own
    check(name, data, rounds, device, threads)
    if output is not None:
        from regard.benchmarks.result_files import check_output

        make_writable(output)
        check_output(title, output)
    if name in BENCHMARKS:
        folder = Path("runs/benchmark") if output is None else output
        rows = run_benchmark(name, data, rounds, device, folder, threads)
    else:
        rows = _own_model(name, rounds, device)
    if output is not None:
        from regard.benchmarks.result_files import write_results

        write_results(title, rows, shlex.join(["regard", *sys.argv[1:]]), output)


def _title(name: str) -> str:
    """Return the name of the results of a benchmark, or of a run or file by whatever path."""
    path = Path(name)
    return path.resolve().name if path.is_dir() else path.stem


def _check_own(name: str, data: Path | None, rounds: int, device: str, threads: int) -> None:
    from regard.benchmarks import BENCHMARKS, check_numbers
    from regard.models.catalog import list_models
    from regard.weights.source import EXAMPLE, check_source

    check_numbers(name, rounds, threads)
    path = Path(name)
    if not (path.exists() or path.suffix or len(path.parts) > 1 or name in (EXAMPLE, *list_models())):
        raise unknown_name("benchmark", name, list(BENCHMARKS), code="C01")
    if data is not None:
        remedy = f"leave --data out, or score it by: regard evaluate {shlex.join([name, '--data', str(data)])}"
        raise ConfigError("a model is measured without data", where=name, remedy=remedy, code="C09")
    check_source(name)


def _own_model(name: str, rounds: int, device: str) -> Sequence[NetworkRow]:
    from regard.benchmarks.networks import main, one_thread
    from regard.weights.load import load_on

    with one_thread():  # an ONNX file gets its threads when it is opened
        model, place = load_on(name, device)
    return main(model, name, rounds, place)
