"""Distillation losses: the distillation token learns from the teacher, the class token from the labels.

    soft    (1 - alpha) CE(class, y) + alpha tau^2 KL( softmax(teacher / tau) || softmax(distillation / tau) )
    hard    (1 - alpha) CE(class, y) + alpha CE(distillation, argmax teacher)

Source: Touvron et al. 2021 (DeiT), section 4, and the authors' losses.py.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.errors import ConfigError
from regard.structures.outputs import DistilledLogits
from regard.structures.precision import at_least_float32

KINDS = ("none", "soft", "hard")
REDUCTIONS = ("numel", "batchmean")


class DistillationLoss(nn.Module):
    """The loss of a student with a teacher.

    Args:
        kind: `soft`, `hard`, or `none`: labels alone.
        alpha: weight of the teacher, 0..1. The authors' code has 0.5; the paper names 0.1 for soft distillation.
        tau: temperature of soft distillation; 1 in the authors' code, 3 in the paper. Hard distillation ignores it.
        reduction: of the soft term. `numel` divides the sum by batch times classes, as the authors' code does, which
            with 1000 classes gives the teacher a thousandth; `batchmean` divides by the batch, as in the formula.
        label_smoothing: smoothing of labels given as indices, 0..1; the teacher's are not smoothed.

    Raises:
        ConfigError: an unknown name, or a number out of range.
    """

    def __init__(
        self,
        kind: str = "hard",
        alpha: float = 0.5,
        tau: float = 1.0,
        reduction: str = "numel",
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        for name, given, known in (("kind", kind, KINDS), ("reduction", reduction, REDUCTIONS)):
            if given not in known:
                raise ConfigError(f"{name}={given!r} is none of {', '.join(known)}", where="distillation", code="C01")
        if not 0 <= alpha <= 1 or not tau > 0:
            what = f"alpha={alpha} and tau={tau}, expected 0 to 1 and more than 0"
            raise ConfigError(what, where="distillation", code="C03")
        self.kind = kind
        self.alpha = alpha
        self.tau = tau
        self.reduction = reduction
        self.label_smoothing = label_smoothing

    def forward(self, student: DistilledLogits, teacher: Tensor | None, labels: Tensor) -> Tensor:
        """Compute the loss, a scalar, in float32 or higher.

        Args:
            student: logits of both heads, (B, C) each.
            teacher: (B, C) logits for the same pixels; None for `none`.
            labels: (B,) int64, or soft (B, C) whose rows sum to 1.

        Raises:
            ConfigError: the teacher has another number of classes (C07), or is missing (C09).
        """
        class_logits, distillation_logits = (at_least_float32(logits) for logits in student)
        truth = F.cross_entropy(class_logits, labels, label_smoothing=self.label_smoothing if labels.ndim == 1 else 0.0)
        if self.kind == "none":
            return truth
        if teacher is None:
            raise ConfigError(f"{self.kind} distillation without a teacher", where="distillation", code="C09")
        if teacher.shape != distillation_logits.shape:
            what = f"the teacher gives {tuple(teacher.shape)} logits, the student {tuple(distillation_logits.shape)}"
            raise ConfigError(what, where="teacher", remedy="take a teacher of the same classes", code="C07")
        taught = self._taught(distillation_logits, at_least_float32(teacher.detach()))
        return (1 - self.alpha) * truth + self.alpha * taught

    def _taught(self, logits: Tensor, teacher: Tensor) -> Tensor:
        if self.kind == "hard":
            return F.cross_entropy(logits, teacher.argmax(dim=1))
        student, target = F.log_softmax(logits / self.tau, dim=1), F.log_softmax(teacher / self.tau, dim=1)
        target = target.clamp(min=torch.finfo(target.dtype).min)  # minus infinity times the probability 0 is NaN
        total = F.kl_div(student, target, reduction="sum", log_target=True) * self.tau**2
        return total / (logits.numel() if self.reduction == "numel" else len(logits))

    def extra_repr(self) -> str:
        return f"{self.kind}, alpha={self.alpha}, tau={self.tau}, reduction={self.reduction!r}"
