"""Networks over several seeds: stopped runs go on, and numbers are checked first."""

import pytest

from command_line import run


def test_a_stopped_run_is_gone_on_with(capsys, tmp_path, trained):
    words = ["study", "attention", "--data", "digits", "--seeds", "1", "--output", tmp_path / "out"]
    run(capsys, *words).worked()
    (tmp_path / "out" / "augmented__coordinates-0" / "metrics.json").unlink()
    (tmp_path / "out" / "augmented__coordinates-0" / "config.yaml").write_text("")
    (tmp_path / "out" / "augmented__relative-0" / "metrics.json").unlink()
    trained.clear()
    run(capsys, *words).worked()
    resumed, anew = sorted(trained, key=lambda command: command[command.index("--output") + 1])
    assert "--resume" in resumed and "--recipe" not in resumed
    assert "--resume" not in anew and "aa_resnet20" in anew
    assert "augmentation=cifar" not in anew  # digits are not mirrored


@pytest.mark.parametrize("name", ["attention", "distillation"])
@pytest.mark.parametrize("words", [["--epochs", "0"], ["--seeds", "0"]])
def test_numbers_out_of_range(capsys, tmp_path, name, words):
    run(capsys, "study", name, *words, "--output", tmp_path / "out").refused(2, "C03", "expected at least 1")
    assert not (tmp_path / "out").exists()
