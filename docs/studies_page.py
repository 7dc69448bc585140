"""The page of all studies, from scores that are kept in the repository and the folders of new ones.

    uv run python docs/studies_page.py runs/studies/positions --machine "one core of a shared x86 server (AVX-512)"

Scores of the folders go into docs/results/studies.json, where those of a study replace what it had; without folders the
page is made again. A `remark` there, such as why an order is not the paper's, is written by hand and goes with its
scores. Questions, published numbers and what is said of the order are those of the source. The page is
docs/results/studies.md.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from regard.data.paths import GENERATED
from regard.studies.attention import ATTENTION
from regard.studies.catalog import STUDIES
from regard.studies.deit import DEIT
from regard.studies.detr import DETR
from regard.studies.result_files import markdown_table, notes
from regard.studies.results import StudyResult, make_result, order_of
from regard.studies.study import Study

PAGE = Path(__file__).parent / "results" / "studies.md"
SCORES = PAGE.with_suffix(".json")
PAPERS: Mapping[str, Mapping[str, Study]] = {
    "Attention in convolutional networks": ATTENTION,
    "DETR": DETR,
    "DeiT": DEIT,
}
INTRODUCTION = """# All studies, ours beside theirs

Each comparison of the papers, run at a small scale by the command above its table: small networks on generated images,
on handwritten digits or on a part of CIFAR-10, minutes on a core of a CPU. The published numbers are those of large
networks on ImageNet or COCO. Compare the order of the rows, not their heights.
[Compare as the papers do](../guide/studies.md) says what the columns mean, and which command covers which table.

A difference is beyond the noise if a paired t-test over the seeds, adjusted for the number of rows (Holm), has
p < 0.05. One seed shows none. What the papers found after hundreds of epochs may be absent, or the other way round,
after a few.
"""
END = """## How this page is made

```console
uv run regard study positions --data cifar10/ --epochs 6 --train-images 5000
uv run python docs/studies_page.py runs/studies/positions runs/studies/encoder_layers
```
"""


@dataclass(frozen=True)
class Finished:
    """A study that has run, as docs/results/studies.json keeps it.

    command: words after `uv run`. how: data, epochs and seeds in words. date: of its last run. machine, versions: what
    trained it. scores: row -> seed -> score in the unit of the study. remark: sentences on the result.
    """

    study: str
    command: str
    how: str
    date: str
    machine: str
    versions: str
    scores: Mapping[str, Mapping[str, float]]
    remark: str = ""

    @property
    def result(self) -> StudyResult:
        """Compare the scores as the study of today does.

        Raises:
            ValueError: rows that it does not have.
        """
        study = STUDIES[self.study]
        names = names_of_today(list(self.scores), [row.name for row in study.rows if row.words], self.study)
        scores = {names[row]: {int(seed): value for seed, value in seeds.items()} for row, seeds in self.scores.items()}
        return make_result(self.study, study, scores, {}, self.how)


def read_study(folder: Path, machine: str) -> Finished:
    """Read the folder of a study.

    Raises:
        ValueError: no results, those of `--full`, or a teacher or a size of the user's.
    """
    if not (folder / "results.json").is_file():
        raise ValueError(f"{folder}: no results.json: run the study to its end")
    plan, found = (json.loads((folder / name).read_text()) for name in ("study.json", "results.json"))
    if plan["full"] or {"teacher", "size"} & set(plan):
        raise ValueError(f"{folder}: not the study's own small scale")
    rows = [row for row in found["rows"] if row["runs"]]
    scores = {row["row"]: {seed: round(value, 4) for seed, value in row["scores"].items()} for row in rows}
    runs = [Path(run) for row in rows for run in row["runs"]]
    data = data_word(plan["data"])
    return Finished(
        study=plan["study"], command=command_of(plan, data, scores), how=found["how"].replace(plan["data"], data),
        date=date_of(runs), machine=machine, versions=versions_of(runs), scores=scores,
    )  # fmt: skip


def read_scores() -> dict[str, Finished]:
    """Read the studies that the repository keeps, by name."""
    return {name: Finished(study=name, **one) for name, one in json.loads(SCORES.read_text()).items()}


def write_scores(studies: Iterable[Finished]) -> None:
    """Write the studies in the order of `STUDIES`."""
    known = sorted(studies, key=lambda one: list(STUDIES).index(one.study))
    kept = {one.study: {name: value for name, value in asdict(one).items() if name != "study"} for one in known}
    SCORES.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


def names_of_today(found: Sequence[str], rows: Sequence[str], study: str) -> dict[str, str]:
    """Return the name that each row has today. Rows that were renamed stand in the same order; they are told.

    Raises:
        ValueError: there are more or fewer rows today.
    """
    old, new = [name for name in found if name not in rows], [name for name in rows if name not in found]
    if len(old) != len(new):
        raise ValueError(f"{study}: rows {list(found)}, expected {list(rows)}: run the study again")
    for one, other in zip(old, new, strict=True):
        print(f"{study}: {one!r} is now {other!r}", file=sys.stderr)
    return {**{name: name for name in found}, **dict(zip(old, new, strict=True))}


def data_word(data: str) -> str:
    """Return generated data as they are, and of a folder its name alone."""
    return data if data.partition(":")[0] in GENERATED else f"{Path(data).name}/"


def command_of(plan: Mapping[str, Any], data: str, scores: Mapping[str, Mapping[str, float]]) -> str:
    """Return the command that has made a folder, without what is the default."""
    study = STUDIES[plan["study"]]
    words = ["regard", "study", plan["study"]]
    words += [] if data == study.data else ["--data", data]
    if plan["budget"] is not None:
        words += ["--budget", "MINUTES"]
    elif plan["epochs"] != study.epochs:
        words += ["--epochs", str(plan["epochs"])]
    words += [] if plan["train_images"] is None else ["--train-images", str(plan["train_images"])]
    seeds = max(len(values) for values in scores.values())
    return shlex.join([*words, *([] if seeds == 3 else ["--seeds", str(seeds)])])


def date_of(runs: Iterable[Path]) -> str:
    """Return the day of the last run."""
    last = max((run / "metrics.json").stat().st_mtime for run in runs)
    return datetime.fromtimestamp(last, UTC).date().isoformat()


def versions_of(runs: Iterable[Path]) -> str:
    """Return the versions of torch and the devices of runs."""
    told = [json.loads((run / "environment.json").read_text()) for run in runs]
    return ", ".join(dict.fromkeys(f"torch {one['torch'].partition('+')[0]} on {one['device']}" for one in told))


def page(studies: Sequence[Finished]) -> str:
    """Return the page: a table of all studies, then each with its table, by paper."""
    by_name = {one.study: one for one in studies}
    parts = [INTRODUCTION, "\n".join(summary(studies)) + "\n"]
    missing = [name for name in STUDIES if name not in by_name]
    if missing:
        parts.append(f"Not here yet: {', '.join(f'`{name}`' for name in missing)}.\n")
    for title, names in PAPERS.items():
        found = [section(by_name[name]) for name in names if name in by_name]
        parts += [f"## {title}\n", *found] if found else []
    return "\n".join([*parts, END])


def summary(studies: Sequence[Finished]) -> list[str]:
    """Return the lines of a table: what became of the differences that the paper has."""
    names = (
        "study",
        "seeds",
        "of the paper's differences, same sign here",
        "beyond the noise",
        "turned, beyond the noise",
    )
    lines = [f"| {' | '.join(names)} |", "| --- | ---: | ---: | --- | --- |"]
    for one in sorted(studies, key=lambda one: list(STUDIES).index(one.study)):
        result = one.result
        order = order_of(result.study.baseline, result.rows)
        seeds = max(len(row.scores) for row in result.rows)
        cells = f"[{result.name}](#{result.name})", str(seeds), f"{len(order.alike)} of {order.count}"
        lines.append(f"| {' | '.join((*cells, ', '.join(order.seen), ', '.join(order.turned)))} |")
    return lines


def section(one: Finished) -> str:
    """Return a study: question, command, table, and the lines below it."""
    result = one.result
    ours, published, _, verdict = notes(result)
    lines = [
        f"### {result.name}", "", result.study.question, "", "```console", f"uv run {one.command}", "```", "",
        *markdown_table(result), "", f"{ours} {published} Differences are to {result.study.baseline!r}.", "", verdict,
        *(["", one.remark] if one.remark else []), "", f"{one.date}, {one.machine}, {one.versions}.", "",
    ]  # fmt: skip
    return "\n".join(lines)


def main() -> None:
    """Keep the scores of the folders that are named, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folders", nargs="*", type=Path, help="of finished studies")
    parser.add_argument("--machine", default="one core of a CPU", help="on which those ran, in words")
    given = parser.parse_args()
    kept = read_scores()
    for one in (read_study(folder, given.machine) for folder in given.folders):
        old = kept.get(one.study)
        kept[one.study] = one if old is None or old.scores != one.scores else replace(one, remark=old.remark)
    studies = list(kept.values())
    write_scores(studies)
    PAGE.write_text(page(studies), encoding="utf-8")
    print(PAGE)


if __name__ == "__main__":
    main()
