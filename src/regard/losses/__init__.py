"""Losses. They read the outputs of models and import no model."""

from regard.losses.anchors import AnchorCriterion
from regard.losses.detection import SetCriterion
from regard.losses.distillation import DistillationLoss
from regard.losses.matching import HungarianMatcher, Matches

__all__ = ["AnchorCriterion", "DistillationLoss", "HungarianMatcher", "Matches", "SetCriterion"]
