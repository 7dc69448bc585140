"""The training loop. It knows neither models nor losses: a `Task` joins them.

A step's randomness is a function of (seed, step), and the data's of (seed, epoch, sample). So a run that was killed at
any moment goes on from its last checkpoint to the very weights that it would have reached: bit for bit on a CPU, with
schedules that count steps. Kernels of GPUs may add in any order, and no two trainings see the same clock.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from regard.errors import ConfigError, DivergedError, RegardError
from regard.training.checkpoint_writer import save_checkpoint
from regard.training.checkpoints import newest_checkpoint, read_checkpoint
from regard.training.config import TrainingConfig
from regard.training.data_loader import mix, naming_killed_workers
from regard.training.distributed import Processes
from regard.training.lamb import Lamb
from regard.training.optimizer_state import load_optimizer, optimizer_tensors
from regard.training.reports import Reporter, mean_by_name
from regard.training.schedules import MovingAverage, learning_rate_factor, parameter_groups

SAVE_FIRST = 60.0  # seconds of training since the last checkpoint, after which one is written before an evaluation


class Task(Protocol):
    """What a job tells the loop."""

    batches_per_epoch: int
    score: str  # name of the number that `evaluate` gives and that is to grow

    def batches(self, start: int) -> Iterator[Any]:
        """Batches without end, from batch number `start` on."""

    def loss(self, model: nn.Module, batch: Any) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The scalar to minimise, and scalars to report. `batch` is still on the host."""

    def describe(self, batch: Any) -> str:
        """Which samples a batch holds, for error messages."""

    def evaluate(self, model: nn.Module, step: int) -> dict[str, float]:
        """Numbers of the validation data; the same in every process."""


@dataclass
class Progress:
    """Where a run stands; kept in its checkpoints."""

    step: int = 0
    seconds: float = 0.0  # spent in training, without evaluation
    best_score: float | None = None
    best_step: int | None = None
    since_best: int = 0
    judged_step: int = 0  # of the last evaluation
    scores: dict[str, float] = field(default_factory=dict)  # of the last evaluation


class Stopped(RegardError):
    """The run was asked to stop, by a signal, and has saved its state."""

    def __init__(self, number: int, step: int, run: Path) -> None:
        super().__init__(f"stopped at step {step}", where=run, remedy="go on with --resume")
        self.exit_code = 128 + number


class Trainer:
    """One training run.

    Args:
        model: on its device.
        task: data, loss and evaluation.
        config: how to train.
        run: the run's folder.
        processes: this process among all of the run.
        state: what is kept in each checkpoint beside weights and progress (JSON).
        reporter: where progress goes.
    """

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        config: TrainingConfig,
        run: Path,
        processes: Processes,
        state: Mapping[str, Any],
        reporter: Reporter,
    ) -> None:
        self.model = model
        self.task = task
        self.config = config
        self.folder = run / "checkpoints"
        self.run = run
        self.processes = processes
        self.reporter = reporter
        self.optimizer = _optimizer(model, config, fused=processes.device.type in ("cpu", "cuda"))
        self.scaler = torch.amp.GradScaler(processes.device.type, enabled=config.amp == "fp16")
        self.average = MovingAverage(model, config.ema) if config.ema else None
        self.progress = Progress()
        # What a step is: a run that goes on with other numbers would count its epochs anew.
        self.state = {
            **state,
            "units": {"batches_per_epoch": task.batches_per_epoch, "accumulate": config.accumulate},
        }
        self.steps_per_epoch = max(1, task.batches_per_epoch // config.accumulate)
        self.total_steps = self.steps_per_epoch * config.epochs
        self._parallel: nn.Module = DistributedDataParallel(model) if processes.world_size > 1 else model

    @property
    def result(self) -> nn.Module:
        """The model that is evaluated: the average if there is one."""
        return self.average.model if self.average else self.model

    def resume(self) -> bool:
        """Go on from the newest sound checkpoint; False if there is none.

        Raises:
            ConfigError: another model than that of the checkpoint, or steps of another size (C13).
        """
        path = newest_checkpoint(self.folder)
        if path is None:
            self.reporter.rewind(0)
            return False
        checkpoint = read_checkpoint(path)
        differences = _differences({key: checkpoint.state.get(key) for key in self.state}, self.state)
        if differences:
            remedy = "resume with the settings, the data and as many processes as the run began with"
            raise ConfigError(", ".join(differences)[:300], where=path, remedy=remedy, code="C13")
        self.model.load_state_dict(checkpoint.tensors["model"])
        if self.average:
            self.average.model.load_state_dict(checkpoint.tensors.get("ema", checkpoint.tensors["model"]))
        load_optimizer(self.optimizer, self.model.named_parameters(), checkpoint.tensors["optimizer"])
        if checkpoint.state["scaler"]:  # empty unless the run has had amp=fp16 before
            self.scaler.load_state_dict(checkpoint.state["scaler"])
        self.progress = Progress(**checkpoint.state["progress"])
        self.reporter.rewind(self.progress.step, checkpoint.state.get("pending", ()))
        return True

    def fit(self) -> Progress:
        """Train to the end, to an early stop or to a signal.

        Raises:
            DivergedError: a loss or gradient is not finite; the weights of the step before are not touched.
            Stopped: SIGTERM or SIGINT came; a checkpoint is written first.
        """
        with (
            _signals() as asked,
            naming_killed_workers(),
            self.reporter.training(self.progress.step, self.progress.seconds, self.steps_per_epoch),
        ):
            batches = self.task.batches(self.progress.step * self.config.accumulate)
            self._saved_at = time.monotonic()
            share = self._share_done()
            # A run that was stopped at the last step of an epoch has that epoch's evaluation before it.
            if self._judge_if_due(share):
                self._save()
            while share < 1.0 and not self._is_stale():
                started = time.monotonic()
                logs = self._step(batches, share)
                self.progress.seconds += time.monotonic() - started
                self.progress.step += 1
                share = self._share_done()
                self.reporter.step(self.progress.step, self.progress.seconds, share, logs)
                stop = self.processes.any(bool(asked))
                judged = not stop and self._judge_if_due(share)
                if stop or judged or time.monotonic() - self._saved_at >= 60 * self.config.save_minutes:
                    self._save()
                if stop:
                    self.processes.wait()  # whoever leaves first makes torchrun end the others
                    raise Stopped(asked[0] if asked else signal.SIGTERM, self.progress.step, self.run)
        return self.progress

    def _step(self, batches: Iterator[Any], share: float) -> dict[str, Tensor]:
        """One step of the optimizer. It waits for the device where the loss does, and to ask whether all is finite."""
        config, step = self.config, self.progress.step
        factor = learning_rate_factor(config, step=step, progress=share)
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor
        torch.manual_seed(mix(config.seed, step, self.processes.rank))
        self.model.train()
        total = torch.zeros((), device=self.processes.device)
        seen, parts = [], []
        for _ in range(config.accumulate):
            batch = next(batches)
            seen.append(batch)
            with self._autocast(), self._naming_the_step(seen):
                loss, logs = self.task.loss(self._parallel, batch)
            self.scaler.scale(loss / config.accumulate).backward()
            total += loss.detach() / config.accumulate
            parts.append(logs)
        self.scaler.unscale_(self.optimizer)
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        norm = torch.nn.utils.clip_grad_norm_(parameters, config.max_norm or math.inf)
        self._check_finite(total, norm, seen)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average:
            self.average.update(self.model, step)
        lr = torch.full_like(total, self.optimizer.param_groups[0]["lr"])
        return {"loss": total, **mean_by_name(parts), "grad_norm": norm.detach(), "lr": lr}

    def _check_finite(self, total: Tensor, norm: Tensor, seen: list[Any]) -> None:
        values = torch.stack((total.float(), norm.float())).tolist()
        # A scaler answers to infinite gradients itself, with a smaller scale.
        wrong = not math.isfinite(values[0]) or not (math.isfinite(values[1]) or self.scaler.is_enabled())
        if self.processes.any(wrong):
            own_loss = not math.isfinite(values[0])
            any_loss = self.processes.any(own_loss)
            # Gradients are averaged over the processes: they do not show where the first bad number came from.
            own = own_loss or (self.processes.world_size == 1 and not any_loss)
            place = " in another process" if any_loss and not own_loss else ""
            raise DivergedError(
                f"the {'loss' if any_loss else 'gradient'}{place} is no longer finite at step {self.progress.step}",
                where=self._samples_of(seen) if own else None,
                remedy="lower lr or max_norm, or set amp=off; the checkpoints before are intact",
                code="T07",
            )

    def _samples_of(self, batches: list[Any]) -> str:
        """The first of the samples, for an error of one line."""
        names = ", ".join(self.task.describe(batch) for batch in batches).split(", ")
        return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")

    @contextmanager
    def _naming_the_step(self, seen: list[Any]) -> Iterator[None]:
        try:
            yield
        except DivergedError as error:
            raise DivergedError(
                f"step {self.progress.step}: {error.what}",
                where=self.task.describe(seen[-1]),
                remedy=error.remedy,
                code=error.code,
            ) from error

    def _autocast(self) -> torch.autocast:
        dtype = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}[self.config.amp]
        return torch.autocast(self.processes.device.type, dtype=dtype, enabled=dtype is not None)

    def _share_done(self) -> float:
        """How much of the training is done, 0..1, by steps or by the clock, whichever is further."""
        share = self.progress.step / self.total_steps
        if self.config.minutes is not None:
            share = max(share, max(self.processes.gather(self.progress.seconds)) / (60 * self.config.minutes))
        return min(1.0, share)

    def _is_stale(self) -> bool:
        return 0 < self.config.patience <= self.progress.since_best

    def _judge_if_due(self, share: float) -> bool:
        """Evaluate after so many epochs and at the end, once."""
        progress = self.progress
        due = share >= 1.0 or progress.step % (self.steps_per_epoch * self.config.evaluate_every) == 0
        if due and progress.judged_step != progress.step:
            # An evaluation reads other images, and may end the run on one of them.
            if time.monotonic() - self._saved_at >= SAVE_FIRST:
                self._save()
            self._judge()
            return True
        return False

    def _judge(self) -> None:
        progress = self.progress
        # Each process has batch statistics of its own; those of the first are what is saved.
        self.processes.share(self.result.buffers())
        scores = self.task.evaluate(self.result, progress.step)
        progress.scores = {name: value for name, value in scores.items() if math.isfinite(value)}
        progress.judged_step = progress.step
        score = progress.scores.get(self.task.score)
        if score is not None and (progress.best_score is None or score > progress.best_score):
            progress.best_score, progress.best_step, progress.since_best = score, progress.step, 0
        else:
            progress.since_best += 1
        self.reporter.evaluation(progress.step, progress.scores, best=progress.best_step == progress.step)

    def _save(self) -> None:
        """Write a checkpoint, in the first process. Nobody waits for it: its clock alone says when."""
        self._saved_at = time.monotonic()
        if not self.processes.is_main:
            return
        kept = optimizer_tensors(self.optimizer, self.model.named_parameters())
        tensors = {"model": self.model.state_dict(), "optimizer": kept}
        if self.average:
            tensors["ema"] = self.average.model.state_dict()
        state = {
            **self.state,
            "progress": vars(self.progress),
            "scaler": self.scaler.state_dict(),
            "pending": self.reporter.pending(),
        }
        protect = () if self.progress.best_step is None else (self.progress.best_step,)
        save_checkpoint(self.folder, self.progress.step, tensors, state, protect=protect)


def _optimizer(model: nn.Module, config: TrainingConfig, fused: bool) -> torch.optim.Optimizer:
    groups = parameter_groups(model, config.lr, config.lr_backbone, config.weight_decay, config.decay)
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, config.lr, momentum=config.momentum, nesterov=config.nesterov, fused=fused)
    if config.optimizer == "lamb":
        return Lamb(groups, config.lr)
    return torch.optim.AdamW(groups, fused=fused)


def _differences(old: Any, new: Any, path: str = "") -> list[str]:
    """What differs in two nested dictionaries, in words."""
    if isinstance(old, dict) and isinstance(new, dict):
        return [found for key in {**old, **new} for found in _differences(old.get(key), new.get(key), f"{path}.{key}")]
    return [] if old == new else [f"{path.strip('.')} was {old}, is {new}"]


@contextmanager
def _signals() -> Iterator[list[int]]:
    """The list fills when SIGTERM or SIGINT comes; a second one ends the process as usual."""
    asked: list[int] = []
    before: dict[signal.Signals, Any] = {}

    def note(number: int, _: object) -> None:
        asked.append(number)
        signal.signal(number, before[signal.Signals(number)])

    try:
        for number in (signal.SIGTERM, signal.SIGINT):
            before[number] = signal.signal(number, note)
    except ValueError:  # not in the main thread: whoever started us decides
        pass
    try:
        yield asked
    finally:
        for known, handler in before.items():
            signal.signal(known, handler)
