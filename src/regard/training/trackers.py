"""Trackers that a run can also log to: TensorBoard, Weights & Biases, MLflow, Trackio. All are off unless asked for.

Each adapter starts a tracker's run with the settings, logs numbers at a step and closes. A resumed run goes on in the
tracker's run of before, whose id is kept in `RUN/tracking.json`.
"""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from regard.errors import MachineError, cause, install_command
from regard.safe_files import replace_text

PROJECT = "regard"  # where neither the environment nor the tracker names one


class Tracker(Protocol):
    """What a run needs of a tracker."""

    def __init__(self, run: Path, settings: Mapping[str, Any], step: int) -> None:
        """Start. `settings`: by dotted name; `step`: steps of training that are done already."""

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        """Log numbers such as `train/loss` at a step."""

    def close(self) -> None:
        """Write what is left."""


class TensorBoard:
    """Event files in `RUN/tensorboard`: `tensorboard --logdir runs` shows them."""

    def __init__(self, run: Path, settings: Mapping[str, Any], step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # Rows of steps after the checkpoint come again: the earlier ones are dropped.
        self.writer = SummaryWriter(str(run / "tensorboard"), purge_step=step + 1 if step else None)
        if not step:
            rows = "".join(f"| {name} | {value} |\n" for name, value in settings.items())
            self.writer.add_text("settings", f"| setting | value |\n| --- | --- |\n{rows}")

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        """Log numbers. They are on the disk afterwards: a killed run has all its rows."""
        for name, value in numbers.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def close(self) -> None:
        """Close the file."""
        self.writer.close()


class WandB:
    """Weights & Biases, in the project of `WANDB_PROJECT`, or `regard`."""

    def __init__(self, run: Path, settings: Mapping[str, Any], step: int) -> None:
        import wandb

        project = os.environ.get("WANDB_PROJECT", PROJECT)
        known = _known_id(run, "wandb", step)
        self.run = wandb.init(
            project=project, name=run.name, dir=str(run), config=dict(settings), id=known, resume="allow"
        )
        _keep_id(run, "wandb", self.run.id)

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        """Log numbers."""
        self.run.log(dict(numbers), step=step)

    def close(self) -> None:
        """Upload the rest."""
        self.run.finish()


class MLflow:
    """MLflow, at the server of `MLFLOW_TRACKING_URI` in the experiment of `MLFLOW_EXPERIMENT_NAME`, if they are set."""

    def __init__(self, run: Path, settings: Mapping[str, Any], step: int) -> None:
        import mlflow

        self.mlflow = mlflow
        known = _known_id(run, "mlflow", step)
        self.id = mlflow.start_run(run_id=known, run_name=run.name).info.run_id
        _keep_id(run, "mlflow", self.id)
        if known is None:  # parameters of a run cannot be changed
            mlflow.log_params(dict(settings))

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        """Log numbers."""
        self.mlflow.log_metrics(dict(numbers), step=step)

    def close(self) -> None:
        """End the run."""
        self.mlflow.end_run()


class Trackio:
    """Trackio, in the project of `TRACKIO_PROJECT`, or `regard`: `trackio show` opens its page."""

    def __init__(self, run: Path, settings: Mapping[str, Any], step: int) -> None:
        import trackio

        project = os.environ.get("TRACKIO_PROJECT", PROJECT)
        # Its runs are found by name: a name of an earlier training of another folder must not be taken up.
        name = _known_id(run, "trackio", step) or f"{run.name}-{os.urandom(3).hex()}"
        _keep_id(run, "trackio", name)
        resume = "allow" if step else "never"
        self.run = trackio.init(project=project, name=name, config=dict(settings), resume=resume, embed=False)

    def log(self, numbers: Mapping[str, float], step: int) -> None:
        """Log numbers."""
        self.run.log(dict(numbers), step=step)

    def close(self) -> None:
        """Write the rest."""
        self.run.finish()


ADAPTERS: dict[str, type[Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WandB,
    "mlflow": MLflow,
    "trackio": Trackio,
}


def check_trackers(names: Sequence[str]) -> None:
    """Check that the packages of trackers are installed.

    Raises:
        MachineError: one is not.
    """
    for name in names:
        if importlib.util.find_spec(name) is None:
            what = f"log_to={name} needs the package {name}"
            raise MachineError(what, remedy=install_command(name), code="T15")


def start_trackers(names: Sequence[str], run: Path, settings: Mapping[str, Any], step: int) -> dict[str, Tracker]:
    """Start the trackers of a run.

    Args:
        names: keys of `ADAPTERS`.
        run: the run's folder.
        settings: nested, as in `config.yaml`.
        step: steps of training that are done already.

    Raises:
        MachineError: a package is not installed, or its tracker cannot start: no login, no network (T15).
    """
    check_trackers(names)
    flat = flat_settings(settings)
    started: dict[str, Tracker] = {}
    for name in dict.fromkeys(names):
        try:
            started[name] = ADAPTERS[name](run, flat, step)
        except Exception as error:
            for tracker in started.values():
                with suppress(Exception):
                    tracker.close()
            what = f"{name} cannot start: {cause(error)}"
            raise MachineError(what, remedy=f"see its own manual, or leave {name} out of log_to", code="T15") from error
    return started


def flat_settings(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings by dotted name: `{"model": {"depth": 2}}` -> `{"model.depth": 2}`."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        flat |= flat_settings(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat


def _known_id(run: Path, name: str, step: int) -> str | None:
    """Return the id of the tracker's run of before; None for a training that starts at its first step."""
    known = _ids(run).get(name)
    return known if step and isinstance(known, str) else None


def _keep_id(run: Path, name: str, known: str) -> None:
    replace_text(run / "tracking.json", json.dumps({**_ids(run), name: known}))


def _ids(run: Path) -> dict[str, Any]:
    try:
        content = json.loads((run / "tracking.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
