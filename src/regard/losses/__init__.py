"""Losses. They read what models return and know no model."""

from regard.losses.detection import SetCriterion
from regard.losses.distillation import DistillationLoss
from regard.losses.matching import HungarianMatcher, Matches

__all__ = ["DistillationLoss", "HungarianMatcher", "Matches", "SetCriterion"]
