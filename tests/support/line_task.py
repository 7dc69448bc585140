"""A task of a few numbers for the training loop, and what a run of it left."""

import json

import torch
from torch import nn

from regard.training.checkpoints import newest_checkpoint, read_checkpoint
from regard.training.config import TrainingConfig
from regard.training.distributed import Processes
from regard.training.loop import Trainer
from regard.training.reports import Reporter, read_rows

CONFIG = TrainingConfig(
    epochs=3, batch_size=4, lr=0.05, lr_backbone=0.05, max_norm=1.0, ema=0.9, schedule="cosine", warmup_steps=2,
    seed=7, workers=0, log_every=2, device="cpu",
)  # fmt: skip


class Line:
    """Fit y = 2x + 1 with a layer that drops inputs, so that random numbers matter."""

    batches_per_epoch = 6
    score = "fit"

    def __init__(self, at_step=None):
        self.at_step = at_step or {}
        self.step = 0
        self.seen = []

    def batches(self, start):
        while True:
            generator = torch.Generator().manual_seed(start)
            yield start, torch.randn(4, 3, generator=generator)
            start += 1

    def loss(self, model, batch):
        number, x = batch
        self.seen.append(number)
        action = self.at_step.get(number)
        if action:
            x = action(x)
        loss = (model(x) - (2 * x.sum(1, keepdim=True) + 1)).square().mean()
        return loss, {"loss_line": loss}

    def describe(self, batch):
        return f"sample {batch[0]}"

    def evaluate(self, model, step):
        x = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            return {"fit": -float((model(x) - (2 * x.sum(1, keepdim=True) + 1)).square().mean())}


def trainer(run, task=None, config=CONFIG, model=None):
    torch.manual_seed(0)
    run.mkdir(exist_ok=True)
    model = model or nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.2), nn.Linear(8, 1))
    reporter = Reporter(run, log_every=config.log_every, images_per_step=4, quiet=True)
    return Trainer(model, task or Line(), config, run, Processes(0, 1, torch.device("cpu")), {"note": 1}, reporter)


def state_of(run):
    found = read_checkpoint(newest_checkpoint(run / "checkpoints"))
    return found.tensors, {**found.state["progress"], "seconds": None}


def metrics_of(run):
    rows = read_rows(run / "metrics.jsonl")
    return [{k: v for k, v in row.items() if k not in ("images_per_second", "seconds")} for row in rows]


def same(a, b):
    return a.keys() == b.keys() and all(
        a[part].keys() == b[part].keys() and all(torch.equal(a[part][n], b[part][n]) for n in a[part]) for part in a
    )


def strict_rows(run):
    """The lines of `metrics.jsonl`, each of which has to be JSON as all languages read it."""

    def refuse(word):
        raise AssertionError(f"{word} is not JSON")

    return [json.loads(line, parse_constant=refuse) for line in (run / "metrics.jsonl").read_text().splitlines()]
