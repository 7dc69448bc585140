"""The settings of a training run, whatever the model. No torch: names and mistakes are known without it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from regard.config import check_choices
from regard.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How to train, whatever the model."""

    epochs: int = 300
    minutes: float | None = None  # stop after so much training time; the schedule then follows the clock
    batch_size: int = 2  # images of each process and batch; a step has `accumulate` batches
    accumulate: int = 1  # batches whose gradients are averaged before a step
    lr: float = 1e-4
    lr_backbone: float = 1e-5
    optimizer: Literal["adamw", "sgd", "lamb"] = "adamw"
    momentum: float = 0.9  # of sgd
    nesterov: bool = False  # sgd whose momentum looks ahead, as timm's
    weight_decay: float = 1e-4
    decay: Literal["all", "matrices"] = "all"  # what decays: all, or not biases, normalisation and the like (DeiT)
    schedule: Literal["step", "cosine", "deit", "deit_corrected"] = "step"
    min_lr: float = 1e-5  # at the end of the schedules `deit` and `deit_corrected`
    milestones: tuple[float, ...] = (2 / 3,)  # step schedule: shares of the epochs after which lr falls to a tenth
    warmup_steps: int = 0
    warmup_share: float = 0.0  # of the epochs over which lr rises from 0
    max_norm: float = 0.1  # largest norm of all gradients; 0 clips nothing
    ema: float = 0.0  # decay of the average of weights that is evaluated and kept; 0 for none
    amp: Literal["off", "bf16", "fp16"] = "off"
    device: str = "auto"
    workers: int = 2  # processes that load images
    seed: int = 42
    evaluate_every: int = 1  # epochs
    patience: int = 0  # evaluations without a better score before an early stop; 0 never stops
    log_every: int = 20  # steps
    save_minutes: float = 10.0  # a checkpoint is written so often, and after every evaluation

    def __post_init__(self) -> None:
        check_choices(self)
        least = {
            "epochs": 1, "batch_size": 1, "accumulate": 1, "lr": 0, "lr_backbone": 0, "min_lr": 0, "momentum": 0,
            "weight_decay": 0, "warmup_steps": 0, "warmup_share": 0, "max_norm": 0, "ema": 0, "workers": 0, "seed": 0,
            "evaluate_every": 1, "patience": 0, "log_every": 1, "save_minutes": 0,
        }  # fmt: skip
        for name, low in least.items():
            value = getattr(self, name)
            if not low <= value < math.inf:
                raise ConfigError(f"{name}={value}, expected at least {low}", code="C03")
        if self.seed >= 2**63:
            raise ConfigError(f"seed={self.seed}"[:80] + ", expected a number of 63 bits", code="C03")
        if self.lr == 0:
            raise ConfigError("lr=0, expected more than 0", code="C03")
        for name in ("ema", "momentum", "warmup_share"):
            if getattr(self, name) >= 1:
                raise ConfigError(f"{name}={getattr(self, name)}, expected less than 1", code="C03")
        if not all(0 <= share <= 1 for share in self.milestones):
            raise ConfigError(f"milestones={list(self.milestones)}, expected shares from 0 to 1", code="C03")
        if self.nesterov and not self.momentum:
            raise ConfigError("nesterov=true needs momentum above 0", code="C09")
        if self.schedule.startswith("deit") and (self.warmup_steps or self.warmup_share):
            what = f"schedule={self.schedule} has a warm-up of its own, warmup_steps and warmup_share do nothing"
            raise ConfigError(what, remedy="leave them out, or set schedule=cosine", code="C09")
        if self.schedule.startswith("deit") and self.min_lr > self.lr:
            what = f"min_lr={self.min_lr} is more than lr={self.lr}: the rate would rise"
            raise ConfigError(what, remedy=f"set min_lr={self.lr} or less", code="C09")
        if self.minutes is not None and not (math.isfinite(self.minutes) and self.minutes > 0):
            raise ConfigError(f"minutes={self.minutes}, expected more than 0", code="C03")
