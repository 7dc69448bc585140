"""The table of a study: means over seeds beside the paper's numbers, and what may be said of its order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean, stdev
from typing import Any

from regard.errors import counted
from regard.studies.paired_tests import ALPHA, Comparison, compare, holm
from regard.studies.study import Study


@dataclass(frozen=True)
class RowResult:
    """A row of a table.

    scores: by seed, in the unit of the study. against: the baseline, None for itself. published, published_difference:
    the paper's number, or its difference to the baseline.
    """

    name: str
    scores: Mapping[int, float]
    published: float | None
    against: Comparison | None
    runs: tuple[str, ...] = ()
    published_difference: float | None = None

    @property
    def mean(self) -> float | None:
        return fmean(self.scores.values()) if self.scores else None

    @property
    def std(self) -> float | None:
        return stdev(self.scores.values()) if len(self.scores) > 1 else None


@dataclass(frozen=True)
class StudyResult:
    """A finished study. how: one line on data, time and seeds. verdict: one sentence on the paper's order."""

    name: str
    study: Study
    rows: tuple[RowResult, ...]
    how: str
    verdict: str

    def as_json(self) -> dict[str, Any]:
        rows = [
            {
                "row": row.name,
                "scores": {str(seed): value for seed, value in row.scores.items()},
                "mean": row.mean,
                "std": row.std,
                "published": row.published,
                "published_difference": row.published_difference,
                "against_baseline": None if row.against is None else asdict(row.against),
                "runs": row.runs,
            }
            for row in self.rows
        ]
        about = {
            "study": self.name, "question": self.study.question, "source": self.study.source,
            "statistic": self.study.statistic, "unit": self.study.unit, "published": self.study.published,
            "baseline": self.study.baseline, "how": self.how, "verdict": self.verdict,
        }  # fmt: skip
        return {**about, "rows": rows}


def make_result(
    name: str, study: Study, scores: Mapping[str, Mapping[int, float]], runs: Mapping[str, tuple[str, ...]], how: str
) -> StudyResult:
    """Compare rows with the baseline over their common seeds; those with fewer seeds by definition are not compared.

    Args:
        scores: row -> seed -> score in the unit of the study; rows may be missing.
        runs: row -> its folders.
    """
    base = scores.get(study.baseline, {})
    rows = []
    for row in study.rows:
        own = scores.get(row.name, {})
        compared = row.name != study.baseline and row.seeds is None and not row.step  # a teacher is no rival
        common = sorted(own.keys() & base.keys()) if compared else []
        against = compare([own[seed] for seed in common], [base[seed] for seed in common]) if common else None
        paths = runs.get(row.name, ())
        rows.append(RowResult(row.name, own, row.published, against, paths, row.published_difference))
    return StudyResult(name, study, tuple(rows), how, verdict_of(study.baseline, rows))


@dataclass(frozen=True)
class Order:
    """What became of the differences to the baseline that a paper has, by names of rows.

    alike: of the same sign here. seen: of these, those beyond the noise of seeds. turned: of the other sign, beyond the
    noise. noise: neither seen nor turned.
    """

    alike: tuple[str, ...]
    seen: tuple[str, ...]
    turned: tuple[str, ...]
    noise: tuple[str, ...]

    @property
    def count(self) -> int:
        return len(self.seen) + len(self.turned) + len(self.noise)


def order_of(baseline: str, rows: Sequence[RowResult]) -> Order:
    """Compare the differences that the paper has, other than 0, with ours.

    Ours counts if the paired t-test, adjusted for the number of rows (Holm 1979), has p below 0.05.
    """
    told = _told(baseline, rows)
    tested = [row for row in rows if row.name in told and row.against is not None and row.against.p is not None]
    adjusted = holm([row.against.p for row in tested if row.against is not None and row.against.p is not None])
    seen: list[str] = []
    turned: list[str] = []
    for row, p in zip(tested, adjusted, strict=True):
        if row.against is not None and p < ALPHA:
            (seen if row.against.difference * told[row.name] > 0 else turned).append(row.name)
    ours = {row.name: row.against.difference for row in rows if row.against is not None}
    alike = tuple(name for name, difference in told.items() if difference * ours[name] > 0)
    return Order(alike, tuple(seen), tuple(turned), tuple(name for name in told if name not in (*seen, *turned)))


def _told(baseline: str, rows: Sequence[RowResult]) -> dict[str, float]:
    """Return the paper's difference to the baseline, other than 0, of each row that is compared here."""
    base = next((row.published for row in rows if row.name == baseline), None)
    told = {row.name: row.published - base for row in rows if row.published is not None and base is not None}
    told |= {row.name: row.published_difference for row in rows if row.published_difference is not None}
    return {row.name: told[row.name] for row in rows if told.get(row.name) and row.against is not None}


def verdict_of(baseline: str, rows: Sequence[RowResult]) -> str:
    """Return which differences of the paper to the baseline are seen here, in words, see `order_of`."""
    order, told = order_of(baseline, rows), _told(baseline, rows)
    if not told:
        return "The paper gives no numbers for these rows from which an order follows."
    start = f"Of the paper's {counted(len(told), 'difference')} to {baseline!r}"
    seeds = sorted({row.against.pairs for row in rows if row.name in told and row.against is not None})
    if seeds == [1]:
        others = tuple(name for name in told if name not in order.alike)
        same, other = _named("has the same sign here", order.alike), _named("does not", others)
        chance = "One seed cannot tell a difference from chance: for tests add --seeds 3 to the command."
        return f"{start}, {same}, {other}. {chance}"
    count = str(seeds[0]) if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    seen, turned = _named("is seen here", order.seen), _named("is the other way round here", order.turned)
    return f"{start}, {seen}, {turned}, {_named(f'cannot be told from chance with {count} seeds', order.noise, False)}."


_PLURALS = (("has ", "have "), ("does ", "do "), ("is ", "are "))


def _named(verb: str, names: Sequence[str], shown: bool = True) -> str:
    """Return how many names do something, and which: `2 are seen here (a, b)`."""
    one, many = next((pair for pair in _PLURALS if verb.startswith(pair[0])), ("", ""))
    text = f"{len(names)} {verb if len(names) == 1 else many + verb.removeprefix(one)}"
    return f"{text} ({', '.join(names)})" if names and shown else text
