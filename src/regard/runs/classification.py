"""Runs of classifiers: what a recipe, data and a model become for `regard.train`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import torch

from regard.data.check import advise
from regard.data.class_images.dataset import ClassificationDataset, open_classification
from regard.data.transforms.classification import Evaluation, cifar_training, imagenet_training, three_augment
from regard.data.transforms.image import ImagePipeline, RandomFlip
from regard.data.transforms.mixing import Mixing
from regard.distillation.stored_logits import StoredAnswers, has_answers, store_answers
from regard.distillation.teachers import load_teacher
from regard.errors import CheckpointError, ConfigError, MachineError
from regard.losses import DistillationLoss
from regard.metrics.charts.classification import plot_class_counts
from regard.models.build import Detector, Model, build
from regard.models.catalog import WEIGHTS
from regard.models.classifiers import Classifier
from regard.models.configs import CONFIGS
from regard.models.configs.vit import ViTConfig
from regard.models.vit import VisionTransformer
from regard.recipes.classification import ClassificationRecipe
from regard.runs.classification_task import ClassificationTask
from regard.training.data_loader import Augmented
from regard.training.distributed import Processes, choose_device
from regard.training.schedules import DEIT_WARMUP
from regard.weights.classifiers import transfer_classifier
from regard.weights.imagenet_names import named_alike
from regard.weights.load import load
from regard.weights.state_dict import read_weights
from regard.weights.vit import is_vit


class ClassificationJob:
    """The run of a classifier.

    Attributes:
        settings: the recipe, with the number of classes of the data.
        train_data, val_data: both splits.
        teacher, answers: what the model learns from beside the labels, or None.
    """

    def __init__(self, settings: ClassificationRecipe) -> None:
        data = open_classification(settings.data, "train")
        self.train_data = data if settings.train_images is None else data.subset(settings.train_images)
        self.val_data = open_classification(settings.data, "val")
        self.settings = replace(settings, model=replace(settings.model, num_classes=len(self.train_data.categories)))
        self.source: Classifier | None = None
        # Not with the weights to start from: a run that goes on needs its teacher as well.
        self.answers = self._open_answers() if has_answers(settings.teacher) else None
        self.teacher = None
        if settings.teacher != "none" and self.answers is None:
            self.teacher = load_teacher(settings.teacher, self.train_data.categories, settings.model.image_size)

    def _open_answers(self) -> StoredAnswers:
        _check_unmixed(self.settings)
        answers = StoredAnswers(self.settings.teacher)
        answers.check(about_answers(self.settings, self.train_data))
        return answers

    @property
    def findings(self) -> list[str]:
        """What is worth a line of the data."""
        found = [str(issue) for data in (self.train_data, self.val_data) for issue in data.report.issues]
        return list(dict.fromkeys(found))  # how the data were split is a finding of both

    def fetch_weights(self) -> list[str]:
        """Get what the training starts from; gives what the user has to know of it.

        Released weights of the model itself are left out where they cannot be had.
        """
        start = self.settings.start_from
        if start == "none":
            return []
        if start in CONFIGS and start not in WEIGHTS:
            what = f"there are no released weights of {start} to start from"
            raise ConfigError(what, remedy="set start_from=RUN, or a file of its weights", code="K01")
        try:
            source = _load_start(start, self.settings.name)
        except MachineError as error:
            if start != self.settings.name:
                raise
            self.settings = replace(self.settings, start_from="none")
            fewer = "; from nothing it needs more: epochs=100 lr=1e-3" if self.settings.epochs < 100 else ""
            return [f"warning: no weights of {start} ({error}). It starts from nothing: expect far lower scores{fewer}"]
        if isinstance(source, Detector):
            remedy = f"start from a {self.settings.name}"
            raise CheckpointError("a detector, not a classifier", where=start, remedy=remedy, code="K07")
        source.card = replace(source.card, categories=named_alike(source.card.categories, self.train_data.categories))
        self.source = source
        return []

    def starting_model(self) -> tuple[Classifier, list[str]]:
        """The model before the first step, and what the user has to know of it."""
        settings = self.settings
        torch.manual_seed(settings.seed)
        net = build(settings.model, settings.name, self.train_data.categories)
        net.card = replace(net.card, crop_pct=settings.crop_pct)
        notes = [] if self.source is None else [transfer_classifier(self.source, net)]
        if isinstance(settings.model, ViTConfig) and settings.model.distilled and settings.teacher == "none":
            alike = isinstance(self.source, VisionTransformer) and not self.source.config.distilled
            does = "begins as the first and stays it: train the plain model" if alike else "learns the labels too"
            notes.append(f"warning: a distilled model without a teacher: its second head {does}")
        if settings.schedule.startswith("deit") and settings.epochs <= DEIT_WARMUP:
            what = f"schedule={settings.schedule} warms up for {DEIT_WARMUP} epochs and there are {settings.epochs}"
            notes.append(f"warning: {what}: it will hardly learn. Set schedule=cosine")
        steps = settings.epochs * (len(self.train_data) // (settings.batch_size * settings.accumulate))
        if settings.warmup_steps > max(1, steps):
            what = f"warmup_steps={settings.warmup_steps} and there are about {steps} steps"
            notes.append(f"warning: {what}: it will hardly learn. Set warmup_steps={steps // 20}")
        return net, notes

    def task(self, processes: Processes, pictures: Path | None) -> ClassificationTask:
        """What the training loop is told. `pictures`: folder for them."""
        settings = self.settings
        return ClassificationTask(
            self.train_data,
            self.val_data,
            augmentation=augmentation_of(settings),
            resize=Evaluation(settings.model.image_size, settings.crop_pct),
            mixing=mixing_of(settings),
            label_smoothing=settings.label_smoothing,
            sigmoid=settings.loss == "sigmoid",
            batch_size=settings.batch_size,
            workers=settings.workers,
            seed=settings.seed,
            processes=processes,
            repeats=settings.repeated_augmentation,
            distillation=distillation_of(settings),
            teacher=None if self.teacher is None else self.teacher.to(processes.device),
            answers=self.answers,
            pictures=pictures,
        )

    def draw_data(self, folder: Path) -> None:
        """A picture of what the data hold."""
        names = [category.name for category in self.train_data.categories]
        plot_class_counts(self.train_data.counts(), self.val_data.counts(), names, folder)

    def advice(self) -> AbstractContextManager[None]:
        """Errors of images say how to find all of them."""
        return advise(self.settings.data)


def _load_start(start: str, model: str) -> Model:
    """What a training starts from. Files of convolutional networks do not tell what they are: they are the model's."""
    path = Path(start)
    if not path.is_file() or isinstance(CONFIGS.get(model), ViTConfig) or is_vit(read_weights(path).tensors):
        return load(start)
    return load(path, model=model)


def augmentation_of(settings: ClassificationRecipe) -> ImagePipeline:
    """The training augmentation of a recipe."""
    make = {"imagenet": imagenet_training, "three": three_augment}.get(settings.augmentation, cifar_training)
    pipeline = make(
        settings.model.image_size,
        magnitude=settings.magnitude,
        erasing=settings.erasing,
        color_jitter=settings.color_jitter,
    )
    if settings.augmentation == "shift":
        return ImagePipeline(tuple(step for step in pipeline.steps if not isinstance(step, RandomFlip)))
    return pipeline


def distillation_of(settings: ClassificationRecipe) -> DistillationLoss | None:
    """The loss of a recipe with a teacher; None without."""
    if settings.teacher == "none":
        return None
    return DistillationLoss(
        settings.distillation, settings.alpha, settings.tau, settings.reduction, settings.label_smoothing
    )


def mixing_of(settings: ClassificationRecipe) -> Mixing | None:
    """Mixup and CutMix of a recipe; None without."""
    if not settings.mixup and not settings.cutmix:
        return None
    return Mixing(
        num_classes=settings.model.num_classes,
        mixup_alpha=settings.mixup,
        cutmix_alpha=settings.cutmix,
        label_smoothing=settings.label_smoothing,
        seed=settings.seed,
    )


def about_answers(settings: ClassificationRecipe, data: ClassificationDataset) -> dict[str, object]:
    """What a teacher's answers depend on, beside the teacher."""
    return {
        "data": data.fingerprint(),
        "classes": [category.name for category in data.categories],
        "seed": settings.seed,
        "image_size": settings.model.image_size,
        "augmentation": settings.augmentation,
        "magnitude": settings.magnitude,
        "erasing": settings.erasing,
        "color_jitter": settings.color_jitter,
    }


def _check_unmixed(settings: ClassificationRecipe) -> None:
    if mixing_of(settings) is not None:
        what = "stored answers are for whole images, and Mixup or CutMix mixes them"
        remedy = "set mixup=0 cutmix=0, or train with the teacher itself"
        raise ConfigError(what, where=settings.teacher, remedy=remedy, code="C09")


def cache_answers(
    settings: ClassificationRecipe, output: Path, *, views: int, top: int | None = None, dtype: str, batch_size: int
) -> Iterator[float]:
    """Store what the teacher of a recipe says of `views` views of the training images; gives the share that is done.

    Raises:
        ConfigError: the recipe has no teacher, a number is out of range, or the folder has something else in it.
    """
    if settings.teacher == "none" or has_answers(settings.teacher):
        raise ConfigError("which teacher?", remedy="add --teacher NAME", code="C09")
    _check_unmixed(settings)  # before hours of storing what training would refuse
    job = ClassificationJob(settings)
    assert job.teacher is not None
    device = choose_device(settings.device)
    with advise(settings.data):
        yield from store_answers(
            Augmented(job.train_data, augmentation_of(settings), settings.seed),
            job.teacher.to(device),
            output,
            {
                "teacher": settings.teacher,
                "teacher_weights": job.teacher.fingerprint(),
                **about_answers(settings, job.train_data),
            },
            views=views,
            top=top,
            device=device,
            batch_size=batch_size,
            workers=settings.workers,
            dtype=dtype,
        )
