"""The job of a classifier: how a recipe, data and starting weights become a run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import torch

from regard.data.check import advise
from regard.data.class_images.dataset import ClassificationDataset, open_classification
from regard.distillation.options import StorageOptions
from regard.distillation.stored_logits import StoredLogits, has_logits, store_logits
from regard.distillation.teachers import Teacher, load_teacher
from regard.errors import CheckpointError, ConfigError, MachineError
from regard.metrics.charts.classification import plot_class_counts
from regard.models.build import Detector, Model, build
from regard.models.catalog import WEIGHTS
from regard.models.classifiers import Classifier
from regard.models.configs import CONFIGS
from regard.models.configs.vit import ViTConfig
from regard.models.vit import VisionTransformer
from regard.recipes.classification import ClassificationRecipe
from regard.runs.classification_task import ClassificationTask, augmentation_of, mixing_of
from regard.runs.few_steps import CLASSIFIER, FINE_TUNED, Enough
from regard.training.data_loader import Augmented
from regard.training.distributed import Processes, choose_device
from regard.training.schedules import DEIT_WARMUP
from regard.weights.classifiers import transfer_classifier
from regard.weights.imagenet_names import match_imagenet_names
from regard.weights.load import load_to_train
from regard.weights.state_dict import read_weights
from regard.weights.vit import is_vit


class ClassificationJob:
    """Prepares the run of a classifier. `DetectionJob` has the same steps.

    Attributes:
        settings: the recipe, with the number of classes of the data.
        train_data, val_data: both splits.
        teacher: the teacher or its stored logits; None if the recipe has none.

    Raises:
        ConfigError: settings that exclude each other (C09), or a teacher of other classes (C07).
        CheckpointError, MachineError: the teacher cannot be loaded.
        DataError: the data set cannot be used.
    """

    def __init__(self, settings: ClassificationRecipe) -> None:
        data = open_classification(settings.data, "train")
        self.train_data = data if settings.train_images is None else data.subset(settings.train_images)
        self.val_data = open_classification(settings.data, "val")
        self.settings = replace(settings, model=replace(settings.model, num_classes=len(self.train_data.categories)))
        self.source: Classifier | None = None
        # Loaded here, not in `fetch_weights`: a resumed run needs its teacher as well.
        self.teacher = self._load_teacher()

    def _load_teacher(self) -> Teacher | StoredLogits | None:
        settings = self.settings
        if settings.teacher == "none":
            return None
        if not has_logits(settings.teacher):
            return load_teacher(settings.teacher, self.train_data.categories, settings.model.image_size)
        _check_unmixed(settings)
        logits = StoredLogits(settings.teacher)
        logits.check(logits_settings(settings, self.train_data))
        return logits

    @property
    def findings(self) -> list[str]:
        """Warnings about the data set, one line each."""
        found = [str(issue) for data in (self.train_data, self.val_data) for issue in data.report.issues]
        return list(dict.fromkeys(found))  # both splits report how the data were split

    def fetch_weights(self) -> list[str]:
        """Load the weights to start from. Returns notes for the user.

        If the model's own released weights cannot be had, the training starts from random weights.
        """
        start = self.settings.start_from
        if start == "none":
            return []
        if start in CONFIGS and start not in WEIGHTS:
            what = f"no released weights of {start} to start from"
            raise ConfigError(what, remedy="set start_from=RUN, or a file of its weights", code="K01")
        try:
            source = _load_start(start, self.settings.name)
        except MachineError as error:
            if start != self.settings.name:
                raise
            self.settings = replace(self.settings, start_from="none")
            advice = "; without them set epochs=100 lr=1e-3" if self.settings.epochs < 100 else ""
            what = f"warning: no weights of {start} ({error})"
            return [f"{what}. Training starts from random weights: expect far lower scores{advice}"]
        if isinstance(source, Detector):
            remedy = f"start from a {self.settings.name}"
            raise CheckpointError("a detector, not a classifier", where=start, remedy=remedy, code="K07")
        source.card = replace(
            source.card, categories=match_imagenet_names(source.card.categories, self.train_data.categories)
        )
        self.source = source
        return []

    def starting_model(self) -> tuple[Classifier, list[str]]:
        """Build the model as it is before the first step. Returns it with notes for the user."""
        settings = self.settings
        torch.manual_seed(settings.seed)
        net = build(settings.model, settings.name, self.train_data.categories)
        net.card = replace(net.card, crop_pct=settings.crop_pct)
        notes = [] if self.source is None else [transfer_classifier(self.source, net)]
        if isinstance(settings.model, ViTConfig) and settings.model.distilled and settings.teacher == "none":
            alike = isinstance(self.source, VisionTransformer) and not self.source.config.distilled
            effect = "stays a copy of the first: train the plain model" if alike else "learns the labels too"
            notes.append(f"warning: a distilled model without a teacher: its second head {effect}")
        if settings.schedule.startswith("deit") and settings.epochs <= DEIT_WARMUP:
            what = f"schedule={settings.schedule} warms up for {DEIT_WARMUP} epochs and there are {settings.epochs}"
            notes.append(f"warning: {what}: it will hardly learn. Set schedule=cosine")
        return net, notes

    def task(self, processes: Processes, pictures: Path | None) -> ClassificationTask:
        """Build the task for the training loop. `pictures`: folder for pictures, or None."""
        teacher = self.teacher.to(processes.device) if isinstance(self.teacher, Teacher) else self.teacher
        return ClassificationTask(self.settings, self.train_data, self.val_data, processes, pictures, teacher)

    def draw_data(self, folder: Path) -> None:
        """Draw an overview of the data set to `folder`."""
        names = [category.name for category in self.train_data.categories]
        plot_class_counts(self.train_data.counts(), self.val_data.counts(), names, folder)

    @property
    def enough(self) -> Enough:
        """The steps that such a model needs: fewer from weights than from random numbers."""
        return CLASSIFIER if self.settings.start_from == "none" else FINE_TUNED

    def advice(self) -> AbstractContextManager[None]:
        """Add to errors about images how to find all bad images of the data set."""
        return advise(self.settings.data)


def _load_start(start: str, model: str) -> Model:
    """Load starting weights. A file of a convolutional network does not name its model: take `model` for it."""
    path = Path(start)
    if not path.is_file() or isinstance(CONFIGS.get(model), ViTConfig) or is_vit(read_weights(path).tensors):
        return load_to_train(start)
    return load_to_train(path, model=model)


def logits_settings(settings: ClassificationRecipe, data: ClassificationDataset) -> dict[str, object]:
    """Return what a teacher's logits depend on, except the teacher."""
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
    """Check that a recipe does not mix images, as stored logits require. Raises ConfigError (C09)."""
    if mixing_of(settings) is not None:
        what = "stored logits are for whole images, Mixup and CutMix mix images"
        remedy = "set mixup=0 cutmix=0, or train with the teacher itself"
        raise ConfigError(what, where=settings.teacher, remedy=remedy, code="C09")


def cache_logits(settings: ClassificationRecipe, output: Path, options: StorageOptions) -> Iterator[float]:
    """Store the logits of a recipe's teacher for views of the training images; yield the finished share, 0..1.

    Raises:
        ConfigError: the recipe has no teacher or mixes images (C09), a number is out of range (C03), or the folder
            holds something else (C11).
    """
    if settings.teacher == "none" or has_logits(settings.teacher):
        raise ConfigError("which teacher?", remedy="add --teacher NAME", code="C09")
    _check_unmixed(settings)  # not after hours of storing what training would refuse
    job = ClassificationJob(settings)
    assert isinstance(job.teacher, Teacher)
    device = choose_device(settings.device)
    about = {
        "teacher": settings.teacher,
        "teacher_weights": job.teacher.fingerprint(),
        **logits_settings(settings, job.train_data),
    }
    images = Augmented(job.train_data, augmentation_of(settings), settings.seed)
    with advise(settings.data):
        yield from store_logits(
            images, job.teacher.to(device), output, about, options, device=device, workers=settings.workers
        )
