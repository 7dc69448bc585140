"""What a study is: a question, a table of a paper, and a training for each of its rows. No torch.

A study of a new kind is written in four steps; `studies/attention.py` is the example:

1. Write a `Study`: its `rows` are trainings in words of `regard train`, the model first. Data, epochs, seed and folder
   are added, and the words of `common(scale)` that all rows share: `small_images` for classifiers of up to 32 pixels,
   `generated_objects` for small detectors, your own function for others. A row without words shows a published number
   alone.
2. A word `KEY=run:ROW`, such as `teacher=run:ResNet`, stands for the run of the row of that name: of the same seed if
   that row has it, else of its first seed.
3. What a row reports is `statistic`, a name in `stats` of the run's metrics.json. If it is not there, `measure` is a
   function (run folder, data, another run) -> numbers by name, in `studies/measures.py`; they are measured once for
   each run. Rows of the same words share one run.
4. Add it to the dict of its file (`ATTENTION`), which `studies/catalog.py` lists.

`regard study NAME` does the rest: keys of runs, resuming, processes, budget, tests over seeds, tables and pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

RUN = "run:"  # begins the value of a word that stands for a run of another row
Measure = Callable[[Path, str, Path | None], Mapping[str, float]]


@dataclass(frozen=True, kw_only=True)
class Scale:
    """The size of a study. `train_images`: number of training images; all if None."""

    data: str
    epochs: int
    train_images: int | None = None


def small_images(scale: Scale) -> list[str]:
    """Words for classifiers of small images: the recipe `small`, with mirror images except for digits."""
    words = ["--recipe", "small", f"evaluate_every={scale.epochs}", "workers=0"]
    words += [] if scale.data == "digits" else ["augmentation=cifar"]
    return words if scale.train_images is None else [*words, f"train_images={scale.train_images}"]


def generated_objects(scale: Scale) -> list[str]:
    """Words for small detectors on generated images: one evaluation at the end, and mirror images alone."""
    return [f"evaluate_every={scale.epochs}", "workers=0", "batch_size=16", "augmentation=flip"]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of a table.

    Attributes:
        name: as it is printed.
        words: of `regard train`, the model first; empty for a row that is only published.
        full: words of the paper's own training, for `--full`; empty if there is none.
        published: the paper's number, in the unit of `Study.published`.
        published_difference: the paper's difference to the baseline, where it gives no number of its own for the row.
        statistic, measure: of this row, if not those of the study.
        beside: name of the row whose run `measure` gets as the other one, by the rule of `run:`.
        longer: epochs of this row over those of the study.
        seeds: the most seeds that are trained, 1 for a teacher, which is then not compared with the baseline; as many
            as asked for if None.
        step: whether it only leads to another row, and is not compared.
        own: whether `words` are the whole recipe, without those of `Study.common`.
    """

    name: str
    words: tuple[str, ...] = ()
    full: tuple[str, ...] = ()
    published: float | None = None
    published_difference: float | None = None
    statistic: str | None = None
    measure: Measure | None = None
    beside: str | None = None
    longer: float = 1.0
    seeds: int | None = None
    step: bool = False
    own: bool = False


@dataclass(frozen=True, kw_only=True)
class Study:
    """A comparison.

    Attributes:
        question: one sentence.
        source: paper, and its table, figure or section.
        published: what the published numbers are, with unit: `top-1 on ImageNet in %`.
        rows: in the order of the table. Names are unique.
        baseline: name of the row that the others are compared with.
        task: decides how data are opened.
        statistic: what is compared, a name in `stats` of metrics.json.
        measure: where the statistic comes from, if not from metrics.json.
        unit: of our numbers, `%` of a fraction, or a word for numbers that are shown as they are.
        data, epochs: of the small scale, if the user names none.
        minutes: of a run of the small scale on one CPU core, about.
        common: words that all rows share at small scale; the recipe's own if None.
        full_data: the data that the paper's own scale needs, in words.
        generated: whether its measure draws images like those of the data, which must be generated ones.
    """

    question: str
    source: str
    published: str
    rows: tuple[Row, ...]
    baseline: str
    task: Literal["classification", "detection", "panoptic"] = "classification"
    statistic: str = "top1"
    measure: Measure | None = None
    unit: str = "%"
    data: str = "digits"
    epochs: int = 12
    minutes: float = 0.5
    common: Callable[[Scale], list[str]] | None = field(default=small_images)
    full_data: str = "imagenet/"
    generated: bool = False

    def __post_init__(self) -> None:
        names = [row.name for row in self.rows]
        sources = [word.partition(f"={RUN}")[2] for row in self.rows for word in row.words if f"={RUN}" in word]
        sources += [row.beside for row in self.rows if row.beside is not None]
        wrong = {self.baseline, *sources} - set(names)
        if wrong or len(set(names)) < len(names):
            raise ValueError(f"rows {names}: unique names, and among them {sorted(wrong)}")
        if both := [row.name for row in self.rows if None not in (row.published, row.published_difference)]:
            raise ValueError(f"rows {both}: a published number or a difference, not both")
