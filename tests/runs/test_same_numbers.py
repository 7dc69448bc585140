"""The same training gives the same numbers: twice, with worker processes, with more threads, and as written down.

python tests/runs/test_same_numbers.py    # writes tests/golden/loss_curves.txt anew, after a change that is meant
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from small_families import FAMILIES, Trained, train, write_data

CURVES = Path(__file__).parents[1] / "golden" / "loss_curves.txt"
STEPS = 20
# Batch norm over the last cell of four images divides by next to nothing in these: rounding grows tenfold a step, so
# that only equal bits stay equal. The wide network takes a minute.
UNSTABLE = ("mnasnet", "efficientnet", "san", "wide_resnet")
STABLE = tuple(family for family in FAMILIES if family not in UNSTABLE)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def exact(data, tmp_path_factory) -> Callable[[str], Trained]:
    """Trainings in float64 with one thread."""
    known: dict[str, Trained] = {}

    def find(family: str) -> Trained:
        if family not in known:
            known[family] = in_float64(family, data, tmp_path_factory.mktemp("runs") / "one", 1)
        return known[family]

    return find


def in_float64(family: str, data: Path, run: Path, threads: int) -> Trained:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return train(family, data, run, STEPS, torch.float64)
    finally:
        torch.set_num_threads(before)


def assert_same(one: Trained, other: Trained) -> None:
    assert one.losses == other.losses
    assert one.weights.keys() == other.weights.keys()
    assert [name for name, tensor in one.weights.items() if not torch.equal(tensor, other.weights[name])] == []


@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_seed_gives_the_same_bits(family, data, tmp_path):
    """Though worker processes load the images, and other random numbers were drawn before."""
    first = train(family, data, tmp_path / "first", 4)
    torch.rand(7)
    assert_same(train(family, data, tmp_path / "workers", 4, workers=2), first)
    assert len(set(first.losses)) == 4 and train(family, data, tmp_path / "seed", 1, seed=4).losses != first.losses[:1]


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_seed_gives_the_same_bits_after_60_steps(family, data, tmp_path):
    first = train(family, data, tmp_path / "first", 60)
    for name, workers in (("again", 0), ("workers", 2)):
        assert_same(train(family, data, tmp_path / name, 60, workers=workers), first)


@pytest.mark.parametrize("family", STABLE)
def test_threads_change_no_more_than_rounding(family, data, exact, tmp_path):
    """They divide sums in another way, which float64 rounds by 1e-16; 20 steps of Adam made that 4e-12 at most.

    No family had equal bits. In float32 the same share of rounding would decide where gradients are 0 but for it, as of
    the bias of keys.
    """
    one, two = exact(family), in_float64(family, data, tmp_path / "two", 2)
    for name, tensor in one.weights.items():
        torch.testing.assert_close(
            two.weights[name], tensor, rtol=0, atol=1e-9, msg=lambda text, n=name: f"{n}: {text}"
        )


@pytest.mark.parametrize("family", STABLE)
def test_losses_are_those_written_down(family, exact):
    """To the last digit on the version of torch that wrote them; within 1e-5 elsewhere, where random draws may round
    otherwise. In float64, so that neither the processor nor its threads show in six digits.
    """
    made_with, curves = read_curves()
    found = [f"{loss:.6g}" for loss in exact(family).losses]
    if made_with == machine():
        assert found == curves[family]
    worst = max(range(STEPS), key=lambda k: abs(float(found[k]) - float(curves[family][k])))
    assert float(found[worst]) == pytest.approx(float(curves[family][worst]), rel=1e-5), f"step {worst + 1}"


def test_all_families_are_written_down():
    _, curves = read_curves()
    assert tuple(curves) == STABLE and all(len(losses) == STEPS for losses in curves.values())
    assert all(float(losses[-1]) < float(losses[0]) for losses in curves.values())


def machine() -> str:
    return f"torch {torch.__version__.partition('+')[0]}, {torch.backends.cpu.get_cpu_capability()}"


def read_curves() -> tuple[str, dict[str, list[str]]]:
    first, *lines = CURVES.read_text().splitlines()
    names, *rows = (line.split() for line in lines)
    return first, {name: [row[k] for row in rows] for k, name in enumerate(names)}


def write_curves() -> None:
    with tempfile.TemporaryDirectory() as folder:
        data = write_data(Path(folder) / "data")
        curves = {name: in_float64(name, data, Path(folder) / name, 1).losses for name in STABLE}
    rows = [STABLE, *([f"{curves[name][k]:.6g}" for name in STABLE] for k in range(STEPS))]
    lines = ["  ".join(f"{cell:>{max(8, len(name))}}" for cell, name in zip(row, STABLE, strict=True)) for row in rows]
    CURVES.write_text("\n".join([machine(), *lines]) + "\n")


if __name__ == "__main__":
    sys.exit(write_curves())
