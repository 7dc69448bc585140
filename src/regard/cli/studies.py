"""`regard study`: comparisons, each as one command."""

from __future__ import annotations

from pathlib import Path

from regard.cli.groups import study_app


@study_app.command
def convergence(*, minutes: float = 4.0, output: Path = Path("runs/study-convergence")) -> None:
    """What anchors, denoising and focal loss do for DETR, on the same data in the same time.

    Args:
        minutes: training time of each model.
        output: folder of the study.
    """
    from regard.studies.convergence import convergence

    convergence(minutes, output)


@study_app.command
def attention(
    *,
    data: str = "digits",
    epochs: int = 12,
    train_images: int | None = None,
    seeds: int = 3,
    output: Path = Path("runs/study-attention"),
) -> None:
    """What attention and its position encodings do for a ResNet-20: accuracy over several seeds.

    Args:
        data: images with a class each, as for train.
        epochs: passes over the training images.
        train_images: train on so many, evenly from all classes; on all if not given.
        seeds: runs of each network.
        output: folder of the study; the same command goes on with one that was stopped.
    """
    from regard.data.paths import check_data

    check_data(data)
    from regard.studies.attention import attention

    attention(data, epochs, train_images, seeds, output)


@study_app.command
def distillation(
    *,
    data: str = "digits",
    epochs: int = 12,
    train_images: int | None = None,
    seeds: int = 3,
    output: Path = Path("runs/study-distillation"),
) -> None:
    """What a small transformer learns from a teacher, and how: tables 2 and 3 of the DeiT paper in small.

    Args:
        data: images with a class each, as for train.
        epochs: passes over the training images, of the teacher too.
        train_images: train on so many, evenly from all classes; on all if not given.
        seeds: runs of each student.
        output: folder of the study; the same command goes on with one that was stopped.
    """
    from regard.data.paths import check_data

    check_data(data)
    from regard.studies.distillation import distillation

    distillation(data, epochs, train_images, seeds, output)


@study_app.command
def explanations(*, minutes: float = 4.0, images: int = 60, output: Path = Path("runs/study-explanations")) -> None:
    """Whether maps of attention mean anything: deletion and insertion for what a small DETR finds.

    Args:
        minutes: training time.
        images: validation images whose detections are looked at.
        output: folder of the study; the same command goes on with one that was stopped.
    """
    from regard.studies.explanations import explanations

    explanations(minutes, images, output)


@study_app.command
def padding(*, data: str, batch_sizes: tuple[int, ...] = (1, 2, 8)) -> None:
    """What padding does to panoptic quality: perfect masks in batches, the padding cut off or squeezed in.

    Args:
        data: folder with panoptic annotations, as for train.
        batch_sizes: images of a batch, a row of the table for each.
    """
    from regard.data.paths import check_data

    check_data(data)
    from regard.studies.padding import padding

    padding(data, batch_sizes)


@study_app.command
def gallery(*, output: Path = Path("runs/gallery"), page: Path | None = None) -> None:
    """A page of pictures of what small models find and where they look, trained and drawn anew.

    Args:
        output: folder of the runs; the same command goes on with what was stopped.
        page: Markdown file to write, its pictures in a folder of its name; OUTPUT/gallery.md if not given.
    """
    from regard.studies.gallery import gallery

    gallery(output, page)
