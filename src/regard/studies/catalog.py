"""All studies by name. No torch: `regard study` lists them at once."""

from __future__ import annotations

from regard.errors import escape
from regard.studies.attention import ATTENTION
from regard.studies.deit import DEIT
from regard.studies.detr import DETR
from regard.studies.study import Study

STUDIES: dict[str, Study] = {**ATTENTION, **DETR, **DEIT}

# Studies that have commands of their own: question, source, cost.
OTHERS: dict[str, tuple[str, str, str]] = {
    "convergence": (
        "How much sooner does DETR learn with anchors, denoising and focal loss?",
        "Carion et al. 2020, section 4; Meng et al. 2021, figure 1",
        "3 runs of 4 minutes on 2 cores",
    ),
    "explanations": (
        "Do maps of attention show the evidence for a detection?",
        "deletion and insertion as in Petsiuk et al. 2018",
        "1 run of 4 minutes on 2 cores",
    ),
    "padding": (
        "What does padding do to panoptic quality?",
        "Carion et al. 2020, PostProcessPanoptic of the authors",
        "no training",
    ),
    "gallery": (
        "What do predictions and attention of small models look like?",
        "pictures of the three papers",
        "an hour on 2 cores",
    ),
}


def list_studies() -> list[str]:
    """Return lines that describe every study: command, question, source, cost."""
    lines = []
    for name, study in STUDIES.items():
        rows = {(row.words, row.longer): (row.seeds or 3) * row.longer for row in study.rows if row.words}
        minutes = study.minutes * sum(rows.values())
        cost = f"about {minutes:.0f} minutes on one core: {len(rows)} networks, 3 seeds, --data {study.data}"
        full = "; --full for the paper's own" if any(row.full for row in study.rows) else ""
        lines += [f"regard study {name}", f"    {study.question}", f"    {study.source}", f"    {cost}{full}"]
    for name, about in OTHERS.items():
        data = " --data DIR" if name == "padding" else ""
        lines += [f"regard study {name}{data}", *(f"    {text}" for text in about)]
    return [escape(line) for line in lines]
