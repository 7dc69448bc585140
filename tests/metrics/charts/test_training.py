"""The chart of a training: which numbers share a panel, and what it refuses."""

from pathlib import Path
from typing import Any

import pytest

from charts import looks_drawn
from regard.errors import DataError
from regard.metrics.charts.training import _panels, loss_pair, plot_curves


def test_picture_of_a_training(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"step": step, "epoch": step // 10, "train/loss": 9 / (step + 1), "train/loss_ce": 2.0, "lr": 1e-4}
        for step in range(300)
    ]
    rows += [{"step": step, "val/AP": step / 600, "val/AP50": step / 400, "val/loss": 2} for step in range(9, 300, 10)]
    rows[5]["train/loss"] = float("nan")
    rows[20]["val/AP"] = None
    path = plot_curves(rows, tmp_path / "new" / "curves.png")
    assert looks_drawn(path)
    nan, one = float("nan"), [{"step": 1, "train/loss": 3.0, "lr": None}, {"step": 1, "val/AP": 0.1}]
    for few in ([{"step": 1, "note": "x"}], one, [*one, {"step": 2, "train/loss": nan, "lr": 1.0, "val/AP": None}]):
        with pytest.raises(DataError) as raised:
            plot_curves(few, tmp_path / "none.png")
        assert "none.png" in str(raised.value) and not (tmp_path / "none.png").exists()


def test_numbers_of_one_step_are_no_curve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A panel of one evaluation is left out; beside a curve its point stays."""
    figures = []
    monkeypatch.setattr("regard.metrics.charts.style.save", lambda figure, path: figures.append(figure) or path)
    rows = [{"step": s, "train/loss": 1.0 / s, "train/lr": 1.0} for s in (1, 2, 3)]
    first, second = {"step": 3, "val/loss": 2.0, "val/AP": 0.1}, {"step": 2, "val/AP": 0.0}
    for more, scores in ((first, []), (second, ["score"])):
        rows.append(more)
        plot_curves(rows, tmp_path / "curves.png")
        shown = {axes.get_title(): axes for axes in figures[-1].axes if axes.get_title()}
        assert set(shown) == {"loss", *scores, "learning rate"}
        assert [line.get_label() for line in shown["loss"].lines] == ["training", "validation"]


@pytest.mark.parametrize("more", [{}, {"train/loss_ce": 1.0}, {"train/loss_ce": 1.0, "train/lr": 1.0}])
def test_losses_and_scores_are_in_the_first_column(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: dict[str, float]
) -> None:
    """A phone shows the left of a wide chart: it should have what matters most."""
    figures = []
    monkeypatch.setattr("regard.metrics.charts.style.save", lambda figure, path: figures.append(figure) or path)
    plot_curves([{"step": s, "train/loss": 1.0, "val/AP": 0.1 * s, **more} for s in (1, 2)], tmp_path / "curves.png")
    left = {axes.get_title(): axes.get_subplotspec().colspan.start for axes in figures[0].axes if axes.get_title()}
    assert left["loss"] == left["score"] == 0 and len(left) == 2 + len(more)
    assert all(column == 1 for name, column in left.items() if name not in ("loss", "score"))


def test_training_and_validation_loss_are_the_same_sum() -> None:
    """The minimised loss has all decoder layers, or soft labels: it is drawn only where nothing else is known."""
    detector = ["train/loss", "train/loss_ce", "train/loss_ce_0", "train/loss_last_layer", "val/loss", "val/loss_ce"]
    assert _panels(detector) == {
        "loss": ["train/loss_last_layer", "val/loss"],
        "terms of the loss": ["train/loss_ce", "val/loss_ce"],
    }
    assert loss_pair(["train/loss", "train/nll", "val/loss", "val/nll"]) == ("train/nll", "val/nll")
    assert loss_pair(["train/loss", "val/loss", "val/nll"]) == ("train/loss", "val/loss")


def test_the_legend_hides_no_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = []
    monkeypatch.setattr("regard.metrics.charts.style.save", lambda figure, path: figures.append(figure) or path)
    rows = [{"step": s, "train/loss": 1.0 / s, "val/loss": 2.0 / s, "val/AP": 0.1, "train/lr": 1.0} for s in (1, 2, 3)]
    plot_curves(rows, tmp_path / "curves.png")
    figures[0].draw_without_rendering()
    panels = [axes for axes in figures[0].axes if axes.get_legend()]
    assert len(panels) == 3
    for axes in panels:
        assert axes.get_legend().get_window_extent().y1 <= axes.get_window_extent().y0
