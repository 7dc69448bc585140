"""`regard study`: comparisons, each as one command."""

from __future__ import annotations

from pathlib import Path

from regard.cli.groups import study_app


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
def attention(
    *,
    data: str = "digits",
    epochs: int = 12,
    train_images: int | None = None,
    seeds: int = 3,
    output: Path = Path("runs/study-attention"),
) -> None:
    """Compare attention and its position encodings in a ResNet-20: accuracy over several seeds.

    Args:
        data: classification data, as for train.
        epochs: passes over the training images.
        train_images: number of training images, taken evenly from all classes; all if not given.
        seeds: number of runs of each network.
        output: folder of the study; the same command resumes a stopped study.
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
    """Compare ways of distillation for a small transformer: tables 2 and 3 of the DeiT paper in small.

    Args:
        data: classification data, as for train.
        epochs: passes over the training images, of the teacher too.
        train_images: number of training images, taken evenly from all classes; all if not given.
        seeds: number of runs of each student.
        output: folder of the study; the same command resumes a stopped study.
    """
    from regard.data.paths import check_data

    check_data(data)
    from regard.studies.distillation import distillation

    distillation(data, epochs, train_images, seeds, output)


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
