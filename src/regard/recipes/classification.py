"""Recipes of classifiers: one function per published training, which returns a frozen `ClassificationRecipe`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from regard.errors import ConfigError, unknown_name
from regard.models.catalog import CROP_PCT, SMALL_IMAGES, WEIGHTS, crop_pct_of, preset
from regard.models.configs import ClassifierConfig
from regard.models.configs.vit import VIT_PRESETS, ViTConfig
from regard.training.config import TrainingConfig


@dataclass(frozen=True, kw_only=True)
class ClassificationRecipe(TrainingConfig):
    """All settings of a training run of a classifier. Images have `model.image_size` pixels a side."""

    name: str  # the name of the model
    data: str = ""  # folder with a folder per class, or `digits` or `shapes`; required
    train_images: int | None = None  # number of training images, taken evenly from all classes; none for all
    model: ClassifierConfig  # settings of the network; num_classes is taken from the data
    start_from: str = "none"  # `none`, or a model name, run or file to fine-tune
    crop_pct: float | None = CROP_PCT  # evaluation crop over the resized short side; none: whole image
    # three: as imagenet, with 3-Augment (DeiT III); shift: as cifar, without mirror images
    augmentation: Literal["imagenet", "three", "cifar", "shift"] = "imagenet"
    magnitude: float = 0.0  # magnitude of RandAugment, 0 to 10; 0 turns it off
    erasing: float = 0.0  # probability of random erasing, 0 to 1
    color_jitter: float = 0.0  # strength of colour jitter, 0 to 1
    repeated_augmentation: int = 1  # views of each image in an epoch, which then has fewer different images
    mixup: float = 0.0  # alpha of Mixup; 0 turns it off
    cutmix: float = 0.0  # alpha of CutMix; 0 turns it off
    loss: Literal["softmax", "sigmoid"] = "softmax"  # cross-entropy, or binary cross-entropy per class (DeiT III)
    label_smoothing: float = 0.0  # share of a label that is spread evenly over all classes
    teacher: str = "none"  # a model name, run or file, regnety_160, timm/NAME or torchvision/NAME
    distillation: Literal["soft", "hard"] = "hard"  # learn the teacher's probabilities, or its most probable class
    alpha: float = 0.5  # weight of the teacher in the loss, 0 to 1
    tau: float = 1.0  # temperature of soft distillation
    reduction: Literal["numel", "batchmean"] = "numel"  # of soft distillation: the authors' code, or the formula

    def __post_init__(self) -> None:
        super().__post_init__()
        most = {"magnitude": 10.0, "erasing": 1.0, "color_jitter": 1.0, "mixup": 100.0, "cutmix": 100.0}
        for name, high in {**most, "label_smoothing": 0.999}.items():
            if not 0 <= getattr(self, name) <= high:
                raise ConfigError(f"{name}={getattr(self, name)}, expected 0 to {high:g}", code="C03")
        if self.repeated_augmentation < 1:
            raise ConfigError(f"repeated_augmentation={self.repeated_augmentation}, expected at least 1", code="C03")
        if not 0 <= self.alpha <= 1 or not 0 < self.tau < math.inf:
            raise ConfigError(f"alpha={self.alpha} and tau={self.tau}, expected 0 to 1 and more than 0", code="C03")
        if self.loss == "sigmoid" and (self.label_smoothing or self.teacher != "none"):
            what = "loss=sigmoid takes neither smoothed labels nor a teacher"
            raise ConfigError(what, remedy="set label_smoothing=0 and teacher=none", code="C09")
        if self.crop_pct is not None and not 0.05 <= self.crop_pct <= 1:
            raise ConfigError(f"crop_pct={self.crop_pct}, expected 0.05 to 1, or none", code="C03")


def imagenet(name: str) -> ClassificationRecipe:
    """Train on ImageNet as for attention-augmented ResNets (Bello et al. 2019, section 4.2): 100 epochs of SGD.

    The learning rate rises to 0.128 per 256 images over 5 % of the epochs and is divided by 10 after 30, 60, 80 and
    90. Top-1: ResNet-34 73.6 and augmented 74.7, ResNet-50 76.4 and 77.7, ResNet-101 77.9 and 78.7. With N processes:
    lr=0.128 N.

        torchrun --nproc-per-node 4 -m regard train aa_resnet50 --recipe imagenet --data imagenet/ lr=0.512 amp=bf16
    """
    return ClassificationRecipe(
        name=name, model=_config(name), epochs=100, batch_size=256, optimizer="sgd", lr=0.128, weight_decay=1e-4,
        schedule="step", milestones=(0.3, 0.6, 0.8, 0.9), warmup_share=0.05, max_norm=0.0, color_jitter=0.4,
        crop_pct=_crop_pct(name), workers=8,
    )  # fmt: skip


def cifar(name: str) -> ClassificationRecipe:
    """Train on CIFAR-100 as for attention-augmented wide ResNets (Bello et al. 2019, section 4.1): 500 epochs of SGD.

    The learning rate rises to 0.2 per 256 images over 5 % of the epochs and falls to 0 along half a cosine.
    Top-1 of Wide-ResNet-28-10: 80.3, augmented 81.6. The paper trains plain networks with `batch_size=1024 lr=0.8
    weight_decay=2e-4`.

        regard train aa_wide_resnet28_10 --recipe cifar --data cifar100/ amp=bf16
    """
    return ClassificationRecipe(
        name=name, model=_config(name), epochs=500, batch_size=256, optimizer="sgd", lr=0.2, weight_decay=5e-4,
        schedule="cosine", warmup_share=0.05, max_norm=0.0, augmentation="cifar", crop_pct=_crop_pct(name),
        evaluate_every=5,
    )  # fmt: skip


def deit(name: str) -> ClassificationRecipe:
    """Train on ImageNet as DeiT (Touvron et al. 2021, table 9): 300 epochs of AdamW, all augmentation, three views.

    Top-1: DeiT-Ti 72.2 and distilled 74.5, S 79.8 and 81.2, B 81.8 and 83.4; B takes 53 hours on 8 V100. The learning
    rate is 5e-4 per 512 images: with N processes of 256 lr=2.5e-4 N. The authors' schedule uses its first rate
    for two epochs; `schedule=deit_corrected` does not. Images of up to 32 pixels are shifted by 4 instead of cropped,
    as in their code.

        torchrun --nproc-per-node 4 -m regard train deit_tiny_distilled_patch16_224 --recipe deit --data imagenet/ \\
            --teacher regnety_160 lr=1e-3 amp=bf16
    """
    config = _config(name)
    model = replace(config, drop_path=0.1) if isinstance(config, ViTConfig) else config
    return ClassificationRecipe(
        name=name, model=model, epochs=300, batch_size=256, lr=2.5e-4, weight_decay=0.05, decay="matrices",
        schedule="deit", max_norm=0.0, magnitude=9.0, erasing=0.25, mixup=0.8, cutmix=1.0, label_smoothing=0.1,
        repeated_augmentation=3, ema=0.99996, crop_pct=_crop_pct(name), workers=8,
        augmentation="cifar" if config.image_size <= 32 else "imagenet",
    )  # fmt: skip


def deit3(name: str) -> ClassificationRecipe:
    """Train on ImageNet as DeiT III (Touvron et al. 2022, table 1): 800 epochs of LAMB, binary cross-entropy.

    For 8 processes of 256 images. S learns at 224 pixels (81.4 %), B and L at 192 (82.8 and 84.0) and H at 154 (83.5;
    the authors cut 160 into the same patches). With `--recipe resolution start_from=RUN` they reach 83.8, 84.9 and 85.2
    at 224. M trains as S: the authors give no numbers.

        torchrun --nproc-per-node 8 -m regard train deit3_small_patch16_224 --recipe deit3 --data imagenet/ amp=bf16
    """
    config = _transformer(name)
    lr, side, drop_path = _DEIT3.get(config.embed_dim, _DEIT3[384])
    model = replace(config, image_size=side, drop_path=drop_path)
    return ClassificationRecipe(
        name=name, model=model, epochs=800, batch_size=256, optimizer="lamb", lr=lr, weight_decay=0.05,
        decay="matrices", schedule="deit", max_norm=1.0, augmentation="three", color_jitter=0.3, mixup=0.8, cutmix=1.0,
        loss="sigmoid", repeated_augmentation=3, crop_pct=1.0, workers=8,
    )  # fmt: skip


# DeiT III, by width: learning rate for 2048 images, image size, stochastic depth.
_DEIT3 = {384: (4e-3, 224, 0.05), 768: (3e-3, 192, 0.2), 1024: (3e-3, 192, 0.45), 1280: (3e-3, 154, 0.6)}
# DeiT III, by width and image size: stochastic depth when fine-tuned at a higher resolution.
_DEIT3_FINER = {(768, 224): 0.2, (768, 384): 0.15, (1024, 224): 0.45, (1024, 384): 0.4, (1280, 224): 0.55}


def resolution(name: str) -> ClassificationRecipe:
    """Fine-tune a transformer of ImageNet at a higher resolution, from its weights at 224; with its teacher if any.

    DeiT (section 5.2 and README): 30 epochs at 5e-6 for 512 images; B 81.8 -> 83.1 at 384, distilled 83.4 -> 84.5 with
    the teacher at 384 pixels too. DeiT III: 20 epochs at 1e-5; S 83.4, B 85.0, L 85.8. For 16 processes of 32 images.

        torchrun --nproc-per-node 16 -m regard train deit_base_distilled_patch16_384 --recipe resolution \\
            --data imagenet/ --teacher regnety_160 amp=bf16
    """
    config = _transformer(name)
    coarser = f"{name.rpartition('_')[0]}_224"
    start = coarser if coarser in VIT_PRESETS else "none"
    common = ClassificationRecipe(
        name=name, model=config, start_from=start, batch_size=32, decay="matrices", schedule="deit", max_norm=0.0,
        magnitude=9.0, mixup=0.8, cutmix=1.0, label_smoothing=0.1, crop_pct=_crop_pct(name), workers=8,
    )  # fmt: skip
    if config.class_position:
        return replace(
            common, epochs=30, lr=5e-6, min_lr=5e-6, weight_decay=1e-8, erasing=0.25, repeated_augmentation=3
        )
    model = replace(config, drop_path=_DEIT3_FINER.get((config.embed_dim, config.image_size), 0.0))
    return replace(common, model=model, epochs=20, lr=1e-5, weight_decay=0.1)


def transfer(name: str) -> ClassificationRecipe:
    """Fine-tune ImageNet weights on other classes as in DeiT, table 7 (CIFAR, Cars): 1000 epochs of SGD.

    As the authors say in their tracker (issue 45): 768 images at 0.01, no erasing and no stochastic depth; their
    `--opt sgd` is timm's, with Nesterov's momentum. DeiT-B: 99.1 % on CIFAR-10, 92.1 % on Cars; distilled 99.1 and
    92.9. `finetune` is far shorter.

        regard train deit_base_patch16_224 --recipe transfer --data cars/
    """
    return ClassificationRecipe(
        name=name, model=_transformer(name), start_from=name, epochs=1000, batch_size=768, optimizer="sgd",
        nesterov=True, lr=0.01, weight_decay=1e-4, decay="matrices", schedule="deit", max_norm=0.0, magnitude=9.0,
        mixup=0.8, cutmix=1.0, label_smoothing=0.1, repeated_augmentation=3, crop_pct=_crop_pct(name), workers=8,
        evaluate_every=10,
    )  # fmt: skip


def augreg(name: str) -> ClassificationRecipe:
    """Train a plain ViT on ImageNet with light augmentation: 300 epochs of 1024 images at 1e-3.

    Steiner et al. 2022 ("How to train your ViT?") as Beyer et al. 2022 ("Better plain ViT baselines") shorten it:
    RandAugment of 2 operations at 10, Mixup of 0.2, 10,000 steps of warm-up, gradients clipped at 1; S/16 with pooled
    tokens and fixed positions 76.5 % after 90 epochs and 80.0 after 300. Their decay of 1e-4 a step is 0.1 here, where
    it is multiplied by the rate; RandAugment is that of `deit`, which leaves out half of the operations. For 4
    processes of 256.

        torchrun --nproc-per-node 4 -m regard train vit_small_patch16_224 --recipe augreg --data imagenet/ amp=bf16
    """
    return ClassificationRecipe(
        name=name, model=_transformer(name), epochs=300, batch_size=256, lr=1e-3, weight_decay=0.1, decay="matrices",
        schedule="cosine", warmup_steps=10_000, max_norm=1.0, magnitude=10.0, mixup=0.2, crop_pct=_crop_pct(name),
        workers=8,
    )  # fmt: skip


def finetune(name: str) -> ClassificationRecipe:
    """Train on your own classes: 30 epochs of AdamW from released ImageNet weights, or 100 from random weights.

    regard train resnet50 --data flowers/
    """
    known = name in WEIGHTS
    return ClassificationRecipe(
        name=name, model=_config(name), start_from=name if known else "none", epochs=30 if known else 100,
        batch_size=32, lr=3e-4 if known else 1e-3, weight_decay=0.05, schedule="cosine", warmup_share=0.05,
        max_norm=1.0, magnitude=5.0, erasing=0.1, label_smoothing=0.1, crop_pct=_crop_pct(name),
    )  # fmt: skip


def small(name: str) -> ClassificationRecipe:
    """Train small networks on small images from random weights, in minutes on a CPU, without mirror images.

    Transformers learn at twice the rate: on the digits 88 % instead of 83 (deit_nano, a teacher of 98.6 %).

        regard train aa_resnet20 --data digits
    """
    config = _config(name)
    if config.image_size >= SMALL_IMAGES:
        raise ConfigError(f"recipe small is for images below {SMALL_IMAGES} pixels, not for {name}", code="C09")
    return ClassificationRecipe(
        name=name, model=config, epochs=12, batch_size=64, lr=4e-3 if isinstance(config, ViTConfig) else 2e-3,
        weight_decay=0.05, schedule="cosine", warmup_share=0.1, max_norm=1.0, augmentation="shift",
        label_smoothing=0.1, crop_pct=None, workers=1, evaluate_every=2,
    )  # fmt: skip


CLASSIFICATION_RECIPES: Mapping[str, Callable[[str], ClassificationRecipe]] = {
    "imagenet": imagenet,
    "cifar": cifar,
    "deit": deit,
    "deit3": deit3,
    "resolution": resolution,
    "transfer": transfer,
    "augreg": augreg,
    "finetune": finetune,
    "small": small,
}


def classification_recipe_for(name: str, recipe: str | None = None) -> ClassificationRecipe:
    """Return the named recipe of a classifier, or its default: `small` or `finetune`, by its image size.

    Raises:
        ConfigError: an unknown name, or a pair that does not go together.
    """
    if recipe is None:
        recipe = "small" if _config(name).image_size < SMALL_IMAGES else "finetune"
    if recipe not in CLASSIFICATION_RECIPES:
        raise unknown_name("recipe", recipe, list(CLASSIFICATION_RECIPES), code="C01")
    return CLASSIFICATION_RECIPES[recipe](name)


def imagenet_recipe(name: str) -> str:
    """Return the name of the recipe with which a classifier was published on ImageNet, its default there."""
    config = _config(name)
    if not isinstance(config, ViTConfig):
        return "imagenet"
    if config.image_size > 224:
        return "resolution"
    return {"deit": "deit", "deit3": "deit3"}.get(name.partition("_")[0], "augreg")


def _config(name: str) -> ClassifierConfig:
    config = preset(name)
    if not isinstance(config, ClassifierConfig):
        raise ConfigError(f"{name} is not a classifier", code="C09")
    return config


def _transformer(name: str) -> ViTConfig:
    config = _config(name)
    if not isinstance(config, ViTConfig):
        raise ConfigError(f"{name} is not a vision transformer", code="C09")
    return config


def _crop_pct(name: str) -> float | None:
    return crop_pct_of(_config(name))
