"""Compare attention and its position encodings in a small ResNet: accuracy over several seeds.

    regard study attention --data cifar10/ --epochs 100

Bello et al. 2019 compare the encodings on ImageNet (section 4.4): relative ones gain most, and without any attention
gains next to nothing. The networks here are the 20 layers that He et al. 2016 trained on CIFAR-10.
"""

from __future__ import annotations

from pathlib import Path

from regard.data.paths import data_text
from regard.errors import ConfigError
from regard.studies.seeds import claim, report, top1, train_all

# The networks with their settings.
NETWORKS: dict[str, tuple[str, ...]] = {
    "ResNet-20": ("resnet20",),
    "augmented, no position": ("aa_resnet20", "model.position=none"),
    "augmented, sine": ("aa_resnet20", "model.position=sine"),
    "augmented, coordinates": ("aa_resnet20", "model.position=coord"),
    "augmented, relative": ("aa_resnet20", "model.position=relative"),
}


def attention(data: str, epochs: int, train_images: int | None, seeds: int, output: Path) -> None:
    """Train every network with every seed; print a table, write `scores.json` and `scores.png`.

    On a CPU runs train in parallel, one process per core; on a GPU one after the other. The same call resumes a
    stopped study.

    Raises:
        ConfigError: a number is out of range, or the folder holds something else.
    """
    if epochs < 1 or seeds < 1:
        raise ConfigError(f"epochs={epochs} and seeds={seeds}, expected at least 1", code="C03")
    plan = {"data": data_text(data), "epochs": epochs, "train_images": train_images, "seeds": seeds}
    claim(output, plan)
    words = small_training(str(plan["data"]), epochs, train_images)
    runs = train_all({name: [*network, *words] for name, network in NETWORKS.items()}, seeds, output)
    report({name: [top1(run) for run in folders] for name, folders in runs.items()}, plan, output)


def small_training(data: str, epochs: int, train_images: int | None) -> list[str]:
    """Return arguments of `regard train`: the recipe for small images, with mirror images except for digits."""
    words = ["--data", data, "--epochs", str(epochs), "--recipe", "small", f"evaluate_every={epochs}", "workers=0"]
    words += [] if data == "digits" else ["augmentation=cifar"]
    return words if train_images is None else [*words, f"train_images={train_images}"]
