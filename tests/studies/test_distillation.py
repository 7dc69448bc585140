"""The comparison of ways to distil: what it trains, in which order, and whom it judges."""

import json
from types import SimpleNamespace

from command_line import run
from regard.models.build import create
from regard.studies.distillation import DISTILLED, PLAIN


def test_distillation_study(capsys, tmp_path, trained, monkeypatch):
    """The teacher is first, then the students without one, then those who learn from either."""
    judged = []

    def evaluate(net, data, **_):
        judged.append((net.config.fuse, data))
        return SimpleNamespace(stats={"top1": 0.25})

    monkeypatch.setattr("regard.studies.distillation.load", lambda _: create(DISTILLED))
    monkeypatch.setattr("regard.studies.distillation.evaluate", evaluate)
    told = run(capsys, "study", "distillation", "--seeds", "2", "--output", tmp_path / "out").worked()
    models = [command[command.index("train") + 1] for command in trained]
    assert models[:3] == ["resnet20", PLAIN, PLAIN] and len(models) == 1 + 2 * 5
    teachers = [next((word for word in command if word.startswith("teacher=")), None) for command in trained]
    assert teachers[:3] == [None] * 3
    assert set(teachers[3:]) == {
        f"teacher={tmp_path}/out/teacher-0", f"teacher={tmp_path}/out/no_distillation-0",
    }  # fmt: skip
    assert sum("distillation=soft" in command for command in trained) == 2
    assert models.count(DISTILLED) == 4 and judged == [("class", "digits")] * 2 + [("distillation", "digits")] * 2
    scores = json.loads((tmp_path / "out" / "scores.json").read_text())["top1"]
    assert scores["token, hard, class head only"] == [0.25, 0.25] and len(scores) == 8
    assert all(name in told for name in scores)
