"""`RUN/report.html`: one file that says what was trained on what, how it went and how good the result is."""

from __future__ import annotations

from pathlib import Path

from regard.errors import DataError, counted
from regard.metrics.charts.training import plot_curves
from regard.results.reports.html import Html, element, section, table
from regard.results.reports.page import page
from regard.results.reports.pictures import attention_section, predictions_section, worst_section
from regard.results.reports.run_files import RunFiles
from regard.results.reports.scores import score_parts, tiles
from regard.results.reports.training import choices, curve_parts, data_parts, timing_parts, warnings_box
from regard.safe_files import replace_text
from regard.training.config import UNTIL_TIME_IS_UP
from regard.training.trackers import flat_settings

NAME = "report.html"


def write_report(run: Path) -> Path:
    """Write the report of a run, finished or not, from the files in its folder. Returns the path of the report.

    The report is one file of a few megabytes at most, without scripts and without addresses of other hosts. Training
    curves are drawn anew; all other pictures are those of the run.

    Raises:
        ConfigError: the folder is no run (K02).
        MachineError: matplotlib is not installed.
    """
    files = RunFiles(Path(run))
    name, data = str(files.settings.get("name", "a model")), str(files.settings.get("data", ""))
    try:
        plot_curves(files.rows, files.picture("curves.png"))
    except DataError:  # too few steps were done for a curve
        files.picture("curves.png").unlink(missing_ok=True)
    title = f"{name} on {Path(data).name or data}"
    parts = [
        element("h1", title),
        _summary(files),
        tiles(files),
        warnings_box(files),
        section("Data", *data_parts(files)),
        section("Training", *curve_parts(files), choices(files)),
        section("Scores", *score_parts(files)),
        worst_section(files),
        attention_section(files),
        predictions_section(files),
        section("Time", *timing_parts(files)),
        section("Settings", table(_facts(files))),
        section("Environment", table(_environment(files))),
    ]
    replace_text(files.folder / NAME, page(title, parts))
    return files.folder / NAME


def _summary(files: RunFiles) -> Html:
    best, rows = files.best, files.rows
    if not rows:
        return element("p", "No step has been done yet.", css="note")
    text = f"{counted(rows[-1]['step'], 'step')}, {counted(float(rows[-1].get('epoch', 0)), 'epoch')}."
    if best:
        text += f" The best checkpoint is that of step {best['step']:,} (epoch {best.get('epoch', 0):g})."
    return element("p", text, " Folder: ", element("code", str(files.folder)), css="note")


def _facts(files: RunFiles) -> list[tuple[str, str]]:
    facts = {name: _word(value) for name, value in flat_settings(files.settings).items()}
    if files.settings.get("minutes") is not None and files.settings.get("epochs") == UNTIL_TIME_IS_UP:
        facts["epochs"] = "as many as fit into minutes"
    return list(facts.items())


def _environment(files: RunFiles) -> list[tuple[str, str]]:
    known = {key: value for key, value in files.environment.items() if key != "counts"}
    return [(name, _word(value)) for name, value in flat_settings(known).items() if value is not None]


def _word(value: object) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "none"}[value]
    if isinstance(value, float):  # config.yaml has all digits
        return f"{value:.6g}"
    return ", ".join(map(_word, value)) if isinstance(value, list) else str(value)
