"""The settings of a training run, whatever the model. No torch: names and mistakes are known without it."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

from regard.config import check_choices
from regard.errors import ConfigError

UNTIL_TIME_IS_UP = 100_000  # epochs, where `minutes` ends the training


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """The settings of a training run that every model has."""

    epochs: int = 300  # passes over the training images
    minutes: float | None = None  # training time after which to stop; the schedule then follows the clock
    # images per batch and process; a step has `accumulate` batches. `auto` (recipe auto): as many as fit the GPU
    batch_size: int = 2
    accumulate: int = 1  # batches whose gradients are averaged into one step
    lr: float = 1e-4  # peak learning rate
    lr_backbone: float = 1e-5  # learning rate of the backbone of a detector
    optimizer: Literal["adamw", "sgd", "lamb"] = "adamw"  # update rule
    momentum: float = 0.9  # of optimizer=sgd
    nesterov: bool = False  # Nesterov momentum, as in timm's sgd
    weight_decay: float = 1e-4  # decay of weights towards 0
    decay: Literal["all", "matrices"] = "all"  # matrices: no decay of biases, norms and tokens (DeiT)
    schedule: Literal["step", "cosine", "deit", "deit_corrected"] = "step"  # of the learning rate
    min_lr: float = 1e-5  # learning rate at the end of schedules `deit` and `deit_corrected`
    milestones: tuple[float, ...] = (2 / 3,)  # schedule=step: shares of the epochs after which lr is divided by 10
    warmup_steps: int = 0  # steps over which lr rises from 0
    warmup_share: float = 0.0  # share of the epochs over which lr rises from 0
    max_norm: float = 0.1  # maximum norm of all gradients together; 0 does not clip
    ema: float = 0.0  # decay per step of the moving average of weights, which is evaluated and kept; 0 for none
    amp: Literal["auto", "off", "bf16", "fp16"] = "auto"  # mixed precision; auto: bf16 on GPUs that have it, else off
    tf32: bool = True  # on GPUs, float32 products round their factors to 10 bits and are several times faster
    # memory order of convolutions; auto: channels last on CUDA, except in networks without convolutions, and on CPUs
    # for detectors with a ResNet
    channels_last: Literal["auto", "on", "off"] = "auto"
    compile: bool = False  # torch.compile of the parts that take most of the time; the first steps take minutes
    checkpoint_activations: bool = False  # compute activations again in the backward pass: less memory, more time
    shard: bool = False  # several processes: each keeps a part of weights, gradients and optimizer state (FSDP2)
    device: str = "auto"  # auto, cpu, cuda, cuda:0 or mps
    workers: int = 2  # processes that load images; 0 loads in the main process
    seed: int = 42  # of weights, augmentation and the order of images
    evaluate_every: int = 1  # epochs between evaluations
    # evaluations without a better score after which training stops early, once the score has left 0; 0 never stops
    patience: int = 0
    log_every: int = 20  # steps between lines of the log
    # when a loss or a gradient is not finite: stop, or skip:N to leave out up to N such steps in a row
    on_nan: str = "stop"
    data_may_change: bool = False  # resume although images or annotations are not those that the run began with
    save_minutes: float = 10.0  # minutes between checkpoints; one is also written after every evaluation
    # trackers that get the numbers of the run's files as well
    log_to: tuple[Literal["tensorboard", "wandb", "mlflow", "trackio"], ...] | None = None

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
        if self.on_nan != "stop" and not re.fullmatch(r"skip:[1-9]\d{0,5}", self.on_nan):
            what = f"on_nan={self.on_nan!r}"[:80] + ", expected stop or skip:N"
            raise ConfigError(what, remedy="such as on_nan=skip:3", code="C02")
        if self.seed >= 2**63:
            raise ConfigError(f"seed={self.seed}"[:80] + ", expected less than 2**63", code="C03")
        if self.lr == 0:
            raise ConfigError("lr=0, expected more than 0", code="C03")
        for name in ("ema", "momentum", "warmup_share"):
            if getattr(self, name) >= 1:
                raise ConfigError(f"{name}={getattr(self, name)}, expected less than 1", code="C03")
        if not all(0 <= share <= 1 for share in self.milestones):
            raise ConfigError(f"milestones={list(self.milestones)}, expected shares from 0 to 1", code="C03")
        if self.shard and self.compile:
            raise ConfigError("shard=true does not go with compile=true", remedy="leave one of them out", code="C09")
        if self.nesterov and not self.momentum:
            raise ConfigError("nesterov=true needs momentum above 0", code="C09")
        if self.schedule.startswith("deit") and (self.warmup_steps or self.warmup_share):
            what = f"schedule={self.schedule} has its own warm-up and ignores warmup_steps and warmup_share"
            raise ConfigError(what, remedy="leave them out, or set schedule=cosine", code="C09")
        if self.schedule.startswith("deit") and self.min_lr > self.lr:
            what = f"min_lr={self.min_lr} is more than lr={self.lr}: the rate would rise"
            raise ConfigError(what, remedy=f"set min_lr={self.lr} or less", code="C09")
        if self.minutes is not None and not (math.isfinite(self.minutes) and self.minutes > 0):
            raise ConfigError(f"minutes={self.minutes}, expected more than 0", code="C03")

    @property
    def most_skipped(self) -> int:
        """Steps in a row that may be left out because a loss or a gradient is not finite."""
        return 0 if self.on_nan == "stop" else int(self.on_nan.removeprefix("skip:"))


def batches_per_epoch(images: int, batch_size: int, processes: int = 1) -> int:
    """Return the batches that each process sees in one pass over the images."""
    return math.ceil(images / (batch_size * processes))


def steps_per_epoch(batches: int, accumulate: int) -> int:
    """Return the optimizer steps of one pass over `batches`: at least one."""
    return max(1, batches // accumulate)
