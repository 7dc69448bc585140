"""Studies of DeiT: Touvron et al. 2021, with transformers for images of 32 pixels.

The students at small scale are `deit_nano`, 4 blocks of width 64; `--full` trains DeiT-B on ImageNet by the paper's
recipe.
"""

from __future__ import annotations

from pathlib import Path

from regard.errors import ConfigError
from regard.models.catalog import SMALL_IMAGES, WEIGHTS, preset
from regard.models.configs import CONFIGS, ClassifierConfig
from regard.studies.measures import choices, token_similarity
from regard.studies.study import RUN, Row, Scale, Study, small_images

TOUVRON = "Touvron et al. 2021, Training data-efficient image transformers"
TOP1 = "top-1 of DeiT-B on ImageNet in %"
MINUTES = 0.7  # of a run on the digits
PLAIN, TOKEN = "deit_nano_patch4_32", "deit_nano_distilled_patch4_32"
BASE, BASE_TOKEN = (
    ("deit_base_patch16_224", "--recipe", "deit"),
    ("deit_base_distilled_patch16_224", "--recipe", "deit"),
)
# The paper's numbers of soft distillation: lambda 0.1, tau 3, and its formula.
SOFT = ("distillation=soft", "alpha=0.1", "tau=3", "reduction=batchmean")
REGNET = "teacher=regnety_160"
ALONE, BY_TOKEN = "no distillation", "token, hard"


def _kinds(teacher: str, settings: tuple[str, ...] = (), own_kind: bool = True) -> tuple[Row, ...]:
    """Return the rows of table 3 for students of a teacher: the word for it, and settings that all students share."""
    plain, token = (PLAIN, *settings), (TOKEN, *settings, teacher)
    heads = [
        Row(
            name=f"{BY_TOKEN}, {head} head only", words=token, full=(*BASE_TOKEN, REGNET), published=published,
            measure=choices, statistic=f"{head}_top1",
        )
        for head, published in (("class", 83.0), ("distillation", 83.1))
    ]  # fmt: skip
    of_its_kind = Row(
        name="token, hard, teacher of its kind", words=(TOKEN, *settings, f"teacher={RUN}{ALONE}"),
        full=(*BASE_TOKEN, f"teacher={RUN}{ALONE}"), published=81.9,
    )  # fmt: skip
    return (
        Row(name=ALONE, words=plain, full=BASE, published=81.8),
        Row(name="soft", words=(*plain, teacher, *SOFT), full=(*BASE, REGNET, *SOFT), published=81.8),
        Row(name="hard", words=(*plain, teacher), full=(*BASE, REGNET), published=83.0),
        Row(name=BY_TOKEN, words=token, full=(*BASE_TOKEN, REGNET), published=83.4),
        *heads,
        *([of_its_kind] if own_kind else []),
    )


def _teacher(name: str, *words: str, longer: float = 1.0) -> Row:
    return Row(name=f"teacher: {name}", words=words, longer=longer, seeds=1)


def _student(teacher: str, published: float | None, full: str | None = None) -> Row:
    return Row(
        name=f"student of {teacher}", words=(TOKEN, f"teacher={RUN}teacher: {teacher}"), published=published,
        full=() if full is None else (*BASE_TOKEN, full),
    )  # fmt: skip


def _epochs(name: str, words: tuple[str, ...], full: tuple[str, ...], count: int, published: float) -> Row:
    return Row(
        name=f"{name}, {count / 300:.1f} times the epochs", words=words, full=(*full, f"epochs={count}"),
        published=published, longer=count / 300,
    )  # fmt: skip


def deit_in_small(scale: Scale) -> list[str]:
    """Words for DeiT's recipe with all of its augmentation on small images, for trainings far shorter than its own."""
    words = [
        "--recipe", "deit", "lr=4e-3", "batch_size=64", "schedule=cosine", "warmup_share=0.1", "max_norm=1", "ema=0",
        "workers=0", f"evaluate_every={scale.epochs}",
    ]  # fmt: skip
    words += ["augmentation=shift"] if scale.data == "digits" else []
    return words if scale.train_images is None else [*words, f"train_images={scale.train_images}"]


def _without(name: str, published: float | None, *settings: str, full: bool = True) -> Row:
    return Row(
        name=name, words=(PLAIN, *settings), full=(*BASE, "ema=0", *settings) if full else (), published=published
    )


def _finer(side: int, like: int, published: float) -> Row:
    """Fine-tune at another resolution, which has the same ratio as `like` to 224."""
    size = f"model.image_size={side}"
    full = ("deit_base_patch16_384", "--recipe", "resolution", f"model.image_size={like}")
    return Row(
        name=f"fine-tuned at {side} pixels", words=(PLAIN, size, f"start_from={RUN}32 pixels", "lr=4e-4"), full=full,
        published=published, longer=0.25,
    )  # fmt: skip


DEIT: dict[str, Study] = {
    "distillation": Study(
        question="Which kind of distillation teaches a transformer most, and does a token for it help?",
        source=f"{TOUVRON}, tables 2 and 3",
        published=TOP1,
        baseline=ALONE,
        minutes=MINUTES,
        rows=(
            Row(name="teacher: ResNet-20", words=("resnet20",), published=82.9, seeds=1),
            *_kinds(f"teacher={RUN}teacher: ResNet-20"),
        ),
    ),
    "teachers": Study(
        question="Which teacher is best for a transformer: convolutional or of its kind, weaker or stronger?",
        source=f"{TOUVRON}, table 2; theirs are RegNetY of 4 and 16 GFLOPs and DeiT-B",
        published=TOP1,
        baseline="student of a transformer",
        minutes=MINUTES,
        rows=(
            _teacher("a weaker CNN", "resnet20", longer=0.25),
            _teacher("a CNN", "resnet20"),
            _teacher("a stronger CNN", "resnet32", longer=2.0),
            Row(name=ALONE, words=(PLAIN,), full=BASE, published=81.8),
            Row(
                name="student of a transformer", words=(TOKEN, f"teacher={RUN}{ALONE}"), published=81.9,
                full=(*BASE_TOKEN, f"teacher={RUN}{ALONE}"),
            ),
            _student("a weaker CNN", 82.7),
            _student("a CNN", None),
            _student("a stronger CNN", 83.1, REGNET),
        ),
    ),
    "disagreement": Study(
        question="Does a distilled transformer decide more like its convolutional teacher than one that learned alone?",
        source=f"{TOUVRON}, table 4",
        published="share of images of ImageNet with different first choices in %",
        baseline="CNN and transformer alone",
        minutes=MINUTES,
        measure=choices,
        statistic="differ",
        rows=(
            Row(name="CNN and truth", words=("resnet20",), published=17.1, statistic="error", seeds=1),
            Row(name="transformer alone and truth", words=(PLAIN,), published=18.2, statistic="error"),
            Row(name="CNN and transformer alone", words=(PLAIN,), published=13.3, beside="CNN and truth"),
            *(
                Row(
                    name=f"CNN and {name} distilled transformer", words=(TOKEN, f"teacher={RUN}CNN and truth"),
                    published=published, statistic=statistic, beside="CNN and truth",
                )
                for name, published, statistic in (
                    ("class head of a", 11.2, "class_differ"),
                    ("distillation head of a", 10.0, "distillation_differ"),
                    ("both heads of a", 10.2, "differ"),
                )
            ),
            Row(
                name="the two heads of a distilled transformer", words=(TOKEN, f"teacher={RUN}CNN and truth"),
                published=5.0, statistic="heads_differ", beside="CNN and truth",
            ),
        ),
    ),
    "tokens": Study(
        question="Do the class token and the distillation token learn different things?",
        source=f"{TOUVRON}, section 4",
        published="cosine of the two tokens of DeiT-B, as they enter the network or after its last layer",
        baseline="two class tokens, at the input",
        minutes=MINUTES,
        unit="cosine",
        rows=(
            Row(name="teacher (top-1)", words=("resnet20",), seeds=1),
            *(
                Row(
                    name=f"{name}, {where}", words=(TOKEN, *words), full=(*BASE_TOKEN, *full), published=published,
                    measure=token_similarity, statistic=statistic,
                )
                for name, words, full, numbers in (
                    ("two class tokens", (), (), (0.999, None)),
                    ("with a teacher", (f"teacher={RUN}teacher (top-1)",), (REGNET,), (0.06, 0.93)),
                )
                for where, statistic, published in zip(
                    ("at the input", "after the last layer"), ("learned", "last"), numbers, strict=True
                )
            ),
        ),
    ),
    "distillation_epochs": Study(
        question="Does a longer training help with a teacher, where it does not help without?",
        source=f"{TOUVRON}, figure 3, which says of trainings without a teacher that they saturate at 82.2",
        published=TOP1,
        baseline="token, 1.0 times the epochs",
        minutes=MINUTES,
        rows=(
            _teacher("ResNet-20", "resnet20"),
            *(
                _epochs("alone", (PLAIN,), BASE, count, published)
                for count, published in ((300, 81.8), (1000, 82.2))
            ),
            *(
                _epochs("token", (TOKEN, f"teacher={RUN}teacher: ResNet-20"), (*BASE_TOKEN, REGNET), count, published)
                for count, published in ((300, 83.4), (500, 84.1), (800, 84.2), (1000, 84.2))
            ),
        ),
    ),
    "deit_ablation": Study(
        question="Which parts of DeiT's recipe does it need?",
        source=f"{TOUVRON}, table 8, at 224 pixels; its authors say that the trainings of 4.3 and 3.4 did not succeed, "
        "maybe for want of other hyper-parameters",
        published=TOP1,
        baseline="DeiT's recipe",
        minutes=MINUTES,
        common=deit_in_small,
        rows=(
            _without("DeiT's recipe", 81.8),
            _without("SGD", 74.5, "optimizer=sgd", "lr=0.05", full=False),
            _without("no RandAugment", 79.6, "magnitude=0"),
            _without("no Mixup", 78.7, "mixup=0"),
            _without("no CutMix", 80.0, "cutmix=0"),
            _without("neither Mixup nor CutMix", 75.8, "mixup=0", "cutmix=0"),
            _without("no erasing", 4.3, "erasing=0"),
            _without("no stochastic depth", 3.4, "model.drop_path=0"),
            _without("no repeated augmentation", 76.5, "repeated_augmentation=1"),
            _without("dropout", 81.3, "model.dropout=0.1"),
            _without("moving average of weights", 81.9, "ema=0.99", full=False),
            _without("no weight decay", None, "weight_decay=0"),
            _without("no label smoothing", None, "label_smoothing=0"),
            _without("the published initialisation", None, "model.initial=published", full=False),
        ),
    ),
    "resolution": Study(
        question="What does a transformer gain from fine-tuning at another resolution?",
        source=f"{TOUVRON}, table 10",
        published=TOP1,
        baseline="32 pixels",
        minutes=MINUTES,
        rows=(
            Row(name="32 pixels", words=(PLAIN,), full=BASE, published=81.8),
            _finer(24, 160, 79.9),
            _finer(44, 320, 82.7),
            _finer(56, 384, 83.1),
        ),
    ),
    "transfer": Study(
        question="What are weights of other images worth to a transformer?",
        source=f"{TOUVRON}, table 7 and section 5.4",
        published="top-1 of DeiT-B on CIFAR-10 in %, from random weights and from ImageNet's",
        baseline="random weights",
        minutes=MINUTES,
        full_data="cifar10/",
        rows=(
            Row(
                name="random weights", words=(PLAIN,), published=97.5,
                full=("deit_base_patch16_224", "--recipe", "transfer", "start_from=none", "epochs=7200"),
            ),
            Row(name="source: generated images", words=(PLAIN, "data=shapes:"), seeds=1),
            Row(
                name="weights of generated images", words=(PLAIN, f"start_from={RUN}source: generated images"),
                full=("deit_base_patch16_224", "--recipe", "transfer"), published=99.1,
            ),
        ),
    ),
}  # fmt: skip


def distillation_by(teacher: str | None, size: int | None, data: str | None) -> tuple[Study, dict[str, object]]:
    """Return the study of distillation with another teacher or size of images, and these settings.

    The students are `deit_nano` in patches of 4 pixels below 64 pixels, else of 16. A released model learns the classes
    of the data first, unless they are ImageNet's.

    Args:
        teacher: a model name or a run; a ResNet-20 from random weights if None.
        size: side of the images; that of the teacher's weights, or 32, if None.
        data: of the study.

    Raises:
        ConfigError: the teacher is no classifier (C09), or no such model or run (K01).
    """
    teacher = teacher or "resnet20"
    size = size or _side_of(teacher)
    settings = f"model.image_size={size}", f"model.patch_size={4 if size < SMALL_IMAGES else 16}"
    row = _teacher_row(teacher, size, data or "digits")
    source = f"teacher={teacher}" if row is None else f"teacher={RUN}{row.name}"
    study = Study(
        question=f"What does {teacher} teach a small transformer?",
        source=f"{TOUVRON}, tables 2 and 3",
        published=TOP1,
        baseline=ALONE,
        minutes=MINUTES * (size / 32) ** 2 / 4,
        common=lambda scale: _sized(scale, size),
        rows=(*([] if row is None else [row]), *_kinds(source, settings)),
    )
    return study, {"teacher": teacher, "size": size}


def _sized(scale: Scale, size: int) -> list[str]:
    """Words for images of a size: those of small images, or random crops as for ImageNet."""
    words = small_images(scale)
    return words if size < SMALL_IMAGES else [w for w in words if w != "augmentation=cifar"] + ["augmentation=imagenet"]


def _side_of(teacher: str) -> int:
    """Return the side of the images of a released model, 32 for others."""
    config = preset(teacher) if teacher in WEIGHTS else None
    return config.image_size if isinstance(config, ClassifierConfig) else 32


def _teacher_row(teacher: str, size: int, data: str) -> Row | None:
    """Return the row that trains the teacher on the data; None for one that is used as it is."""
    if teacher not in CONFIGS:
        if not Path(teacher).exists() and not teacher.startswith(("regnety_160", "timm/", "torchvision/")):
            from regard.weights.source import check_source

            check_source(teacher)
        return None
    if not isinstance(preset(teacher), ClassifierConfig):
        raise ConfigError("a detector cannot teach a classifier", where=teacher, code="C07")
    name = f"teacher: {teacher}"
    if teacher not in WEIGHTS:
        return Row(name=name, words=(teacher, f"model.image_size={size}"), seeds=1)
    if _is_imagenet(data):
        return None
    words = teacher, "--recipe", "finetune", f"start_from={teacher}", f"model.image_size={size}", "workers=0"
    return Row(name=name, words=words, seeds=1, own=True, longer=0.5)


def _is_imagenet(data: str) -> bool:
    from regard.data.class_images.imagenet import is_imagenet

    return is_imagenet(data)
