"""The training loop. It knows neither models nor losses: a `Task` joins them.

The randomness of a step is a function of (seed, step), that of the data of (seed, epoch, sample). A killed run that
resumes from its last checkpoint therefore reaches the same weights as an uninterrupted one. They are equal bit for bit
on a CPU with a schedule that counts steps. GPU kernels may sum in any order, and `minutes` depends on the clock.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from regard.errors import DivergedError, Stopped, counted
from regard.structures.precision import autocast
from regard.structures.spans import span
from regard.structures.transfer import upload
from regard.training.checkpoint_writer import save_checkpoint
from regard.training.checkpoints import newest_checkpoint, read_checkpoint
from regard.training.config import TrainingConfig, steps_per_epoch
from regard.training.data_loader import explain_workers, mix
from regard.training.distributed import Processes, in_parallel
from regard.training.full_memory import explain_full_memory
from regard.training.moving_average import MovingAverage
from regard.training.optimizer import create_optimizer
from regard.training.optimizer_state import load_optimizer, optimizer_tensors
from regard.training.reports import Reporter, mean_by_name
from regard.training.resumption import check_same_run
from regard.training.schedules import learning_rate_factor
from regard.training.sharding import copy_whole, load_whole, shard, whole, whole_on_host
from regard.training.stop_signals import Interrupted, StopSignals

# Seconds since the last checkpoint after which one is written before an evaluation.
SAVE_BEFORE_EVALUATION = 60.0
MOST_OVERFLOWS = 30  # steps in a row that overflow fp16; the scale, from 2**16 on, is then below any use
LEAST_SCORE = 1e-3  # below, detectors find things by chance: `patience` waits until they have begun to learn


class Task(Protocol):
    """The data, the loss and the evaluation of a training run."""

    batches_per_epoch: int
    score: str  # key in the result of `evaluate` that selects the best checkpoint; higher is better, 0 is nothing right

    def batches(self, start: int) -> Iterator[Any]:
        """Yield batches forever, from batch number `start` (from 0) on."""

    def loss(self, model: nn.Module, batch: Any) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Return the scalar to minimise, and scalars to report. `batch` is on the CPU."""

    def describe(self, batch: Any) -> str:
        """Return the names of the samples in a batch, separated by ", ", for error messages."""

    def evaluate(self, model: nn.Module, step: int) -> dict[str, float]:
        """Return the scores on the validation data, the same in every process."""


@dataclass
class Progress:
    """The progress of a run. Its checkpoints keep it, so the names of the fields are part of their format."""

    step: int = 0  # optimizer steps done
    seconds: float = 0.0  # spent in training, without evaluation
    best_score: float | None = None
    best_step: int | None = None
    since_best: int = 0  # evaluations since the best one
    judged_step: int = 0  # step of the last evaluation
    scores: dict[str, float] = field(default_factory=dict)  # of the last evaluation
    skipped: int = 0  # steps in a row, up to the last one, that changed no weight as their gradient was not finite


class Trainer:
    """One training run.

    Args:
        model: the model, on its device.
        task: data, loss and evaluation.
        config: settings of the training.
        run: the run's folder.
        processes: the rank and the device of this process.
        state: JSON values to store in each checkpoint, in addition to weights and progress.
        reporter: receives progress and scores.
        blocks: names of submodules that `shard=true` divides one by one (see `shard`).
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
        blocks: Sequence[str] = (),
    ) -> None:
        self.model = model
        self.task = task
        self.config = config
        self.folder = run / "checkpoints"
        self.run = run
        self.processes = processes
        self.reporter = reporter
        self.average = MovingAverage(model, config.ema) if config.ema else None
        # A whole copy of divided weights, which are gathered into it to be evaluated; else None.
        self._whole: nn.Module | None = None
        if config.shard and processes.world_size > 1:
            self._whole = copy.deepcopy(model).eval().requires_grad_(False)
            for part in (model, *([self.average.model] if self.average else ())):
                shard(part, blocks, processes)
        can_fuse = config.optimizer != "sgd" or self._whole is None  # torch's fused SGD takes no parts of weights
        self.optimizer = create_optimizer(model, config, fused=can_fuse and processes.device.type in ("cpu", "cuda"))
        self.scaler = torch.amp.GradScaler(processes.device.type, enabled=config.amp == "fp16")
        self.progress = Progress()
        # A resumed run with other numbers would count its epochs differently.
        self.state = {
            **state,
            "units": {
                "batches_per_epoch": task.batches_per_epoch,
                "accumulate": config.accumulate,
                "images_per_batch": config.batch_size * processes.world_size,
            },
        }
        self.steps_per_epoch = steps_per_epoch(task.batches_per_epoch, config.accumulate)
        self.total_steps = self.steps_per_epoch * config.epochs
        self._signals = StopSignals()
        self._received: list[int] = []  # signals of this process
        # Of all processes, since the last step: the signal that asked one to stop, and the seconds of the slowest.
        self._asked, self._slowest = 0, 0.0
        # Around every step, for measurements.
        self.around_step: Callable[[], AbstractContextManager[None]] = nullcontext
        # When this process saved last, and the seconds since then by the clock that says most.
        self._saved_at, self._since_saved = time.monotonic(), 0.0
        self._parallel = in_parallel(model) if processes.world_size > 1 and not config.shard else model

    @property
    def result(self) -> nn.Module:
        """The model that is evaluated: the moving average of the weights if there is one.

        Of divided weights a whole copy, as of the last evaluation.
        """
        return self._whole or self._kept

    @property
    def _kept(self) -> nn.Module:
        return self.average.model if self.average else self.model

    def resume(self) -> bool:
        """Load the newest intact checkpoint; return False if there is none.

        Raises:
            ConfigError: the checkpoint is of another model, or of other batches per step or epoch (C13).
            CheckpointError: the optimizer state does not fit (K07).
            NewerVersionError: a newer version of regard wrote the checkpoint (K19).
        """
        path = newest_checkpoint(self.folder)
        if path is None:
            self.reporter.rewind(0)
            return False
        checkpoint = read_checkpoint(path)
        check_same_run(checkpoint.state, self.state, self.config, self.run)
        load_whole(self.model, checkpoint.tensors["model"])
        if self.average:
            load_whole(self.average.model, checkpoint.tensors.get("ema", checkpoint.tensors["model"]))
        load_optimizer(self.optimizer, self.model.named_parameters(), checkpoint.tensors["optimizer"])
        if checkpoint.state["scaler"]:  # empty unless an earlier part of the run used amp=fp16
            self.scaler.load_state_dict(checkpoint.state["scaler"])
        self.progress = Progress(**checkpoint.state["progress"])
        self._slowest = self.progress.seconds
        self.reporter.rewind(self.progress.step, checkpoint.state.get("pending", ()))
        return True

    @property
    def is_finished(self) -> bool:
        """Whether all epochs are done, or the time is over, or the score has stopped rising."""
        return self._fraction_done() >= 1.0 or self._is_stale()

    @property
    def ended_by(self) -> Literal["patience", "epochs", "minutes"]:
        """The setting that ended a finished training."""
        if self._is_stale():
            return "patience"
        return "epochs" if self.progress.step >= self.total_steps else "minutes"

    @property
    def what_ended(self) -> str:
        """What a finished training was ended by, and the setting that prolongs it."""
        config = self.config
        return {
            "patience": f"no better score for {counted(config.patience, 'evaluation')}; set patience=0",
            "epochs": f"all epochs are done; set epochs to more than {config.epochs}",
            "minutes": f"the time is over; set minutes to more than {config.minutes or 0:g}, or minutes=none",
        }[self.ended_by]

    def fit(self) -> Progress:
        """Train until all epochs are done, patience runs out or a signal comes.

        Raises:
            DivergedError: a loss or gradient is not finite, in more steps in a row than `on_nan` allows (T07) or fp16
                needs to find its scale (T08); the weights of the previous step are unchanged.
            Stopped: a stop signal came (see `StopSignals`); a checkpoint is written first.
            MachineError: a worker process was killed (T10) or hangs (T12), memory ran out (T18), or a checkpoint cannot
                be written (T05, T06).
        """
        with (
            self._signals.caught() as received,
            explain_workers(),
            explain_full_memory(self.config),
            self.reporter.training(self.progress.step, self.progress.seconds, self.steps_per_epoch),
        ):
            batches = self.task.batches(self.progress.step * self.config.accumulate)
            self._received = received
            self._saved_at = time.monotonic()
            share = self._fraction_done()
            # A run that was stopped at the last step of an epoch has not evaluated that epoch yet.
            if self._evaluate_or_stop(share):
                self._save()
            while share < 1.0 and not self._is_stale():
                started = time.monotonic()
                with self.around_step():
                    logs = self._step(batches, share)
                self.progress.seconds += time.monotonic() - started
                self.progress.step += 1
                share = self._fraction_done()
                self.reporter.step(self.progress.step, self.progress.seconds, share, logs)
                if self.processes.world_size == 1 and received:
                    self._asked = received[0]
                stop = bool(self._asked)
                evaluated = not stop and self._evaluate_or_stop(share)
                if stop or evaluated or self._since_saved >= 60 * self.config.save_minutes:
                    self._save()
                if stop:
                    self.processes.barrier()  # torchrun ends all processes as soon as one exits with an error
                    raise Stopped(self._asked, self.progress.step, self.run, self.processes.world_size)
        return self.progress

    def _step(self, batches: Iterator[Any], share: float) -> dict[str, Tensor]:
        """Run one optimizer step. It waits for the device in the loss and in the check for finite values."""
        config, step, started = self.config, self.progress.step, time.monotonic()
        factor = learning_rate_factor(config, step=step, progress=share)
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor
        torch.manual_seed(mix(config.seed, step, self.processes.rank))
        self.model.train()
        self._buffers = [buffer.clone() for buffer in self.model.buffers()] if config.most_skipped else []
        total = torch.zeros((), device=self.processes.device)
        seen, parts = [], []
        for number in range(config.accumulate):
            with span("data"):
                batch = next(batches)
            seen.append(batch)
            with self._own_gradients(number < config.accumulate - 1):
                with self._autocast(), self._add_step_to_error(seen):
                    loss, logs = self._loss(batch)
                with span("backward"):
                    self.scaler.scale(loss / config.accumulate).backward()
            total += loss.detach() / config.accumulate
            parts.append(logs)
        with span("optimizer"):
            norm = self._update(total, seen, started)
        lr = torch.full_like(total, self.optimizer.param_groups[0]["lr"])
        return {"loss": total, **mean_by_name(parts), "grad_norm": norm.detach(), "lr": lr}

    def _update(self, total: Tensor, seen: list[Any], started: float) -> Tensor:
        """Change the weights by their gradients. Returns the norm of these before they were clipped."""
        config = self.config
        self.scaler.unscale_(self.optimizer)
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        norm = whole(torch.nn.utils.clip_grad_norm_(parameters, config.max_norm or math.inf))
        is_wanted = self._agree(total, norm, seen, time.monotonic() - started)
        if is_wanted:
            self.scaler.step(self.optimizer)
        else:  # The forward pass has put what is not finite into the statistics of batch norm.
            for buffer, kept in zip(self.model.buffers(), self._buffers, strict=True):
                buffer.copy_(kept)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average and is_wanted:
            self.average.update(self.model, self.progress.step)
        return norm

    def _loss(self, batch: Any) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Return the loss of a batch. One that cannot be computed is NaN if its step may be skipped."""
        try:
            return self.task.loss(self._parallel, batch)
        except DivergedError:
            if not self.config.most_skipped:
                raise
        # It has gradients for all weights, as other processes wait for these.
        return torch.stack([p.sum() for p in self.model.parameters() if p.requires_grad]).sum() * math.nan, {}

    def _own_gradients(self, wanted: bool) -> AbstractContextManager[None]:
        """Leave gradients in their process while they accumulate; those of the last batch are averaged with them."""
        parallel = self._parallel
        return parallel.no_sync() if wanted and isinstance(parallel, DistributedDataParallel) else nullcontext()

    def _agree(self, total: Tensor, norm: Tensor, seen: list[Any], seconds: float) -> bool:
        """Read from the device whether all is finite; with it the processes tell each other all that a step needs.

        Returns:
            Whether the step may change the weights. It may not if it is skipped, in all processes.

        Raises:
            DivergedError: in all processes, if the loss or the gradient of any is not finite (T07, T08).
        """
        infinite = (~torch.stack((total.float(), norm.float())).isfinite()).float()
        if self.processes.world_size > 1:
            asked = float(self._received[0]) if self._received else 0.0
            ours = torch.tensor([asked, self.progress.seconds + seconds, time.monotonic() - self._saved_at])
            told: list[float] = self.processes.largest(torch.cat((infinite, upload(ours, total.device)))).tolist()
            self._asked, self._slowest, self._since_saved = int(told[2]), told[3], told[4]
        else:
            told = infinite.tolist()
            self._since_saved = time.monotonic() - self._saved_at
        any_loss, any_gradient = (bool(value) for value in told[:2])
        if not any_loss and not any_gradient:
            self.progress.skipped = 0
            return True
        self.progress.skipped += 1
        if not any_loss and self.scaler.is_enabled():  # The scaler skips the step and lowers its scale.
            if self.progress.skipped > MOST_OVERFLOWS:
                what = f"gradients overflowed fp16 in {MOST_OVERFLOWS} steps in a row, until step {self.progress.step}"
                raise DivergedError(what, remedy=f"set amp=off or lower lr; {self._last_checkpoint()}", code="T08")
            return True
        own_loss = not math.isfinite(total.item())
        # Gradients are averaged over the processes, so they do not show which one had the first non-finite value.
        own = own_loss or (self.processes.world_size == 1 and not any_loss)
        place = " in another process" if any_loss and not own_loss else ""
        what = f"the {'loss' if any_loss else 'gradient'}{place} is no longer finite at step {self.progress.step}"
        samples, most = self._samples_of(seen) if own else None, self.config.most_skipped
        if self.progress.skipped > most:
            what += f", after {counted(most, 'skipped step')}" if most else ""
            remedy = f"lower lr or max_norm, or set amp=off; {self._last_checkpoint()}"
            raise DivergedError(what, where=samples, remedy=remedy, code="T07")
        self.reporter.say(f"warning: {what}, which is skipped{f': {samples}' if samples else ''}")
        return False

    def _last_checkpoint(self) -> str:
        """Return which checkpoint is left, in words."""
        path = newest_checkpoint(self.folder)
        return "there is no checkpoint yet" if path is None else f"{path} is intact"

    def _samples_of(self, batches: list[Any]) -> str:
        """Return the names of the first four samples, for an error of one line."""
        names = ", ".join(self.task.describe(batch) for batch in batches).split(", ")
        return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")

    @contextmanager
    def _add_step_to_error(self, seen: list[Any]) -> Iterator[None]:
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
        return autocast(self.config.amp, self.processes.device)

    def _fraction_done(self) -> float:
        """Return the fraction of the training that is done, 0..1: by steps or by the clock, whichever is larger."""
        share = self.progress.step / self.total_steps
        if self.config.minutes is not None:
            slowest = self._slowest if self.processes.world_size > 1 else self.progress.seconds
            share = max(share, slowest / (60 * self.config.minutes))
        return min(1.0, share)

    def _is_stale(self) -> bool:
        """Whether the score has stopped rising. One that has not left 0 yet, to the digits shown, has not begun to."""
        best = self.progress.best_score
        has_begun = best is not None and abs(best) >= LEAST_SCORE
        return has_begun and 0 < self.config.patience <= self.progress.since_best

    def _evaluate_or_stop(self, share: float) -> bool:
        """Evaluate if it is due. A signal ends the evaluation, which a resumed run does again.

        Raises:
            Stopped: a signal came meanwhile; a checkpoint is written first.
        """
        try:
            return self._evaluate_if_due(share)
        except Interrupted as interrupted:
            self._save()
            raise Stopped(interrupted.number, self.progress.step, self.run, self.processes.world_size) from None

    def _evaluate_if_due(self, share: float) -> bool:
        """Evaluate every `evaluate_every` epochs and at the end, once per step; return whether this was done."""
        progress = self.progress
        due = share >= 1.0 or progress.step % (self.steps_per_epoch * self.config.evaluate_every) == 0
        if due and progress.judged_step != progress.step:
            # An evaluation reads other images; a damaged one ends the run.
            if self._since_saved >= SAVE_BEFORE_EVALUATION:
                self._save()
            self._evaluate()
            return True
        return False

    def _evaluate(self) -> None:
        progress = self.progress
        if self._whole is not None:
            copy_whole(self._kept, self._whole)
        # Each process has its own batch norm statistics. The checkpoint holds those of the first.
        self.processes.broadcast(self.result.buffers())
        # One of several processes would leave the others waiting for its part.
        with self._signals.interrupting(self.processes.world_size == 1):
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
        """Write a checkpoint in the first process. The others do not wait, except to give it what they keep."""
        self._saved_at, self._since_saved = time.monotonic(), 0.0
        if not self.processes.is_main and self._whole is None:
            return
        tensors = {
            "model": self.model.state_dict(),
            "optimizer": optimizer_tensors(self.optimizer, self.model.named_parameters()),
        }
        if self.average:
            tensors["ema"] = self.average.model.state_dict()
        if self._whole is not None:
            tensors = {part: whole_on_host(values, self.processes.is_main) for part, values in tensors.items()}
        if not self.processes.is_main:
            return
        state = {
            **self.state,
            "progress": vars(self.progress),
            "scaler": self.scaler.state_dict(),
            "pending": self.reporter.pending(),
        }
        protect = () if self.progress.best_step is None else (self.progress.best_step,)
        save_checkpoint(self.folder, self.progress.step, tensors, state, protect=protect)
