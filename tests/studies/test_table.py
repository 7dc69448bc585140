"""`regard study NAME` from words to table: what is trained, kept, resumed, told and refused."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from command_line import digest, run
from regard.studies.catalog import STUDIES

SMALL = ["--epochs", "2", "--train-images", "20"]
ROWS = [row.name for row in STUDIES["positions"].rows]


def trained(log):
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def scores(folder):
    with (Path(folder) / "results.csv").open(newline="") as file:
        return {row["row"]: row["scores"] for row in csv.DictReader(file)}


def test_a_study_is_trained_once(capsys, training):
    words = ["study", "positions", *SMALL, "--seeds", "2"]
    finished = run(capsys, *words, "--jobs", "3")
    told = finished.worked()
    assert "10 of 10 runs" in finished.err and all(name.split()[-1] in told for name in ROWS)
    assert len(trained(training)) == 10
    for command in trained(training):
        assert {"evaluate_every=2", "train_images=20", "epochs=2", "--recipe", "small"} <= set(command)
    assert list(scores("runs/studies/positions")) == ROWS
    before = digest(Path("runs"))
    assert run(capsys, *words, "--jobs", "1").worked() == told
    assert len(trained(training)) == 10 and digest(Path("runs")) == before
    # Five seeds train three more of each; another study trains what it does not share.
    words[-1] = "5"
    run(capsys, *words).worked()
    assert len(trained(training)) == 25
    run(capsys, "study", "attention", *SMALL).worked()
    assert len(trained(training)) == 31  # the plain network is shared, the one with default positions is not
    assert json.loads(Path("runs/studies/positions/results.json").read_text())["rows"][0]["runs"][0].endswith("-0")


def test_jobs_do_not_change_the_table(capsys, training, monkeypatch):
    tables = []
    for jobs in (1, 4):
        output = f"out{jobs}"
        run(capsys, "study", "positions", *SMALL, "--jobs", jobs, "--output", output, "--runs", f"r{jobs}").worked()
        tables.append(scores(output))
    assert tables[0] == tables[1] and len(set(tables[0].values())) == len(ROWS)


def test_a_failed_run_is_named_and_the_others_go_on(capsys, training, monkeypatch):
    monkeypatch.setenv("FAIL", "resnet20")
    words = ["study", "distillation", *SMALL, "--seeds", "1"]
    finished = run(capsys, *words)
    assert finished.code == 5 and "failed: teacher: ResNet-20, seed 0 — error T07" in finished.err
    assert "not trained: hard, seed 0" in finished.err and "no distillation" in finished.out
    models = {command[1] for command in trained(training)}
    assert models == {"resnet20", "deit_nano_patch4_32", "deit_nano_distilled_patch4_32"}
    assert len(trained(training)) == 3  # the teacher, the student alone, and the one that it teaches
    monkeypatch.delenv("FAIL")
    monkeypatch.setattr("regard.studies.table._measured", lambda *_: {"class_top1": 0.5, "distillation_top1": 0.25})
    run(capsys, *words).worked()
    again = [command for command in trained(training)[3:] if "--resume" in command]
    assert len(trained(training)) == 3 + 4 and len(again) == 1
    found = scores("runs/studies/distillation")
    assert found["token, hard, class head only"] == "50.0" and found["token, hard, distillation head only"] == "25.0"


def test_a_killed_study_goes_on(capsys, training, tmp_path, monkeypatch):
    """After kill -9 its running trainings go on; the same command waits for them and trains the rest."""
    monkeypatch.setenv("WAIT_FOR", str(tmp_path / "go"))
    driver = driver_of(tmp_path)
    words = ["study", "attention", *SMALL, "--seeds", "2", "--jobs", "2"]
    killed = subprocess.Popen([sys.executable, driver, *words], stderr=subprocess.DEVNULL)
    wait_for(lambda: len(trained(training)) == 2)
    killed.kill()
    killed.wait()
    monkeypatch.setattr("regard.studies.trainings.WAIT", 0.1)
    second = subprocess.Popen([sys.executable, driver, *words], stderr=subprocess.PIPE, text=True)
    line = next(line for line in second.stderr if "waiting for process" in line)
    assert "seed 0" in line and len(trained(training)) == 2
    (tmp_path / "go").touch()
    second.communicate()
    assert second.returncode == 0 and len(trained(training)) == 6
    assert all(len(values.split(";")) == 2 for values in scores("runs/studies/attention").values())


def test_an_interrupted_study_stops_its_trainings(training, tmp_path, monkeypatch):
    monkeypatch.setenv("WAIT_FOR", str(tmp_path / "never"))
    driver = driver_of(tmp_path)
    for number, code in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        training.unlink(missing_ok=True)
        study = subprocess.Popen([sys.executable, driver, "study", "attention", *SMALL, "--jobs", "2"])
        wait_for(lambda: len(trained(training)) == 2)
        study.send_signal(number)
        assert study.wait(60) == code and len(trained(training)) == 2
    locks = [path for path in Path("runs/studies/trained").rglob(".lock") if is_held(path)]
    assert not locks


def driver_of(folder):
    """Write a command line whose trainings are those of the fixture. It hears Ctrl-C where its caller does not."""
    driver = folder / "driver.py"
    driver.write_text(
        "import signal, sys, regard.studies.trainings as t\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs inherit SIG_IGN\n"
        f"t.launch_command = lambda words, _: [sys.executable, {str(folder / 'train.py')!r}, *words]\n"
        "from regard.cli import main\nmain(sys.argv[1:])\n"
    )
    return driver


def wait_for(done, seconds=120):
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end
        time.sleep(0.05)


def is_held(path):
    import fcntl

    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def test_budget(capsys, training):
    """10 minutes for 5 networks of 3 seeds, one at a time: 40 seconds each; the first time decides."""
    words = ["study", "positions", "--train-images", "20", "--jobs", "1", "--budget", "10"]
    finished = run(capsys, *words)
    assert "0.66 minutes for each run, 3 seeds" in finished.err and "0.66 minutes each" in finished.worked()
    assert all("minutes=0.66" in command for command in trained(training)) and len(trained(training)) == 15
    words[-1] = "90"
    assert "0.66 minutes for each run, as at the first time" in run(capsys, *words).err
    run(capsys, *words, "--seeds", "4").worked()
    assert len(trained(training)) == 20
    fewer = run(capsys, "study", "attention", "--jobs", "1", "--budget", "2", "--train-images", "20")
    assert "0.66 minutes for each run, 1 seed instead of 3" in fewer.err
    run(capsys, *words[:4]).refused(2, "C11", "another study is here")


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["--epochs", "0"], "C03", "epochs=0"),
        (["--seeds", "0"], "C03", "seeds=0"),
        (["--jobs", "0"], "C03", "jobs=0"),
        (["--budget", "0"], "C03", "budget=0"),
        (["--budget", "nan"], "C03", "budget=nan"),
        (["--budget", "3", "--epochs", "3"], "C09", "--epochs"),
        (["--budget", "3", "--full", "--data", "digits"], "C09", "--full"),
    ],
)
def test_numbers_out_of_range(capsys, training, words, code, says):
    for name in ("attention", "distillation"):
        run(capsys, "study", name, *words).refused(2, code, says)
    assert not Path("runs").exists()


def test_other_folders_are_left_alone(capsys, training):
    """A folder of an earlier version, of another study, and one's own files are refused and not changed."""
    old, mine = Path("old"), Path("mine")
    old.mkdir()
    mine.mkdir()
    plan = {"data": "digits", "epochs": 12, "train_images": None, "seeds": 3}
    (old / "study.json").write_text(json.dumps(plan))
    (old / "scores.json").write_text("{}")
    (mine / "study.json").write_text("not JSON")
    run(capsys, "study", "attention", *SMALL, "--output", "third").worked()
    before, count = digest(Path()), len(trained(training))
    run(capsys, "study", "attention", "--output", old).refused(2, "C11", "another version", "old")
    run(capsys, "study", "attention", "--output", mine).refused(2, "C11", "not empty", "mine")
    run(capsys, "study", "attention", "--epochs", "3", "--output", "third").refused(2, "C11", "epochs=2")
    run(capsys, "study", "positions", *SMALL, "--output", "third").refused(2, "C11", "study=attention")
    assert digest(Path()) == before and len(trained(training)) == count


def test_full_prints_commands_and_runs_them_on_named_data(capsys, training):
    told = run(capsys, "study", "distillation", "--full", "--seeds", "2").worked().splitlines()
    assert not Path("runs").exists() and all(line.startswith("regard train deit_base") for line in told)
    kind = next(line for line in told if "--output runs/studies/distillation-full/token__hard__teacher_of" in line)
    assert "teacher=runs/studies/distillation-full/no_distillation-0" in kind and "--data imagenet/" in kind
    run(capsys, "study", "disagreement", "--full").refused(2, "C09", "small scale only")
    run(capsys, "study", "attention", "--full", "--data", "digits", "--seeds", "1").worked()
    assert sorted(command[1] for command in trained(training)) == ["aa_resnet50", "resnet50", "resnet50"]
    assert all("imagenet" in command and "small" not in command for command in trained(training))


def test_a_study_runs_once_at_a_time(capsys, training):
    from regard.safe_files import hold_lock

    run(capsys, "study", "attention", *SMALL, "--seeds", "1").worked()
    with hold_lock(Path("runs/studies/attention/.lock"), on_busy=print):
        run(capsys, "study", "attention", *SMALL, "--seeds", "1").refused(6, "T14", os.getpid())
