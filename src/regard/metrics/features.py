"""Scores of a network's features, the input of its classification layer: nearest neighbours and a linear probe."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from regard.errors import DataError
from regard.metrics.classification import best_label, check_finite, check_labels

_MAX_VALUES = 2**25  # similarities or logits held at once: 128 MB
_MAX_STEPS = 500  # of L-BFGS


def knn_accuracy(
    train_features: Tensor,
    train_labels: Tensor,
    val_features: Tensor,
    val_labels: Tensor,
    num_classes: int,
    *,
    k: int = 20,
    temperature: float = 0.07,
) -> float:
    """Compute the accuracy of a vote of the k most similar training images.

    A neighbour of cosine similarity s has exp(s / temperature) votes (Wu et al. 2018, section 3.4). The defaults are
    those of DINO (Caron et al. 2021). Of classes with equal votes the lower label wins.

    Args:
        train_features, val_features: (N, D) and (M, D), on one device.
        train_labels, val_labels: (N,) and (M,) integers, 0..num_classes - 1.
        num_classes: number of classes.
        k: number of neighbours; all N if there are fewer.
        temperature: above 0; the lower, the more the nearest neighbours weigh.

    Returns:
        The share of correct validation images, 0..1.

    Raises:
        DataError: shapes that do not match, no images, or a label out of range (A49).
        DivergedError: a feature is not finite.
    """
    _check(train_features, train_labels, num_classes)
    _check(val_features, val_labels, num_classes)
    train = F.normalize(train_features.float(), dim=1)
    labels, truth = (labels.to(train.device).long() for labels in (train_labels, val_labels))
    k = min(k, len(train))
    correct = 0
    for rows, targets in _blocks(val_features, truth, max(len(train), num_classes)):
        similarity, nearest = (F.normalize(rows.float(), dim=1) @ train.T).topk(k, dim=1)
        votes = train.new_zeros(len(rows), num_classes)
        votes.scatter_add_(1, labels[nearest], (similarity / temperature).exp())
        correct += int((best_label(votes) == targets).sum())
    return correct / len(truth)


def linear_probe_accuracy(
    train_features: Tensor,
    train_labels: Tensor,
    val_features: Tensor,
    val_labels: Tensor,
    num_classes: int,
    *,
    l2: float = 1.0,
) -> float:
    """Compute the accuracy of a linear classifier of the features, fitted by `linear_probe`.

    Args:
        train_features, val_features: (N, D) and (M, D).
        train_labels, val_labels: (N,) and (M,) integers, 0..num_classes - 1.
        num_classes: number of classes.
        l2: weight of the penalty, as in `linear_probe`.

    Returns:
        The share of correct validation images, 0..1.

    Raises:
        DataError: shapes that do not match, no images, or a label out of range (A49).
        DivergedError: a feature is not finite.
    """
    _check(val_features, val_labels, num_classes)
    weight, bias = linear_probe(train_features, train_labels, num_classes, l2=l2)
    correct = 0
    for rows, targets in _blocks(val_features, val_labels.to(val_features.device).long(), num_classes):
        logits = rows.to(weight) @ weight.T + bias
        correct += int((best_label(logits) == targets.to(logits.device)).sum())
    return correct / len(val_labels)


def linear_probe(features: Tensor, labels: Tensor, num_classes: int, *, l2: float = 1.0) -> tuple[Tensor, Tensor]:
    """Fit a linear classifier of features.

    The loss is the sum of the cross-entropies of standardised features plus l2 / 2 times the sum of the squared
    weights, without the bias. L-BFGS on all images, from zero, needs no random numbers and no learning rate.

    Args:
        features: (N, D).
        labels: (N,) integers, 0..num_classes - 1.
        num_classes: number of classes, K.
        l2: weight of the penalty, 1 / `C` of scikit-learn's LogisticRegression.

    Returns:
        Weight (K, D) and bias (K,), float64, for features that are not standardised.

    Raises:
        DataError: shapes that do not match, no images, or a label out of range (A49).
        DivergedError: a feature is not finite.
    """
    _check(features, labels, num_classes)
    if features.device.type == "mps":  # has no float64
        features = features.cpu()
    labels = labels.to(features.device).long()
    mean, deviation = _mean_and_deviation(features)
    parameters = torch.zeros(num_classes, features.shape[1] + 1, dtype=torch.float64, device=features.device)
    parameters.requires_grad_()
    optimizer = torch.optim.LBFGS(
        [parameters], max_iter=_MAX_STEPS, history_size=20, tolerance_grad=1e-6, tolerance_change=1e-10,
        line_search_fn="strong_wolfe",
    )  # fmt: skip

    def objective() -> Tensor:
        # Divided by the number of images, so that the tolerances do not depend on it.
        weight, bias = parameters.detach()[:, :-1], parameters.detach()[:, -1]
        loss = l2 / 2 * weight.square().sum()
        gradient = torch.cat((l2 * weight, torch.zeros_like(bias)[:, None]), dim=1)
        for rows, targets in _blocks(features, labels, max(num_classes, features.shape[1])):
            # Products in float32, which is much faster on most GPUs; sums and steps in float64.
            x = ((rows.double() - mean) / deviation).float()
            log_probabilities = (x @ weight.float().T + bias.float()).log_softmax(dim=1)
            loss -= log_probabilities.gather(1, targets[:, None]).double().sum()
            error = log_probabilities.exp() - F.one_hot(targets, num_classes)
            gradient[:, :-1] += error.T @ x
            gradient[:, -1] += error.double().sum(dim=0)
        parameters.grad = gradient / len(labels)
        return loss / len(labels)

    optimizer.step(objective)
    weight = parameters.detach()[:, :-1] / deviation
    return weight, parameters.detach()[:, -1] - weight @ mean


def _mean_and_deviation(features: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation (D,) of each feature, float64; 1 as deviation of a constant feature."""
    rows = max(1, _MAX_VALUES // features.shape[1])
    mean = sum(part.double().sum(dim=0) for part in features.split(rows)) / len(features)
    square = sum((part.double() - mean).square().sum(dim=0) for part in features.split(rows)) / len(features)
    deviation = torch.as_tensor(square).sqrt()
    # A constant feature has the rounding error of its mean as deviation, not 0.
    return mean, torch.where(deviation > 1e-6 * mean.abs(), deviation, 1.0)


def _blocks(features: Tensor, labels: Tensor, values: int) -> zip:
    """Split rows and labels into blocks for which `values` numbers per row fit into memory."""
    rows = max(1, _MAX_VALUES // values)
    return zip(features.split(rows), labels.split(rows), strict=True)


def _check(features: Tensor, labels: Tensor, num_classes: int) -> None:
    if features.ndim != 2 or labels.shape != features.shape[:1]:
        raise DataError(f"features {tuple(features.shape)} and labels {tuple(labels.shape)}, expected (N, D) and (N,)")
    if not features.numel():
        raise DataError(f"features {tuple(features.shape)} are empty", remedy="pass the features of at least one image")
    check_labels(labels, num_classes)
    check_finite(features, "feature")
