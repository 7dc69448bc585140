"""The results of a study as Markdown, CSV, LaTeX, JSON, a picture with error bars, and on the terminal."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from regard.safe_files import replace_text
from regard.studies.results import RowResult, StudyResult
from regard.studies.study import Study

COLUMNS = ("row", "mean", "std", "seeds", "published", "diff.", "p", "needed")


def cells(row: RowResult) -> tuple[str, ...]:
    """One row of the table as text, in the order of `COLUMNS`; empty where there is no number."""
    against = row.against
    return (
        row.name,
        _number(row.mean),
        _number(row.std),
        str(len(row.scores) or ""),
        _published(row),
        "" if against is None else f"{against.difference:+.2f}",
        "" if against is None or against.p is None else _p(against.p),
        _needed(row),
    )


def write_results(result: StudyResult, output: Path) -> None:
    """Write `results.json`, `.md`, `.csv`, `.tex` and `.png` to `output`."""
    replace_text(output / "results.json", json.dumps(result.as_json(), indent=2))
    replace_text(output / "results.md", markdown(result))
    replace_text(output / "results.csv", csv_text(result))
    replace_text(output / "results.tex", latex(result))
    draw(result, output / "results.png")


def show_results(result: StudyResult) -> None:
    """Print the table and the sentence."""
    table = Table(*COLUMNS, title=result.study.question)
    table.columns[0].overflow = "fold"
    for column in table.columns[1:]:
        column.justify, column.no_wrap = "right", True
    for row in result.rows:
        table.add_row(*cells(row))
    console = Console()
    console.print(table)
    console.print(*notes(result), sep="\n", markup=False, highlight=False)


def notes(result: StudyResult) -> list[str]:
    """Lines below the table."""
    study = result.study
    signed = any(row.published_difference is not None for row in result.rows)
    sign = "; with a sign, the difference to the baseline" if signed else ""
    return [
        f"Our numbers: {_score(study)}; {result.how}.",
        f"Published: {study.published}{sign}; {study.source}.",
        f"Differences are to {study.baseline!r}, paired by seed, with p of a two-sided t-test. Needed: seeds that "
        "would show such a difference with a probability of 0.8 at p < 0.05, by the deviation seen here.",
        result.verdict,
    ]


def markdown_table(result: StudyResult) -> list[str]:
    """Return the lines of the table."""
    lines = [_bars(COLUMNS), _bars(("---", *["---:"] * (len(COLUMNS) - 1)))]
    return lines + [_bars([cell.replace("|", "\\|") for cell in cells(row)]) for row in result.rows]


def markdown(result: StudyResult) -> str:
    lines = [f"# {result.name}", "", result.study.question, "", *markdown_table(result)]
    lines += [text for note in notes(result) for text in ("", note)]
    return "\n".join([*lines, "", "![A dot for each seed, a bar of one standard deviation](results.png)", ""])


def csv_text(result: StudyResult) -> str:
    """One line a row with full digits; the scores of the seeds are in one cell, with semicolons."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = ["row", "mean", "std", "seeds", "published", "published_difference"]
    writer.writerow([*names, "difference", "p", "seeds_needed", "scores"])
    for row in result.rows:
        against = row.against
        compared = (None, None, None) if against is None else (against.difference, against.p, against.seeds_needed)
        scores = ";".join(str(row.scores[seed]) for seed in sorted(row.scores))
        published = row.published, row.published_difference
        writer.writerow([row.name, row.mean, row.std, len(row.scores), *published, *compared, scores])
    return text.getvalue()


def latex(result: StudyResult) -> str:
    """A `tabular` that needs no package."""
    lines = [r"\begin{tabular}{lrrrrrrr}", r"\hline", _ampersands(COLUMNS), r"\hline"]
    lines += [_ampersands(cells(row)) for row in result.rows]
    return "\n".join([*lines, r"\hline", r"\end{tabular}", ""])


def draw(result: StudyResult, path: Path) -> None:
    """Draw a dot for each seed, the mean, and an error bar of one standard deviation."""
    from regard.metrics.charts.style import BLUE, INK, apply, figure, save

    rows = [row for row in result.rows if row.scores][::-1]
    picture = figure(6.5, 1.0 + 0.4 * max(1, len(rows)))
    axes = picture.add_subplot()
    for place, row in enumerate(rows):
        values = list(row.scores.values())
        axes.plot(values, [place] * len(values), "o", color=BLUE, alpha=0.5, markersize=5)
        axes.errorbar([row.mean or 0.0], [place], xerr=[row.std or 0.0], fmt="|", color=INK, markersize=14, capsize=4)
    axes.set_yticks(range(len(rows)), [row.name.replace("$", r"\$") for row in rows])
    axes.set_ylim(-0.6, max(1, len(rows)) - 0.4)
    axes.set(xlabel=f"{_score(result.study)}; dots: seeds, bars: one standard deviation")
    apply(axes)
    save(picture, path)


def _score(study: Study) -> str:
    """Return what the numbers are, with their unit; without a name if rows have different ones."""
    names = {row.statistic or study.statistic for row in study.rows if row.words and not row.step}
    name = study.statistic if names == {study.statistic} else "as the rows say"
    return f"{name}, in %" if study.unit == "%" else f"{name} ({study.unit})"


def _published(row: RowResult) -> str:
    """Return the paper's number, with at least one decimal; with a sign if it is a difference to the baseline."""
    if row.published is None and row.published_difference is None:
        return ""
    text = f"{row.published:g}" if row.published is not None else f"{row.published_difference:+g}"
    return text if "." in text else f"{text}.0"


def _needed(row: RowResult) -> str:
    against = row.against
    if against is None or against.p is None or against.difference == 0:
        return ""
    return "over 1000" if against.seeds_needed is None else str(against.seeds_needed)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _p(value: float) -> str:
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def _bars(words: Sequence[str]) -> str:
    return f"| {' | '.join(words)} |"


_TEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": "$<$", ">": "$>$"}
_TEX |= {letter: f"\\{letter}" for letter in "&%$#_{}"}


def _ampersands(words: Sequence[str]) -> str:
    return " & ".join("".join(_TEX.get(letter, letter) for letter in word) for word in words) + r" \\"
