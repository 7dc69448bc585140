"""`regard study`: comparisons, each as one command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from regard.cli.groups import study_app
from regard.cli.typed import as_typed
from regard.errors import unknown_name
from regard.studies.options import StudyOptions


@study_app.default
def study(
    name: str | None = None,
    *,
    list: bool = False,
    options: Annotated[StudyOptions | None, Parameter(name="*")] = None,
) -> None:
    """Run a comparison of the papers at a small scale, with the published numbers beside ours.

    Args:
        name: of a study; lists all with question, source and cost if not given.
        list: list them.
    """
    from regard.studies.catalog import OTHERS, STUDIES, list_studies

    if name is None or list:
        print("\n".join(map(as_typed, list_studies())))
        return
    if name not in STUDIES:
        raise unknown_name("study", name, [*STUDIES, *OTHERS], code="C01", remedy="see: regard study")
    from regard.studies.table import run_study

    run_study(name, STUDIES[name], options or StudyOptions())


@study_app.command
def convergence(*, minutes: float = 4.0, output: Path = Path("runs/study-convergence")) -> None:
    """Compare DETR with and without anchors, denoising and focal loss, on the same data for the same time.

    Args:
        minutes: training time of each model.
        output: folder of the study.
    """
    from regard.studies.convergence import convergence

    convergence(minutes, output)


@study_app.command
def distillation(
    *,
    teacher: str | None = None,
    size: int | None = None,
    options: Annotated[StudyOptions | None, Parameter(name="*")] = None,
) -> None:
    """Compare ways of distillation for a small transformer: tables 2 and 3 of the DeiT paper in small.

    Args:
        teacher: teacher in place of a ResNet-20: a model with ImageNet weights, which learns the classes of the data
            first, such as efficientnet_lite0; another model, which starts from random weights; or a run on the data.
        size: side of the images in pixels; that of the teacher's weights, or 32, if not given.
    """
    from regard.studies.deit import DEIT, distillation_by
    from regard.studies.table import run_study

    options = options or StudyOptions()
    if teacher is None and size is None:
        run_study("distillation", DEIT["distillation"], options)
    else:
        study, settings = distillation_by(teacher, size, options.data)
        run_study("distillation", study, options, settings)


@study_app.command
def explanations(*, minutes: float = 4.0, images: int = 60, output: Path = Path("runs/study-explanations")) -> None:
    """Test attention maps by deletion and insertion on the detections of a small DETR.

    Args:
        minutes: training time.
        images: number of validation images whose detections are tested.
        output: folder of the study; the same command resumes a stopped study.
    """
    from regard.studies.explanations import explanations

    explanations(minutes, images, output)


@study_app.command
def padding(*, data: str, batch_sizes: tuple[int, ...] = (1, 2, 8)) -> None:
    """Measure what padding does to panoptic quality: perfect masks in batches, with padding cut off or squeezed in.

    Args:
        data: folder with panoptic annotations, as for train.
        batch_sizes: images per batch; each gives a row of the table.
    """
    from regard.data.paths import check_data

    check_data(data)
    from regard.studies.padding import padding

    padding(data, batch_sizes)


@study_app.command
def gallery(*, output: Path = Path("runs/gallery"), page: Path | None = None) -> None:
    """Train small models and write a page with pictures of their predictions and attention.

    Args:
        output: folder of the runs; the same command resumes a stopped study.
        page: Markdown file to write, with its pictures in a folder of the same name; OUTPUT/gallery.md if not given.
    """
    from regard.studies.gallery import gallery

    gallery(output, page)
