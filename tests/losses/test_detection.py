"""The loss against the authors' numbers and against itself written out image by image."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
import torch.distributed
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision import ops

from loss_cases import (
    GOLDEN,
    Targets,
    golden_output,
    golden_targets,
    plain_criterion,
    plain_match,
    random_output,
    random_targets,
)
from refusals import refused
from regard.errors import DataError, DivergedError
from regard.losses import SetCriterion
from regard.losses.detection import average_over_processes
from regard.structures.outputs import Denoising, DetectionOutput

KINDS = ("softmax", "focal")


# --- cases ---

CASES = ("plain", "auxiliary", "groups", "denoising", "crowded", "one empty", "all empty")


def case(name: str, kind: str, seed: int = 0) -> tuple[DetectionOutput, Targets]:
    """An output with leaves that take gradients, and targets of 4 classes."""
    classes = 4 + (kind == "softmax")
    counts = {"crowded": [9, 1, 2], "one empty": [3, 0, 2], "all empty": [0, 0, 0]}.get(name, [3, 1, 1])
    targets = random_targets(counts, 4, seed)
    groups = 3 if name in ("groups", "denoising") else 1
    depth = 1 if name == "plain" else 3
    layers = [random_output(3, 6 * groups, classes, 10 * seed + i) for i in range(depth)]
    output = layers[-1]._replace(auxiliary=layers[:-1], num_groups=groups)
    if name == "denoising":  # two copies of three targets, and of one with padding
        noised = [random_output(3, 6, classes, 100 + i) for i in range(depth)]
        known = torch.tensor([[0, 1, 2] * 2, [0, -1, -1] * 2, [0, -1, -1] * 2])
        parts = (torch.stack([n.logits for n in noised]), torch.stack([n.boxes for n in noised]))
        output = output._replace(denoising=Denoising(*parts, known))
    for leaf in leaves(output):
        leaf.requires_grad_()
    return output, targets


def leaves(output: DetectionOutput) -> list[Tensor]:
    found = [part for layer in (*output.auxiliary, output) for part in (layer.logits, layer.boxes)]
    return found + ([] if output.denoising is None else [output.denoising.logits, output.denoising.boxes])


def detached(output: DetectionOutput, dtype: torch.dtype) -> DetectionOutput:
    """The same numbers as leaves of their own."""

    def copy(x: Tensor) -> Tensor:
        return x.detach().to(dtype).requires_grad_()

    layers = [DetectionOutput(copy(layer.logits), copy(layer.boxes)) for layer in (*output.auxiliary, output)]
    noised = output.denoising
    if noised is not None:
        noised = Denoising(copy(noised.logits), copy(noised.boxes), noised.target)
    return layers[-1]._replace(auxiliary=layers[:-1], num_groups=output.num_groups, denoising=noised)


def only_losses(losses: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in losses.items() if name.startswith("loss_")}


def assert_same_losses(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """To 1e-12: sums of some hundred numbers in another order, each rounded by 1e-16. Other numbers are float32."""
    assert found.keys() == expected.keys() and only_losses(found)
    for name, value in expected.items():
        most = 1e-12 if name.startswith("loss_") else 1e-6
        torch.testing.assert_close(found[name], value, rtol=most, atol=most, msg=lambda text, n=name: f"{n}: {text}")


def criterion_of(kind: str) -> SetCriterion:
    return SetCriterion(4, classification=kind)  # type: ignore[arg-type]


# --- tests ---


class TestAuthors:
    def test_losses_of_every_layer(self) -> None:
        golden = json.loads((GOLDEN / "detr_resnet50.losses.json").read_text())
        found = SetCriterion(91)(golden_output(), golden_targets(golden))
        assert found.keys() == golden["losses"].keys()
        for name, expected in golden["losses"].items():
            assert found[name].item() == pytest.approx(expected, rel=1e-4), name


@pytest.mark.parametrize("kind", KINDS)
class TestWrittenOut:
    @pytest.mark.parametrize("name", CASES)
    def test_values_and_gradients(self, name: str, kind: str) -> None:
        output, targets = case(name, kind)
        criterion = criterion_of(kind)
        found = criterion(output, targets)
        criterion.total(found).backward()

        plain = detached(output, torch.float64)
        expected = plain_criterion(plain, targets, kind)
        assert only_losses(found).keys() == expected.keys()
        for key, value in expected.items():
            assert found[key].shape == () and found[key].item() == pytest.approx(value.item(), rel=1e-4, abs=1e-6), key
        factors = {"ce": 1 if kind == "softmax" else 2, "bbox": 5, "giou": 2}
        sum(factors[key.split("_")[1]] * value for key, value in expected.items()).backward()  # type: ignore[union-attr]
        for ours, theirs in zip(leaves(output), leaves(plain), strict=True):
            assert theirs.grad is not None
            torch.testing.assert_close(ours.grad, theirs.grad.float(), atol=1e-5, rtol=1e-3)

    @pytest.mark.parametrize("name", ["auxiliary", "denoising"])
    def test_the_last_layer_alone(self, name: str, kind: str) -> None:
        """Its losses are as before, and the earlier layers have none."""
        output, targets = case(name, kind)
        everything = only_losses(criterion_of(kind)(output, targets))
        criterion = SetCriterion(4, classification=kind, auxiliary_losses=False)  # type: ignore[arg-type]
        found = criterion(output, targets)
        expected = {key: value for key, value in everything.items() if not key[-1].isdigit()}
        assert only_losses(found).keys() == expected.keys() and len(everything) == 3 * len(expected)
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value)
        criterion.total(found).backward()
        assert all(layer.logits.grad is None for layer in output.auxiliary) and output.logits.grad is not None
        if output.denoising is not None:
            grad = output.denoising.logits.grad
            assert grad is not None and not grad[:-1].any() and grad[-1].any()

    @pytest.mark.parametrize("name", CASES)
    def test_permuted_targets_change_nothing(self, name: str, kind: str) -> None:
        output, targets = case(name, kind)
        orders = [torch.arange(len(target["labels"])).flip(0) for target in targets]
        permuted = [{key: value[order] for key, value in t.items()} for t, order in zip(targets, orders, strict=True)]
        other = output = detached(output, torch.float64)
        if output.denoising is not None:  # the noised copies stay those of their objects
            known = [
                torch.where(row >= 0, order[row.clamp(min=0)], -1)
                for row, order in zip(output.denoising.target, orders, strict=True)
            ]
            other = output._replace(denoising=output.denoising._replace(target=torch.stack(known)))
        assert_same_losses(criterion_of(kind)(other, permuted), criterion_of(kind)(output, targets))

    @pytest.mark.parametrize("name", CASES)
    def test_swapped_images_change_nothing(self, name: str, kind: str) -> None:
        output, targets = case(name, kind)
        output = detached(output, torch.float64)
        swapped = [DetectionOutput(x.logits.flip(0), x.boxes.flip(0)) for x in (*output.auxiliary, output)]
        noised = output.denoising
        if noised is not None:
            noised = Denoising(noised.logits.flip(1), noised.boxes.flip(1), noised.target.flip(0))
        other = output._replace(
            logits=swapped[-1].logits, boxes=swapped[-1].boxes, auxiliary=swapped[:-1], denoising=noised
        )
        assert_same_losses(criterion_of(kind)(other, targets[::-1]), criterion_of(kind)(output, targets))

    @pytest.mark.parametrize("name", CASES)
    def test_permuted_classes_change_nothing(self, name: str, kind: str) -> None:
        """No object, of the softmax, stays the last."""
        output, targets = case(name, kind)
        output, order = detached(output, torch.float64), torch.tensor([2, 0, 3, 1])
        columns = torch.cat((order, torch.tensor([4]))) if kind == "softmax" else order
        renamed = [{**target, "labels": order.argsort()[target["labels"]]} for target in targets]
        layers = [x._replace(logits=x.logits[..., columns]) for x in (*output.auxiliary, output)]
        noised = output.denoising
        if noised is not None:
            noised = noised._replace(logits=noised.logits[..., columns])
        other = layers[-1]._replace(auxiliary=layers[:-1], denoising=noised)
        assert_same_losses(criterion_of(kind)(other, renamed), criterion_of(kind)(output, targets))

    def test_equal_groups_cost_as_one(self, kind: str) -> None:
        output, targets = case("plain", kind)
        thrice = DetectionOutput(output.logits.repeat(1, 3, 1), output.boxes.repeat(1, 3, 1), num_groups=3)
        found = criterion_of(kind)(thrice, targets)
        for name, value in criterion_of(kind)(output, targets).items():
            torch.testing.assert_close(found[name], value)

    def test_half_precision_gives_float32(self, kind: str) -> None:
        output, targets = case("denoising", kind)
        half = detached(output, torch.bfloat16)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = criterion_of(kind)(half, targets)
        expected = criterion_of(kind)(detached(half, torch.float32), targets)
        for name, value in found.items():
            assert value.dtype == torch.float32, name
            torch.testing.assert_close(value, expected[name])
        criterion_of(kind).total(found).backward()
        assert all(leaf.grad is not None and leaf.grad.isfinite().all() for leaf in leaves(half))

    def test_boxes_without_area(self, kind: str) -> None:
        output, targets = case("auxiliary", kind)
        with torch.no_grad():
            for layer in (*output.auxiliary, output):
                layer.boxes[:, ::2, 2] = 0
                layer.boxes[:, 1::3, 3] = 0
        for target in targets:
            target["boxes"][0, 2:] = 0
        losses = criterion_of(kind)(output, targets)
        criterion_of(kind).total(losses).backward()
        assert all(value.isfinite() for value in losses.values())
        for leaf in leaves(output):
            assert leaf.grad is not None and leaf.grad.isfinite().all() and leaf.grad.abs().max() < 1e3

    def test_nan_names_the_image(self, kind: str) -> None:
        output, targets = case("auxiliary", kind)
        with torch.no_grad():
            output.auxiliary[1].logits[1, 3] = math.nan
        with refused(DivergedError, "images [1]", code="T09"):
            criterion_of(kind)(output, targets)

    @pytest.mark.parametrize("label", [-1, 4])
    def test_labels_that_are_no_class(self, label: int, kind: str) -> None:
        output, targets = case("plain", kind)
        targets[1]["labels"][0] = label
        with refused(DataError, f"label {label} ", "image 1 ", "0 to 3", code="A20"):
            criterion_of(kind)(output, targets)

    def test_statistics(self, kind: str) -> None:
        output, targets = case("groups", kind)
        found = criterion_of(kind)(output, targets)
        wrong, differences = [], []
        for i, target in enumerate(targets):
            predicted = 0
            for first in (0, 6, 12):
                part = slice(first, first + 6)
                match = plain_match(output.logits[i, part], output.boxes[i, part], target, kind)
                best = output.logits[i, part].argmax(-1).tolist()
                wrong += [best[q] != int(target["labels"][t]) for q, t in match.items()]
                empty = output.logits[i, part].amax(-1) <= 0
                predicted += sum(b < 4 if kind == "softmax" else not e for b, e in zip(best, empty, strict=True))
            differences.append(abs(predicted / 3 - len(target["labels"])))
        assert 0 < sum(wrong) < len(wrong)
        assert found["class_error"].item() == pytest.approx(100 * sum(wrong) / len(wrong))
        assert found["cardinality_error"].item() == pytest.approx(sum(differences) / 3)
        assert "class_error_0" not in found and "cardinality_error_1" in found


class TestFocal:
    @pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (0.5, 0.0), (0.9, 3.5)])
    def test_equals_torchvision(self, alpha: float, gamma: float) -> None:
        output, targets = case("plain", "focal")
        with torch.no_grad():
            output.logits[0, 0] = torch.tensor([-90.0, 90.0, -30.0, 30.0])
        criterion = SetCriterion(4, classification="focal", focal_alpha=alpha, focal_gamma=gamma)
        truth = torch.zeros_like(output.logits)
        for i, (query, target) in enumerate(criterion.matcher(output, targets)):
            truth[i, query, targets[i]["labels"][target]] = 1
        found = criterion(output, targets)["loss_ce"]
        expected = ops.sigmoid_focal_loss(output.logits, truth, alpha, gamma, reduction="sum") / 5
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


class TestOptions:
    def test_weights_of_the_total(self) -> None:
        output, targets = case("denoising", "softmax")
        criterion = SetCriterion(4, class_weight=3, bbox_weight=7, giou_weight=0.5)
        losses = criterion(output, targets)
        factors = {"ce": 3, "bbox": 7, "giou": 0.5}
        expected = sum(factors[name.split("_")[1]] * value for name, value in only_losses(losses).items())
        torch.testing.assert_close(criterion.total(losses), expected)
        assert len(only_losses(losses)) == 3 * 3 * 2  # terms, layers, denoising or not

    @pytest.mark.parametrize("weight", [0.0, 1.0])
    def test_weight_of_no_object(self, weight: float) -> None:
        output, targets = case("plain", "softmax")
        loss = SetCriterion(4, no_object_weight=weight)(output, targets)["loss_ce"]
        classes = torch.full((3, 6), 4)
        for i, (query, target) in enumerate(SetCriterion(4).matcher(output, targets)):
            classes[i, query] = targets[i]["labels"][target]
        weights = torch.tensor([1.0, 1, 1, 1, weight])
        expected = torch.nn.functional.cross_entropy(output.logits.flatten(0, 1), classes.flatten(), weights)
        torch.testing.assert_close(loss, expected)

    def test_nothing_to_learn_is_no_loss(self) -> None:
        output, targets = case("all empty", "softmax")
        criterion = SetCriterion(4, no_object_weight=0)
        total = criterion.total(criterion(output, targets))
        total.backward()
        assert total.item() == 0 and all(leaf.grad is not None and (leaf.grad == 0).all() for leaf in leaves(output))


class TestProcesses:
    def test_objects_are_averaged_over_processes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        output, targets = case("auxiliary", "focal")  # five objects here, eleven in the other process
        alone = SetCriterion(4, classification="focal")(output, targets)
        pretend_two_processes(monkeypatch, objects_elsewhere=11)
        together = SetCriterion(4, classification="focal")(output, targets)
        for name in only_losses(alone):
            torch.testing.assert_close(together[name] * 8, alone[name] * 5)

    def test_a_process_without_objects_asks_as_well(self, monkeypatch: pytest.MonkeyPatch) -> None:
        calls = pretend_two_processes(monkeypatch, objects_elsewhere=1)
        output, targets = case("all empty", "softmax")
        losses = SetCriterion(4)(output, targets)
        assert [call[0] for call in calls] == [0.0] and all(value.isfinite() for value in losses.values())

    def test_one_process_asks_none(self) -> None:
        assert average_over_processes([3], torch.device("cpu")) is None

    @pytest.mark.parametrize("name", ["auxiliary", "groups"])
    def test_the_mean_of_two_halves_is_the_whole(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        """Of the cross-entropy too, whose queries have weights by what they matched."""
        output, targets = case(name, "softmax")
        criterion = SetCriterion(4)
        whole = criterion(output, targets)
        halves = [(slice_output(output, part), targets[part]) for part in (slice(0, 1), slice(1, None))]
        counts: list[list[float]] = []
        monkeypatch.setattr(
            "regard.losses.detection.average_over_processes", lambda values, device: counts.append(list(values))
        )
        for half, of_half in halves:
            criterion(half, of_half)
        means = torch.tensor(counts, dtype=torch.float64).mean(0)
        monkeypatch.setattr("regard.losses.detection.average_over_processes", lambda values, device: means)
        parts = [criterion(half, of_half) for half, of_half in halves]
        for loss in ("loss_ce", "loss_bbox", "loss_giou", "loss_ce_0"):
            torch.testing.assert_close((parts[0][loss] + parts[1][loss]) / 2, whole[loss], rtol=1e-6, atol=1e-7)

    @pytest.mark.slow
    def test_two_real_processes(self, tmp_path: Path) -> None:
        torch.multiprocessing.spawn(_average_in_process, args=(str(tmp_path),), nprocs=2)
        assert [float((tmp_path / str(rank)).read_text()) for rank in range(2)] == [4.0, 4.0]


def slice_output(output: DetectionOutput, part: slice) -> DetectionOutput:
    auxiliary = [slice_output(layer, part) for layer in output.auxiliary]
    return output._replace(logits=output.logits[part], boxes=output.boxes[part], auxiliary=auxiliary)


def pretend_two_processes(monkeypatch: pytest.MonkeyPatch, objects_elsewhere: int) -> list[list[float]]:
    calls = []

    def all_reduce(total: Tensor) -> None:
        calls.append(total.tolist())
        total += objects_elsewhere

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    return calls


def _average_in_process(rank: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    (Path(folder) / str(rank)).write_text(str(float(average_over_processes([8 * rank], torch.device("cpu")))))
    torch.distributed.destroy_process_group()


# --- what would make a GPU wait ---

WAITS = {"item", "tolist", "numpy", "nonzero", "masked_select", "unique", "__bool__", "__int__", "__float__", "equal"}


class OnDevice(torch.Tensor):
    """A tensor that counts as lying on a GPU, and so does whatever is computed from it until `.cpu()`."""

    copies: list[tuple[int, ...]]

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        name = func.__name__
        assert name not in WAITS, f"{name} waits for the device"
        if name in ("__getitem__", "__setitem__"):
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            assert not any(isinstance(i, Tensor) and i.dtype == torch.bool for i in index), "a mask as index waits"
        result = super().__torch_function__(func, types, args, kwargs or {})
        if name == "cpu":
            cls.copies.append(tuple(result.shape))
            return result.as_subclass(torch.Tensor)
        return result


class NoWaiting(TorchDispatchMode):
    """Refuses every operation that reads a number on the host."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert not any(word in str(func) for word in ("_local_scalar_dense", "nonzero", "masked_select")), func
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["denoising", "crowded", "all empty"])
def test_one_copy_to_the_host_for_all_layers(name: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The costs of the matching, and nothing else: each more would stop a GPU once per layer or image."""
    output, targets = case(name, kind)

    def move(x: Tensor) -> Tensor:
        return x.detach().clone().as_subclass(OnDevice).requires_grad_()

    layers = [DetectionOutput(move(layer.logits), move(layer.boxes)) for layer in (*output.auxiliary, output)]
    noised = output.denoising
    if noised is not None:
        noised = Denoising(move(noised.logits), move(noised.boxes), noised.target)
    there = layers[-1]._replace(auxiliary=layers[:-1], num_groups=output.num_groups, denoising=noised)

    OnDevice.copies = []
    losses = criterion_of(kind)(there, targets)
    total = criterion_of(kind).total(losses)
    largest = max(len(target["labels"]) for target in targets)
    assert OnDevice.copies == [(3, 3, output.logits.shape[1], largest)]
    assert isinstance(total, OnDevice) and all(isinstance(value, OnDevice) for value in losses.values())
    with NoWaiting():
        total.backward()
    with pytest.raises(AssertionError, match="waits"):  # the check can fail
        float(total)


def test_each_object_teaches_four_proposals() -> None:
    """The best four of six cells, whose boxes leave an object by 0, 0.01, ... 0.05 to the right."""
    target = {"labels": torch.tensor([0]), "boxes": torch.tensor([[0.5, 0.5, 0.2, 0.2]])}
    shift = 0.01 * torch.arange(6.0)
    boxes = torch.tensor([0.5, 0.5, 0.2, 0.2]).repeat(6, 1)
    boxes[:, 0] += shift
    logits = torch.zeros(1, 6, 1)
    query = DetectionOutput(torch.zeros(1, 1, 1), target["boxes"][None])
    output = query._replace(proposals=DetectionOutput(logits, boxes[None]))
    losses = SetCriterion(1, classification="focal")(output, [target])
    assert losses["loss_bbox_proposals"].item() == pytest.approx(0.015)  # mean of 0 to 0.03
    focal = math.log(2) / 4  # at probability 0.5, times alpha 0.25 where present, 0.75 where absent
    assert losses["loss_ce_proposals"].item() == pytest.approx((4 * 0.25 + 2 * 0.75) * focal / 4)
    assert losses["loss_bbox"].item() == 0


def test_terms_are_scalars_that_a_log_can_read() -> None:
    output, targets = case("denoising", "focal")
    losses: Iterable[Tensor] = criterion_of("focal")(output, targets).values()
    assert all(value.dim() == 0 for value in losses)
