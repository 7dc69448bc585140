"""Weights of vision transformers from files of the DeiT authors, timm and Hugging Face; one as the start of another."""

from __future__ import annotations

import re
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import regard
from refusals import refused
from regard.errors import CheckpointError
from regard.models.build import build
from regard.models.catalog import preset
from regard.models.configs.vit import VIT_PRESETS, ViTConfig
from regard.models.vit import VisionTransformer
from regard.structures.categories import Category
from regard.weights.classifiers import load_classifier, transfer_classifier
from regard.weights.load import load
from regard.weights.vit import fit_vit, is_vit, read_vit

PLAIN = ViTConfig(num_classes=5, image_size=32, patch_size=8, embed_dim=128, num_heads=2, depth=2)
DISTILLED = replace(PLAIN, distilled=True)
THIRD = replace(PLAIN, class_position=False, layer_scale=1e-4)
KINDS = {"plain": PLAIN, "distilled": DISTILLED, "third": THIRD}
PETS = (Category(0, "cat"), Category(1, "dog"), Category(2, "owl"))


def randomize(net, seed: int = 0):
    """Weights that are not small, so that nothing is hidden."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_(std=0.2)
    return net.eval()


def saved(tensors: object, folder: Path, name: str = "mine.pth") -> Path:
    torch.save(tensors, folder / name)
    return folder / name


def tensors_of(config: ViTConfig, seed: int = 0) -> dict[str, Tensor]:
    return randomize(VisionTransformer(config), seed).state_dict()


def assert_same_answers(ours, theirs, side: int = 32) -> None:
    images = torch.randn(3, 3, side, side)
    with torch.no_grad():
        expected = theirs(images)
        logits = expected if isinstance(expected, Tensor) else expected.logits
        torch.testing.assert_close(ours(images), logits, rtol=1e-5, atol=1e-5)
    assert logits.std() > 0.1  # they say something


@pytest.fixture(autouse=True)
def no_warnings():
    """What is not expected to be said is not said."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        yield


# The authors' files


@pytest.mark.parametrize("kind", KINDS)
def test_the_authors_files(tmp_path, kind):
    tensors = tensors_of(KINDS[kind])
    named = {re.sub(r"ls([12])\.gamma", r"gamma_\1", key): tensor for key, tensor in tensors.items()}
    assert (kind == "third") == ("blocks.1.gamma_2" in named)
    net = load(saved({"model": named, "epoch": 3}, tmp_path))
    assert isinstance(net, VisionTransformer) and net.config == KINDS[kind] and not net.training
    assert net.card.name == "vit" and [c.name for c in net.card.categories] == list("01234")
    assert all(torch.equal(tensor, net.state_dict()[key]) for key, tensor in tensors.items())


def released(name: str, classes: int = 1000) -> dict[str, Tensor]:
    """Tensors of the shapes of a released file."""
    with torch.device("meta"):
        shapes = build(replace(preset(name), num_classes=classes), name).state_dict()
    torch.manual_seed(1)
    return {key: 0.02 * torch.randn(tensor.shape) for key, tensor in shapes.items()}


def test_a_released_file_by_its_file_name(tmp_path):
    tensors = released("deit_tiny_patch16_224")
    net = regard.load(saved({"model": tensors}, tmp_path, "deit_tiny_patch16_224-a1311bcf.pth"))
    assert net.card.name == "deit_tiny_patch16_224" and net.config == preset("deit_tiny_patch16_224")
    names = [category.name for category in net.card.categories]
    assert names[:2] == ["tench", "goldfish"] and len(set(names)) == 1000
    assert (net.card.short_side, net.card.crop_pct) == (224, 0.875)
    wrong = saved({"model": tensors}, tmp_path, "deit_base_patch16_224-b5f2ef4d.pth")
    with refused(CheckpointError, "embed_dim=192", "deit_base_patch16_224", "embed_dim=768", code="K07"):
        load(wrong)


@pytest.mark.parametrize(
    ("name", "called"),
    [("deit_tiny_patch16_224", "vit_tiny_patch16_224"), ("deit_tiny_distilled_patch16_224",) * 2,
     ("deit3_small_patch16_224",) * 2, ("vit_small_patch32_384",) * 2, ("deit_nano_patch4_32",) * 2],
)  # fmt: skip
def test_presets_are_recognized(name, called):
    """With their heads, whatever the number of classes; a DeiT without its token is a ViT."""
    net = load_classifier(released(name, 7), where="mine.pth")
    assert net.config == replace(preset(name), num_classes=7) and net.card.name == called


def test_heads_of_another_image_size():
    """By the width: ViT-H has 80 channels a head, where others have 64."""
    huge = replace(VIT_PRESETS["vit_huge_patch14_224"], depth=1, image_size=28, num_classes=2)
    with torch.device("meta"):
        tensors = VisionTransformer(huge).state_dict()
    found = read_vit(tensors, where="mine.pth")
    assert (found.name, found.config) == ("vit", huge)


# timm's files


@pytest.mark.parametrize("kind", KINDS)
def test_timms_files(tmp_path, kind):
    timm_vit = pytest.importorskip("timm.models.vision_transformer")
    from safetensors.torch import save_file
    from timm.models.deit import VisionTransformerDistilled

    config = KINDS[kind]
    build_theirs = VisionTransformerDistilled if config.distilled else timm_vit.VisionTransformer
    theirs = build_theirs(
        img_size=32, patch_size=8, embed_dim=128, depth=2, num_heads=2, num_classes=5,
        init_values=config.layer_scale or None, no_embed_class=not config.class_position,
    )  # fmt: skip
    save_file(randomize(theirs).state_dict(), tmp_path / "model.safetensors")
    net = load(tmp_path / "model.safetensors")
    assert net.config == config
    assert_same_answers(net, theirs)


# Hugging Face's files


def hugging_face(kind: str, **changes):
    transformers = pytest.importorskip("transformers")
    config = (transformers.ViTConfig if kind.startswith("ViT") else transformers.DeiTConfig)(
        hidden_size=128, num_hidden_layers=2, num_attention_heads=2, intermediate_size=512, image_size=32, patch_size=8,
        num_labels=5, attn_implementation="eager", **changes,
    )  # fmt: skip
    return randomize(getattr(transformers, kind)(config))


def old_name(key: str) -> str:
    """transformers' names of parameters before version 5."""
    for new, old in (
        (r"(vit|deit)\.layers\.", r"\1.encoder.layer."), ("q_proj", "attention.query"), ("k_proj", "attention.key"),
        ("v_proj", "attention.value"), ("o_proj", "output.dense"), ("mlp.fc1", "intermediate.dense"),
        ("mlp.fc2", "output.dense"),
    ):  # fmt: skip
        key = re.sub(new, old, key)
    return key


HUGGING_FACE = {
    "ViTForImageClassification": PLAIN,
    "DeiTForImageClassification": replace(DISTILLED, fuse="class"),
    "DeiTForImageClassificationWithTeacher": DISTILLED,
}


@pytest.mark.parametrize("written", ["save_pretrained", "new names", "old names"])
@pytest.mark.parametrize("kind", HUGGING_FACE)
def test_hugging_faces_files(tmp_path, kind, written):
    theirs = hugging_face(kind)
    path = tmp_path / "model.safetensors"
    if written == "save_pretrained":
        theirs.save_pretrained(tmp_path)
    else:
        tensors = theirs.state_dict()
        if written == "old names":
            tensors = {old_name(key): tensor for key, tensor in tensors.items()}
        assert any("encoder.layer.1.attention.attention.query" in key for key in tensors) == (written == "old names")
        path = saved(tensors, tmp_path)
    if kind == "DeiTForImageClassification":
        with pytest.warns(UserWarning, match="distillation head"):
            net = load(path)
        assert torch.equal(net.head_dist.weight, net.head.weight)
    else:
        net = load(path)
    assert net.config == HUGGING_FACE[kind]
    assert_same_answers(net, theirs)


def test_a_file_without_biases_is_refused(tmp_path):
    theirs = hugging_face("ViTForImageClassification", qkv_bias=False)
    with refused(CheckpointError, "2 missing", "blocks.0.attn.qkv.bias", code="K07"):
        load(saved(theirs.state_dict(), tmp_path))


# Another image size


@pytest.mark.parametrize("rule", ["bicubic", "antialiased"])
def test_positions_are_resized_by_the_models_rule(tmp_path, monkeypatch, rule):
    """14 x 14 -> 24 x 24 as in the authors' main.py; timm's function for timm's rule."""
    known = replace(DISTILLED, image_size=192, resize=rule)  # 24 x 24 patches
    monkeypatch.setitem(VIT_PRESETS, "mine", known)
    monkeypatch.setattr("regard.models.catalog.CONFIGS", {**regard.models.catalog.CONFIGS, "mine": known})
    monkeypatch.setattr("regard.weights.load.CONFIGS", regard.models.catalog.CONFIGS)
    tensors = tensors_of(replace(DISTILLED, image_size=112))
    with pytest.warns(UserWarning) as caught:
        net = load(saved(tensors, tmp_path), model="mine")
    says = [str(warning.message) for warning in caught]
    assert says == [f"{tmp_path / 'mine.pth'}: positions of 14 x 14 patches resized to 24 x 24"]
    assert caught[0].filename == __file__
    assert net.config == known and net.card.short_side == 192
    before, after = tensors["pos_embed"], net.pos_embed
    assert torch.equal(after[:, :2], before[:, :2])
    grid = before[:, 2:].reshape(1, 14, 14, 128).permute(0, 3, 1, 2)
    if rule == "bicubic":
        expected = F.interpolate(grid, size=(24, 24), mode="bicubic", align_corners=False)
        expected = expected.permute(0, 2, 3, 1).flatten(1, 2)
    else:
        timm_layers = pytest.importorskip("timm.layers")
        expected = timm_layers.resample_abs_pos_embed(before, (24, 24), num_prefix_tokens=2)[:, 2:]
    torch.testing.assert_close(after[:, 2:], expected, rtol=0, atol=1e-6)
    assert all(torch.equal(tensor, net.state_dict()[key]) for key, tensor in tensors.items() if key != "pos_embed")


def test_positions_of_the_same_size_and_half_precision():
    tensors = {key: tensor.half() for key, tensor in tensors_of(PLAIN).items()}
    kept, notes = fit_vit(tensors, PLAIN, PLAIN)
    assert torch.equal(kept["pos_embed"], tensors["pos_embed"]) and not notes
    small, _ = fit_vit(tensors, PLAIN, replace(PLAIN, image_size=16))
    grid = tensors["pos_embed"].float()[:, 1:].transpose(1, 2).unflatten(2, (4, 4))
    expected = F.interpolate(grid, (2, 2), mode="bicubic", align_corners=False).flatten(2).transpose(1, 2)
    torch.testing.assert_close(small["pos_embed"][:, 1:], expected, rtol=0, atol=1e-6)


# What is refused


def test_other_files_are_not_taken_for_vision_transformers():
    torchvision = pytest.importorskip("torchvision")
    with torch.device("meta"):
        assert not is_vit(torchvision.models.vit_b_32().state_dict())
        assert not is_vit(torchvision.models.swin_t().state_dict())
        assert not is_vit(build(preset("detr_resnet18"), "detr_resnet18").state_dict())
    assert is_vit(tensors_of(PLAIN))


def without(*keys: str, **changes: Tensor) -> dict[str, Tensor]:
    tensors = {key: tensor for key, tensor in tensors_of(PLAIN).items() if key not in keys}
    return {**tensors, **{key.replace("__", "."): tensor for key, tensor in changes.items()}}


@pytest.mark.parametrize(
    ("tensors", "code", "says"),
    [
        (without("norm.bias"), "K07", ("1 missing", "norm.bias")),
        (without(fc_norm__weight=torch.ones(128)), "K07", ("1 not in the model", "fc_norm.weight")),
        (without("head.weight", "head.bias"), "K07", ("class layer", "start_from=")),
        (without("cls_token"), "K07", ("cls_token",)),
        (without(pos_embed=torch.ones(17, 128)), "K07", ("pos_embed", "(17, 128)")),
        (without(head__weight=torch.ones(0, 128)), "K07", ("head.weight", "(0, 128)")),
        (without(pos_embed=torch.ones(1, 13, 128)), "K07", ("13 rows of pos_embed",)),
        (without(dist_token=torch.ones(1, 1, 128)), "K07", ("17 rows of pos_embed", "2 tokens")),
        (without(head__bias=torch.ones(4)), "K08", ("head.bias (4,)", "(5,)")),
        (without(pos_embed=torch.ones(1, 17, 64)), "K09", ("pos_embed (1, 17, 64)",)),
        (without(patch_embed__proj__weight=torch.ones(128, 1, 8, 8)), "K07", ("patch_embed.proj.weight (128, 1",)),
        ({**tensors_of(DISTILLED), "head_dist.weight": torch.ones(3, 128)}, "K08", ("head_dist.weight (3, 128)",)),
        ({**tensors_of(THIRD), "blocks.0.gamma_1": torch.ones(128)}, "K10", ()),
        (tensors_of(replace(PLAIN, embed_dim=24)), "K07", ("width 24", "attention")),
    ],
)  # fmt: skip
def test_files_that_do_not_fit(tmp_path, tensors, code, says):
    path = saved(tensors, tmp_path)
    with refused(CheckpointError, *says, path, code=code):
        load(path)


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ("deit_nano_patch4_32", ("patch_size=8, embed_dim=128, depth=2", "patch_size=4, embed_dim=64, depth=4")),
        ("deit_nano_distilled_patch4_32", ("distilled=False", "distilled=True")),
        ("deit3_small_patch16_224", ("class_position=True, layer_scale=0.0", "class_position=False")),
        ("resnet18", ("vision transformer", "resnet18")),
        ("detr_resnet18", ("known model",)),
    ],
)
def test_a_model_that_the_file_is_not(tmp_path, model, says):
    path = saved(tensors_of(PLAIN), tmp_path)
    with refused(CheckpointError, *says, path, code="K07"):
        load(path, model=model)


def test_a_file_that_is_no_vision_transformer(tmp_path):
    path = saved({"fc.weight": torch.ones(3, 4)}, tmp_path)
    with refused(CheckpointError, path, "vision transformer", "1 tensors", "'fc.weight'", code="K07"):
        load(path, model="deit_tiny_patch16_224")
    with refused(CheckpointError, path, "known model", "1 tensors", "'fc.weight'", code="K07"):
        load(path)


# One as the start of another


def make(config: ViTConfig, seed: int, categories: tuple[Category, ...] = PETS) -> VisionTransformer:
    net = build(replace(config, num_classes=len(categories)), f"model {seed}", categories)
    return randomize(net, seed)


OTHERS = (Category(0, "owl"), Category(1, "fox"), Category(2, "cat"), Category(3, "emu"))


@pytest.mark.parametrize("config", KINDS.values())
def test_transfer_to_other_classes(config):
    source, net = make(config, 1), make(config, 2, OTHERS)
    fresh = {key: tensor.clone() for key, tensor in net.state_dict().items()}
    assert transfer_classifier(source, net) == "started from model 1; 4 classes, 2 of them known by name"
    for key, tensor in source.state_dict().items():
        ours = net.state_dict()[key]
        if key.startswith("head"):
            assert torch.equal(ours[[0, 2]], tensor[[2, 0]]) and torch.equal(ours[[1, 3]], fresh[key][[1, 3]])
        else:
            assert torch.equal(ours, tensor)


@pytest.mark.parametrize("config", KINDS.values())
def test_transfer_to_another_image_size(config):
    """The same answers as the source gives for images of that size."""
    source, net = make(config, 1), make(replace(config, image_size=48), 2)
    says = transfer_classifier(source, net)
    assert says.endswith("3 of them known by name; positions of 4 x 4 patches resized to 6 x 6")
    assert_same_answers(net, source, side=48)


def test_transfer_of_a_plain_model_to_a_distilled_one():
    source, net = make(PLAIN, 1), make(replace(DISTILLED, image_size=16), 2, OTHERS)
    says = transfer_classifier(source, net)
    assert "; distillation token and head from those of the class; positions of 4 x 4" in says
    assert torch.equal(net.dist_token, source.cls_token) and torch.equal(net.cls_token, source.cls_token)
    assert torch.equal(net.pos_embed[:, 0], source.pos_embed[:, 0])
    assert torch.equal(net.pos_embed[:, 1], source.pos_embed[:, 0])
    for head in (net.head, net.head_dist):
        assert torch.equal(head.weight[[0, 2]], source.head.weight[[2, 0]])
        assert torch.equal(head.bias[[0, 2]], source.head.bias[[2, 0]])
    assert not torch.equal(net.head.weight[1], net.head_dist.weight[1])  # each as it was


def test_transfer_of_a_distilled_model_to_a_plain_one():
    source, net = make(DISTILLED, 1), make(PLAIN, 2)
    assert transfer_classifier(source, net).endswith("; without the distillation token and head")
    theirs = source.state_dict()
    assert torch.equal(net.pos_embed, theirs["pos_embed"][:, [0, *range(2, 18)]])
    others = [key for key in net.state_dict() if key != "pos_embed"]
    assert all(torch.equal(net.state_dict()[key], theirs[key]) for key in others)


@pytest.mark.parametrize(
    ("config", "says"),
    [(THIRD, "ls1.gamma"), (replace(PLAIN, class_position=False), "pos_embed"), (replace(PLAIN, depth=3), "blocks.2"),
     (replace(PLAIN, patch_size=4), "patch_embed"), (replace(PLAIN, num_heads=4), "num_heads 2, not 4"),
     (replace(PLAIN, embed_dim=64), "blocks.0")],
)  # fmt: skip
def test_transfer_to_another_model(config, says):
    source, net = make(PLAIN, 1), make(config, 2)
    before = {key: tensor.clone() for key, tensor in net.state_dict().items()}
    with refused(CheckpointError, "model 1", "model 2", says, code="K07"):
        transfer_classifier(source, net)
    assert all(torch.equal(tensor, before[key]) for key, tensor in net.state_dict().items())
