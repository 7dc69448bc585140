"""Teachers: any classifier that answers for the pixels a student sees, in the student's order of classes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.data.class_images.imagenet import CLASSES
from regard.errors import ArchitectureError, CheckpointError, ConfigError, MachineError, install_command
from regard.models.build import Detector
from regard.models.classifiers import HEADS
from regard.models.configs import CONFIGS
from regard.structures.categories import Category
from regard.structures.image_batch import IMAGENET_MEAN, IMAGENET_STD, renormalized
from regard.structures.transfer import upload
from regard.weights.classifiers import imagenet_categories
from regard.weights.download import download, is_offline
from regard.weights.imagenet_names import imagenet_labels, match_imagenet_names
from regard.weights.load import load
from regard.weights.onnx_file import refuse_onnx
from regard.weights.state_dict import load_exactly, read_weights

# The teacher of DeiT (Touvron et al. 2021, table 2): a RegNetY-16GF of 82.9 % on ImageNet, in timm's layout.
RELEASED = {"regnety_160": "https://dl.fbaipublicfiles.com/deit/regnety_160-a5fe301d.pth"}


class Teacher:
    """A trained classifier beside a student: always in evaluation, without gradients, out of the student's checkpoints.

    Args:
        model: the classifier, pixels (B, 3, H, W) -> logits (B, classes).
        size: side of the images that it was trained on; 0 takes the student's pixels as they are.
        mean, std: of its normalisation, for pixels in 0..1.
        order: the teacher's label of each class of the student, or None where they agree.
    """

    def __init__(
        self,
        model: nn.Module,
        size: int = 0,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        order: Sequence[int] | None = None,
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self.size = size
        self.order = order
        self.mean, self.std = tuple(mean), tuple(std)

    def to(self, device: torch.device) -> Teacher:
        self.model.to(device)
        return self

    def fingerprint(self) -> str:
        """sha256 of the model's tensors."""
        digest = hashlib.sha256()
        for name, tensor in self.model.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        return digest.hexdigest()

    @torch.no_grad()
    def __call__(self, pixels: Tensor) -> Tensor:
        """Logits (B, C) float32 for the student's normalised, maybe mixed pixels (B, 3, H, W)."""
        if (self.mean, self.std) != (IMAGENET_MEAN, IMAGENET_STD):
            pixels = renormalized(pixels, self.mean, self.std)
        if self.size and pixels.shape[-2:] != (self.size, self.size):
            pixels = F.interpolate(pixels, (self.size, self.size), mode="bilinear", antialias=True)
        self.model.eval()
        logits = self.model(pixels).float()
        return logits if self.order is None else logits[:, upload(torch.tensor(self.order), logits.device)]


def load_teacher(name: str, categories: Sequence[Category], image_size: int) -> Teacher:
    """A teacher by name.

    Args:
        name: whatever `regard.load` takes; `regnety_160`, DeiT's own; `timm/NAME` or `torchvision/NAME` with their
            released weights; or one's own weights of a convolutional or any other model as `resnet18=FILE`,
            `timm/NAME=FILE`, `torchvision/NAME=FILE`, which see images normalised by ImageNet's mean and deviation.
        categories: the student's classes. A teacher whose classes have names, or are ImageNet's, is put in their order;
            of others only the number is compared.
        image_size: side of the student's images. Teachers of ours that were trained on another size see theirs, and so
            do those of others that take no size but their own.

    Raises:
        ConfigError: other classes (C07), or not a classifier.
        MachineError: weights that cannot be had.
    """
    model, is_file, file = name.partition("=")
    if model in RELEASED or name.startswith(("timm/", "torchvision/")):
        teacher = _from_file(model, Path(file)) if is_file else _foreign(name)
        count = teacher(torch.zeros(1, 3, image_size, image_size)).shape[1]
        if count == CLASSES and imagenet_labels(categories) is not None:
            teacher.order = _order(name, imagenet_categories(), categories)
        else:
            _check_count(name, count, len(categories))
        return teacher
    refuse_onnx(name, "a teacher")
    try:
        net = load(file, model=model) if is_file and model in CONFIGS else load(name)
    except ArchitectureError as error:
        if not Path(name).is_file():
            raise
        remedy = f"name its model: resnet18={name}, timm/NAME={name} or torchvision/NAME={name}"
        raise ArchitectureError(error.what, where=name, remedy=remedy, code="K07") from error
    if isinstance(net, Detector):
        raise ConfigError("a detector cannot teach a classifier", where=name, code="C07")
    size = net.card.short_side
    if len(net.card.categories) != CLASSES or imagenet_labels(categories) is None:  # who may teach some of ImageNet
        _check_count(name, len(net.card.categories), len(categories))
    return Teacher(net, 0 if size == image_size else size, order=_order(name, net.card.categories, categories))


def _check_count(name: str, theirs: int, ours: int) -> None:
    if theirs != ours:
        what = f"the teacher knows {theirs} classes, the data have {ours}"
        remedy = "train the teacher on the same data first: regard train MODEL --data DIR"
        raise ConfigError(what, where=name, remedy=remedy, code="C07")


def _order(name: str, theirs: Sequence[Category], ours: Sequence[Category]) -> list[int] | None:
    """Where in the teacher's answer each class of the student stands; None where it stands there already."""
    named = match_imagenet_names(theirs, ours)
    names, wanted = [c.name for c in named], [c.name for c in ours]
    if names == wanted or _are_numbers(named):
        return None
    missing = sorted(set(wanted) - set(names))
    if missing:
        what = f"the teacher does not know {', '.join(repr(n) for n in missing[:5])}; it knows {', '.join(names[:5])}"
        raise ConfigError(what, where=name, remedy="train the teacher on the same classes", code="C07")
    return [names.index(n) for n in wanted]


def _are_numbers(categories: Sequence[Category]) -> bool:
    """Whether nobody has named these classes."""
    return [category.name for category in categories] == [str(number) for number in range(len(categories))]


def _from_file(name: str, file: Path) -> Teacher:
    """A model of timm or torchvision with weights of one's own; the number of classes is that of its last layer."""
    tensors = read_weights(file).tensors
    heads = [tensor for key, tensor in tensors.items() if key.partition(".")[0] in HEADS and tensor.ndim]
    if not heads:
        what = f"no weights of {name}: no classifying layer"
        raise CheckpointError(what, where=file, remedy="name the model that the file belongs to", code="K07")
    count = len(heads[-1])  # of several layers the last
    library, _, model = name.rpartition("/")
    if library == "torchvision":
        import torchvision

        if model not in torchvision.models.list_models(torchvision.models):
            raise ConfigError(f"torchvision has no classifier {model!r}", where=name, code="C01")
        net = torchvision.models.get_model(model, weights=None, num_classes=count)
    else:
        net = _timm(name).create_model(model, pretrained=False, num_classes=count)
    load_exactly(net, tensors, where=file)
    return Teacher(net)


def _foreign(name: str) -> Teacher:
    """A model of timm or torchvision with its weights, its normalisation, and its size if it takes no other."""
    library, _, model = name.rpartition("/")
    if library == "torchvision":
        return _torchvision(name, model)
    timm = _timm(name)
    if name in RELEASED:
        net = timm.create_model(model, pretrained=False)
        load_exactly(net, read_weights(download(RELEASED[name])).tensors, where=name)
        return Teacher(net)
    if is_offline():
        raise MachineError("REGARD_OFFLINE forbids to ask for timm's weights", where=name)
    try:
        net = timm.create_model(model, pretrained=True)
    except (OSError, RuntimeError) as error:
        raise MachineError(f"cannot get timm's weights: {error}", where=name) from error
    settings = timm.data.resolve_model_data_config(net)
    size = settings["input_size"][-1] if timm.models.get_pretrained_cfg_value(model, "fixed_input_size") else 0
    return Teacher(net, size, settings["mean"], settings["std"])


def _timm(name: str) -> ModuleType:
    """timm, which has the model."""
    try:
        import timm
    except ImportError as error:
        remedy = install_command("timm")
        raise MachineError(f"teacher {name} needs timm", remedy=remedy) from error
    model = name.rpartition("/")[2]
    if not timm.is_model(model):
        raise ConfigError(f"timm has no model {model!r}", where=name, remedy="see timm.list_models()", code="C01")
    return timm


def _torchvision(name: str, model: str) -> Teacher:
    import torchvision

    try:
        weights = torchvision.models.get_model_weights(model).DEFAULT
        settings = weights.transforms()
        side = settings.crop_size[0]
    except (ValueError, KeyError, AttributeError) as error:
        remedy = "see torchvision.models.list_models()"
        raise ConfigError(f"torchvision has no classifier {model!r}", where=name, remedy=remedy, code="C01") from error
    path: Path = download(weights.url)
    options = {"image_size": side} if model.startswith("vit_") else {}
    net = torchvision.models.get_model(model, weights=None, **options)
    load_exactly(net, read_weights(path).tensors, where=name)
    # Inception saw pixels of -1..1; torchvision's, when it brings the weights itself, normalises them anew.
    mean, std = ((0.5,) * 3, (0.5,) * 3) if hasattr(net, "transform_input") else (settings.mean, settings.std)
    return Teacher(net, side if model.startswith(("vit_", "maxvit_")) else 0, mean, std)
