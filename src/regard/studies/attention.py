"""Studies of attention-augmented convolution: Bello et al. 2019, in ResNets of 20 layers.

The small networks are those that He et al. 2016 trained on CIFAR-10; `--full` trains ResNet-50 on ImageNet by the
paper's recipe (section 4.2).
"""

from __future__ import annotations

from regard.studies.study import Row, Study

BELLO = "Bello et al. 2019, Attention Augmented Convolutional Networks"
TOP1 = "top-1 of ResNet-50 on ImageNet in %"
SMALL, LARGE = ("aa_resnet20",), ("aa_resnet50", "--recipe", "imagenet")
PLAIN, PLAIN_50 = ("resnet20",), ("resnet50", "--recipe", "imagenet")
MINUTES = 1.5  # of a run on the digits


def _augmented(name: str, published: float, *settings: str) -> Row:
    return Row(name=name, words=(*SMALL, *settings), full=(*LARGE, *settings), published=published)


def _kind(name: str, attention: str, published: float | None = None, full: str | None = None) -> Row:
    return Row(
        name=name, words=(*SMALL, f"model.attention={attention}"), published=published,
        full=() if full is None else (full, "--recipe", "imagenet"),
    )  # fmt: skip


def _ratio(share: float, published: float) -> Row:
    settings = f"model.key_ratio={share:g}", f"model.value_ratio={share:g}"
    return _augmented(f"attention in {100 * share:g} % of the channels", published, *settings)


ATTENTION: dict[str, Study] = {
    "attention": Study(
        question="Does a convolution gain from attention beside it?",
        source=f"{BELLO}, table 2",
        published=TOP1,
        baseline="ResNet",
        minutes=MINUTES,
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
        source=f"{BELLO}, section 4.4, attention channels",
        published=TOP1,
        baseline="ResNet",
        minutes=MINUTES,
        rows=(
            Row(name="ResNet", words=PLAIN, full=PLAIN_50, published=76.4),
            _ratio(0.25, 77.7),
            _ratio(0.5, 77.3),
            _ratio(0.75, 76.7),
            _ratio(1.0, 73.9),
        ),
    ),
    "full_attention": Study(
        question="What are relative positions worth where attention has replaced the convolution?",
        source=f"{BELLO}, section 4.4: a gain of 2.8 points",
        published=TOP1,
        baseline="no position",
        minutes=MINUTES,
        rows=(
            _augmented(
                "no position", 71.1, "model.key_ratio=1", "model.value_ratio=1", "model.position=none"
            ),
            _augmented("relative", 73.9, "model.key_ratio=1", "model.value_ratio=1", "model.position=relative"),
        ),
    ),
}  # fmt: skip
