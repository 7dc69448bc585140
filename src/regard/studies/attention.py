"""Studies of attention-augmented convolution: Bello et al. 2019, in ResNets of 20 layers and small RetinaNets.

The small networks are those that He et al. 2016 trained on CIFAR-10; `--full` trains ResNet-50 on ImageNet by the
paper's recipe (section 4.2), wide ResNets on CIFAR-100 (4.1) and RetinaNet on COCO (4.3).
"""

from __future__ import annotations

from regard.studies.study import Row, Scale, Study, generated_objects, small_images

BELLO = "Bello et al. 2019, Attention Augmented Convolutional Networks"
TOP1 = "top-1 of ResNet-50 on ImageNet in %"
SMALL, LARGE = ("aa_resnet20",), ("aa_resnet50", "--recipe", "imagenet")
PLAIN, PLAIN_50 = ("resnet20",), ("resnet50", "--recipe", "imagenet")
ALONE = ("model.key_ratio=1", "model.value_ratio=1")  # attention in the place of the convolution
MINUTES = 1.5  # of a run on the digits


def small_maps(scale: Scale) -> list[str]:
    """Words for networks of small images. The digits have 8 pixels; at 32 attention would take most of the time."""
    return small_images(scale) + (["model.image_size=16"] if scale.data == "digits" else [])


def _augmented(name: str, published: float | None, *settings: str, difference: float | None = None) -> Row:
    return Row(
        name=name, words=(*SMALL, *settings), full=(*LARGE, *settings), published=published,
        published_difference=difference,
    )  # fmt: skip


def _kind(name: str, attention: str, published: float | None = None, full: str | None = None) -> Row:
    return Row(
        name=name, words=(*SMALL, f"model.attention={attention}"), published=published,
        full=() if full is None else (full, "--recipe", "imagenet"),
    )  # fmt: skip


def _ratio(share: float) -> Row:
    settings = f"model.key_ratio={share:g}", f"model.value_ratio={share:g}"
    return _augmented(f"attention in {100 * share:g} % of the channels", None, *settings)


def _depth(small: str, large: str, published: float) -> Row:
    """Return a row of a network of the paper, and of the small one that stands for it, if any."""
    name = f"{small or large}{f' (the paper: {large})' if small else ''}"
    return Row(name=name, words=(small,) if small else (), full=(large, "--recipe", "imagenet"), published=published)


def _wide(name: str, published: float, model: str, *full: str) -> Row:
    # Attention on whole maps of 32 pixels takes ten times as long.
    return Row(name=name, words=(model, "model.image_size=16"), full=full, published=published)


def _retinanet(name: str, published: float, large: str, small: str = "") -> Row:
    return Row(
        name=name, words=(small,) if small else (), full=(large, "--recipe", "paper"), published=published
    )  # fmt: skip


ATTENTION: dict[str, Study] = {
    "attention": Study(
        question="Does a convolution gain from attention beside it?",
        source=f"{BELLO}, section 4.2",
        published=TOP1,
        baseline="ResNet",
        minutes=MINUTES,
        common=small_maps,
        rows=(
            Row(name="ResNet", words=PLAIN, full=PLAIN_50, published=76.4),
            Row(
                name="squeeze-and-excitation", words=(*PLAIN, "model.squeeze=4"),
                full=(*PLAIN_50, "model.squeeze=16"), published=77.5,
            ),
            _augmented("augmented", 77.7),
        ),
    ),
    "attention_kinds": Study(
        question="Which attention may replace the convolutions of a network: global, local or vectorised?",
        source="Zhao et al. 2020, Exploring Self-attention for Image Recognition; local relation: Hu et al. 2019",
        published="top-1 of networks of 26 layers on ImageNet in %",
        baseline="convolution",
        minutes=2 * MINUTES,
        common=small_maps,
        rows=(
            Row(name="convolution", words=PLAIN, published=73.6),
            Row(name="global", words=(*SMALL, "model.key_ratio=1", "model.value_ratio=1")),
            _kind("axial", "axial"),
            _kind("local, stand-alone", "stand_alone"),
            _kind("local relation", "local_relation", 75.7),
            _kind("vectorised, pairwise", "pairwise", 74.9, "san10_pairwise"),
            _kind("vectorised, patchwise", "patchwise", 77.1, "san10_patchwise"),
        ),
    ),
    "positions": Study(
        question="Which position encoding does attention beside a convolution need?",
        source=f"{BELLO}, section 4.4",
        published=TOP1,
        baseline="augmented, no position",
        minutes=MINUTES,
        common=small_maps,
        rows=(
            Row(name="ResNet", words=PLAIN, full=PLAIN_50, published=76.4),
            _augmented("augmented, no position", 77.5, "model.position=none"),
            _augmented("augmented, sine", 77.5, "model.position=sine"),
            _augmented("augmented, coordinates", 77.5, "model.position=coord"),
            _augmented("augmented, relative", 77.7, "model.position=relative"),
        ),
    ),
    "attention_ratios": Study(
        question="How much of a convolution can attention replace?",
        source=f"{BELLO}, section 4.4: best with both, slightly worse with attention alone than with a convolution "
        "alone; we could not check the numbers of its table and leave them out",
        published=TOP1,
        baseline="ResNet",
        minutes=MINUTES,
        common=small_maps,
        rows=(
            Row(name="ResNet", words=PLAIN, full=PLAIN_50, published=76.4),
            *map(_ratio, (0.25, 0.5, 0.75, 1.0)),
        ),
    ),
    "full_attention": Study(
        question="What are relative positions worth where attention has replaced the convolution?",
        source=f"{BELLO}, section 4.4: a gain of 2.8 points",
        published=TOP1,
        baseline="no position",
        minutes=MINUTES,
        common=small_maps,
        rows=(
            _augmented("no position", None, *ALONE, "model.position=none"),
            _augmented("relative", None, *ALONE, "model.position=relative", difference=2.8),
        ),
    ),
    "depths": Study(
        question="Do deeper networks gain from attention too?",
        source=f"{BELLO}, section 4.2",
        published="top-1 of ResNets on ImageNet in %",
        baseline="resnet20 (the paper: resnet34)",
        minutes=1.7 * MINUTES,
        common=small_maps,
        rows=(
            _depth("resnet20", "resnet34", 73.6), _depth("aa_resnet20", "aa_resnet34", 74.7),
            _depth("resnet32", "resnet50", 76.4), _depth("aa_resnet32", "aa_resnet50", 77.7),
            _depth("", "resnet101", 77.9), _depth("", "aa_resnet101", 78.7),
            _depth("", "resnet152", 78.4), _depth("", "aa_resnet152", 79.1),
        ),
    ),
    "wide_resnets": Study(
        question="Does a wide network on small images gain from attention?",
        source=f"{BELLO}, section 4.1; our networks have 16 layers of twice the width, and images of 16 pixels",
        published="top-1 of Wide-ResNet-28-10 on CIFAR-100 in %",
        baseline="wide ResNet",
        minutes=3.5 * MINUTES,
        full_data="cifar100/",
        rows=(
            _wide(
                "wide ResNet", 80.3, "wide_resnet16_2",
                "wide_resnet28_10", "--recipe", "cifar", "batch_size=1024", "lr=0.8", "weight_decay=2e-4",
            ),
            Row(name="gather-excite", published=79.8),
            Row(name="squeeze-and-excitation", published=81.0),
            _wide("augmented", 81.6, "aa_wide_resnet16_2", "aa_wide_resnet28_10", "--recipe", "cifar"),
        ),
    ),
    "retinanet": Study(
        question="Does a detector gain from attention in its backbone?",
        source=f"{BELLO}, section 4.3: RetinaNet from random weights",
        published="AP of RetinaNet on COCO in %",
        baseline="ResNet-50 (ours: small)",
        task="detection",
        statistic="AP",
        data="shapes_hard",
        minutes=15.0,
        common=generated_objects,
        full_data="coco/",
        rows=(
            _retinanet("ResNet-50 (ours: small)", 36.8, "retinanet_resnet50", "retinanet_tiny"),
            _retinanet("augmented ResNet-50 (ours: small)", 38.2, "retinanet_aa_resnet50", "retinanet_aa_tiny"),
            Row(name="ResNet-50 with squeeze-and-excitation", published=36.5),
            _retinanet("ResNet-101", 38.5, "retinanet_resnet101"),
            _retinanet("augmented ResNet-101", 39.2, "retinanet_aa_resnet101"),
        ),
    ),
}  # fmt: skip
