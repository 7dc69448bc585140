"""Run a study with a table: `regard study NAME`. Torch is imported when the words are known to be right."""

from __future__ import annotations

import functools
import json
import math
import shlex
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from regard.data.paths import WITH_BOXES, check_data, data_text
from regard.errors import ConfigError, MachineError, counted, escape
from regard.safe_files import hold_lock, make_writable, replace_text
from regard.studies.folder import FORMAT, claim, plan_of
from regard.studies.options import StudyOptions
from regard.studies.plan import Plan, data_fingerprint, full_words, plan_runs, share_budget
from regard.studies.study import RUN, Measure, Row, Scale, Study

Granted = dict[str, Any]  # minutes of a run and seeds, of a budget, with the seeds asked for


def run_study(name: str, study: Study, options: StudyOptions, more: Mapping[str, object] | None = None) -> None:
    """Train what is missing, then print the table and write `results.*`.

    Args:
        more: settings of this study alone that decide its rows; kept in study.json.

    Raises:
        ConfigError: a number is out of range (C03), or the folder holds something else (C11).
        DataError: there is no such data.
        SystemExit: a run failed; with its exit code, after all others and the table.
    """
    _check(study, options)
    if options.full and options.data is None:
        print("\n".join(full_commands(name, study, options)))
        return
    data = data_text(options.data or study.data)
    check_data(data)
    if study.generated and data.partition(":")[0] not in WITH_BOXES:
        what = "this study draws images like those of the data, which must be generated ones"
        raise ConfigError(what, where=data, remedy=f"leave out --data, or use --data {WITH_BOXES[0]}", code="C09")
    epochs = options.epochs or (0 if options.full else study.epochs)  # 0: those of the recipe
    scale = Scale(data=data, epochs=epochs, train_images=options.train_images)
    output = options.output or Path("runs/studies", f"{name}-full" if options.full else name)
    about = {"format": FORMAT, "study": name, **asdict(scale), "full": options.full, **(more or {})}
    found = plan_of(output)

    from regard.studies.trainings import cores
    from regard.training.distributed import choose_device

    device = choose_device("auto").type
    jobs = options.jobs or (cores() if device == "cpu" else 1)
    granted = _granted(study, options, jobs, (found or {}).get("budget"))
    seeds = options.seeds if granted is None else granted["seeds"]
    minutes = None if granted is None else granted["minutes"]
    if found is not None:
        claim(output, {**about, "budget": granted})  # refuses another study before data are read
    fingerprint = functools.cache(lambda text: data_fingerprint(text, study.task))
    plan = plan_runs(study, scale, seeds, fingerprint, minutes, options.full)
    claim(output, {**about, "budget": granted})
    make_writable(options.runs)
    with hold_lock(output / ".lock", on_busy=functools.partial(_refuse, output)):
        _run(name, study, plan, _how(scale, minutes), (output, options.runs, jobs, device))


def _run(name: str, study: Study, plan: Plan, how: str, where: tuple[Path, Path, int, str]) -> None:
    from regard.studies.result_files import show_results, write_results
    from regard.studies.results import make_result
    from regard.studies.trainings import Trainer, environment_of

    output, store, jobs, device = where
    _tell(f"{name}: {counted(len(plan.trainings), 'run')}, {jobs} at a time, {how} -> {store}")
    failures = Trainer(store, jobs, environment_of(device), _tell).train(plan.trainings)
    scores: dict[str, dict[int, float]] = {}
    runs = {}
    for row in study.rows:
        if row.name in plan.keys:
            folders = {s: run for s, run in plan.folders(row.name, store).items() if (run / "metrics.json").is_file()}
            others = {seed: plan.folder(row.beside, seed, store) if row.beside else None for seed in folders}
            found = {seed: score_of(study, row, run, others[seed]) for seed, run in folders.items()}
            scores[row.name] = {seed: value for seed, value in found.items() if value is not None}
            runs[row.name] = tuple(map(str, folders.values()))
    result = make_result(name, study, scores, runs, how)
    write_results(result, output)
    show_results(result)
    print(output / "results.md")
    if failures:
        for failure in failures:
            _tell(f"failed: {failure.training.row}, seed {failure.training.seed} — {failure.line}")
        _tell("the same command tries the failed runs again")
        raise SystemExit(next(failure.code for failure in failures if failure.code))


def score_of(study: Study, row: Row, run: Path, other: Path | None = None) -> float | None:
    """Return the score of a finished run in the unit of the study; None if it is undefined, such as AP without objects.

    Raises:
        ConfigError: the run has no such statistic (C01).
    """
    statistic, measure = row.statistic or study.statistic, row.measure or study.measure
    metrics = json.loads((run / "metrics.json").read_text())
    stats = metrics["stats"] if measure is None else _measured(measure, run, metrics["data"], other)
    if statistic not in stats:
        raise ConfigError(f"no statistic {statistic!r}, known: {', '.join(stats)}", where=run, code="C01")
    value = stats[statistic]
    if value is None or not math.isfinite(value):
        return None
    return 100 * value if study.unit == "%" else value


def _measured(measure: Measure, run: Path, data: str, other: Path | None) -> dict[str, float]:
    """Measure a run once; the numbers are kept in its folder."""
    kept = run / "study_measures.json"
    numbers = json.loads(kept.read_text()) if kept.is_file() else {}
    name = f"{measure.__name__} {other.name}" if other else measure.__name__
    if name not in numbers:
        numbers[name] = dict(measure(run, data, other))
        replace_text(kept, json.dumps(numbers, indent=1))
    return numbers[name]


def full_commands(name: str, study: Study, options: StudyOptions) -> list[str]:
    """Return the commands of the paper's own scale, one a line, with the folder of each run.

    Raises:
        ConfigError: the study has no such scale (C09).
    """
    scale = Scale(data=study.full_data, epochs=options.epochs or 0, train_images=options.train_images)
    rows = {row.name: row for row in study.rows if row.full}
    if not rows:
        raise ConfigError("this study has a small scale only", remedy="leave out --full", code="C09")
    folder = options.output or Path("runs/studies", f"{name}-full")
    folders = {row: folder / "".join(c if c.isalnum() else "_" for c in row) for row in rows}
    lines = []
    for row in rows.values():
        plain = full_words(row, scale)
        data = [] if any(word.startswith("data=") for word in plain) else ["--data", scale.data]
        for seed in range(min(options.seeds, row.seeds or options.seeds)):
            words = [_with_folder(word, folders, seed) for word in plain]
            output = f"{folders[row.name]}-{seed}"
            lines.append(shlex.join(["regard", "train", *words, *data, f"seed={seed}", "--output", output]))
    return lines


def _with_folder(word: str, folders: Mapping[str, Path], seed: int) -> str:
    """Return a word with the folder of the run that it names, of this seed."""
    key, separator, row = word.partition(f"={RUN}")
    return f"{key}={folders[row]}-{seed}" if separator else word


def _granted(study: Study, options: StudyOptions, jobs: int, found: Granted | None) -> Granted | None:
    """Return what a budget grants. That of the first time stays, so that all runs of a table have the same minutes."""
    if options.budget is None:
        return None
    if found is not None:
        seeds = found["seeds"] if options.seeds == found["asked"] else options.seeds
        each = counted(found["minutes"], "minute")
        _tell(f"budget: {each} for each run, as at the first time, {counted(seeds, 'seed')}")
        return found if seeds == found["seeds"] else {**found, "seeds": seeds, "asked": options.seeds}
    rows = [row for row in study.rows if row.words]
    shares = {
        seeds: sum(row.longer * min(seeds, row.seeds or seeds) for row in _different(rows))
        for seeds in range(1, options.seeds + 1)
    }
    minutes, seeds = share_budget(options.budget, shares, jobs)
    fewer = "" if seeds == options.seeds else f" instead of {options.seeds}, so that no run has less than half a minute"
    _tell(f"budget: {counted(minutes, 'minute')} for each run, {counted(seeds, 'seed')}{fewer}")
    return {"minutes": minutes, "seeds": seeds, "asked": options.seeds}


def _different(rows: list[Row]) -> list[Row]:
    """Rows that are runs of their own."""
    return list({(row.words, row.longer): row for row in rows}.values())


def _how(scale: Scale, minutes: float | None) -> str:
    images = "" if scale.train_images is None else f", {counted(scale.train_images, 'training image')}"
    time = counted(scale.epochs, "epoch") if scale.epochs else "epochs of the recipes"
    time = time if minutes is None else f"{counted(minutes, 'minute')} each"
    return f"data {scale.data}{images}, {time}"


def _check(study: Study, options: StudyOptions) -> None:
    """Raises ConfigError for options out of range (C03) or that do not go together (C09)."""
    numbers = {"epochs": options.epochs, "seeds": options.seeds, "jobs": options.jobs}
    for name, value in {**numbers, "train_images": options.train_images}.items():
        if value is not None and value < 1:
            raise ConfigError(f"{name}={value}, expected at least 1", code="C03")
    if options.budget is not None and not 0 < options.budget < math.inf:
        raise ConfigError(f"budget={options.budget:g}, expected more than 0 minutes", code="C03")
    if options.train_images is not None and study.task != "classification":
        raise ConfigError("--train-images is for classifiers", remedy="leave it out", code="C09")
    if options.budget is not None and (options.full or options.epochs is not None):
        other = "--full" if options.full else "--epochs"
        raise ConfigError(f"--budget and {other} exclude each other", remedy="leave one of them out", code="C09")


def _refuse(output: Path, holder: str) -> None:
    what = f"this study is running already ({holder})"
    raise MachineError(what, where=output, remedy="wait for it, or name another --output", code="T14")


def _tell(line: str) -> None:
    print(escape(line), file=sys.stderr, flush=True)
