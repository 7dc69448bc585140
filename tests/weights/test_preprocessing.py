"""Images are prepared as transformers' own image processors and timm's own transforms prepare them, or refused."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

import regard
from refusals import refused
from regard.data.samples import ClassSample
from regard.data.transforms.classification import Evaluation
from regard.errors import CheckpointError
from regard.weights.load import load
from regard.weights.model_state import model_state

ENDS = ([0.2, 0.3, 0.4], [0.5, 0.6, 0.7])


def picture(height: int, width: int) -> Image.Image:
    """A picture of sharp squares, so that a wrong crop or interpolation shows."""
    small = np.random.default_rng(1).integers(0, 256, (9, 12, 3), np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.NEAREST)


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    """A vision transformer of transformers for images of 32 pixels, and its folder."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=1, intermediate_size=256, image_size=32, patch_size=8,
        num_labels=5, attn_implementation="eager",
    )  # fmt: skip
    net = transformers.ViTForImageClassification(config).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_(std=0.15)
    folder = tmp_path_factory.mktemp("hub") / "vit"
    net.save_pretrained(folder)
    return net, folder


def processor(kind: str, options: dict):
    transformers = pytest.importorskip("transformers")
    return getattr(transformers, f"{kind}ImageProcessor")(**options)


SQUARE = {"size": {"height": 32, "width": 32}}


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("ViT", SQUARE),
        ("ViT", {**SQUARE, "resample": 3}),
        ("ViT", {**SQUARE, "do_normalize": False}),
        ("ViT", {**SQUARE, "do_normalize": False, "rescale_factor": 1 / 127.5}),
        ("ViT", {**SQUARE, "rescale_factor": 1 / 127.5, "image_mean": [1.0] * 3, "image_std": [1.0] * 3}),
        ("ViT", {**SQUARE, "rescale_factor": 1 / 200, "image_mean": ENDS[0], "image_std": ENDS[1]}),
        ("ViT", {**SQUARE, "do_rescale": False, "image_mean": [127.5] * 3, "image_std": [127.5] * 3}),
        ("ViT", {**SQUARE, "do_rescale": False, "image_mean": [120.0, 110.0, 99.0], "image_std": [60.0, 70.0, 80.0]}),
        ("ViT", {**SQUARE, "do_convert_rgb": True}),
        ("DeiT", {"size": 40, "crop_size": 32}),
        ("DeiT", {"size": {"height": 39, "width": 39}, "crop_size": {"height": 32, "width": 32}}),
        ("DeiT", {"size": 35, "crop_size": 32, "resample": 2}),
        ("DeiT", {"size": 32, "do_center_crop": False}),
        ("DeiT", {"size": 32, "crop_size": 32, "do_normalize": False}),
        ("Beit", {"size": 32}),
        ("CLIP", {"size": {"shortest_edge": 36}, "crop_size": 32}),
        ("CLIP", {"size": 33, "crop_size": {"height": 32, "width": 32}, "do_normalize": False}),
        ("Bit", {"size": {"shortest_edge": 32}, "crop_size": 32, "resample": 2}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("shape", [(45, 60), (71, 50)])
def test_as_transformers_prepares_them(vit, tmp_path, kind, options, shape):
    net, folder = vit
    shutil.copytree(folder, tmp_path / "hub")
    theirs = processor(kind, options)
    theirs.save_pretrained(tmp_path / "hub")
    image = picture(*shape)
    with torch.no_grad():
        expected = net(**theirs(image, return_tensors="pt")).logits.softmax(-1)[0]
    found = regard.predict(regard.load(tmp_path / "hub"), image).probabilities
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["ViT", "DeiT", "Beit", "CLIP", "Bit"])
def test_defaults_are_those_of_the_processor(kind):
    """A file with nothing but its type means what transformers takes by default."""
    from regard.weights.preprocessing import of_transformers

    theirs = processor(kind, {}).to_dict()
    bare = of_transformers({"image_processor_type": f"{kind}ImageProcessor"}, "x.json")
    told = of_transformers(json.loads(processor(kind, {}).to_json_string()), "x.json")
    assert bare[2:] == told[2:]
    assert bare.mean == pytest.approx(told.mean) and bare.std == pytest.approx(theirs["image_std"])


@pytest.mark.parametrize(
    ("key", "content"),
    [
        ("do_resize", {"do_resize": False}),
        ("do_normalize", {"do_normalize": "yes"}),
        ("resample", {"resample": 1}),
        ("resample", {"resample": [3]}),
        ("rescale_factor", {"rescale_factor": 0}),
        ("rescale_offset", {"rescale_offset": True}),
        ("do_flip_channel_order", {"do_flip_channel_order": True}),
        ("crop_pct", {"crop_pct": 0.9}),
        ("size", {"size": {"height": 32, "width": 48}}),
        ("size", {"size": {"longest_edge": 32}}),
        ("size", {"size": {"shortest_edge": 32, "longest_edge": 64}}),
        ("size", {"size": -1}),
        ("size", {"size": 48}),
        ("do_center_crop", {"size": {"shortest_edge": 32}}),
        ("crop_size", {"size": 32, "do_center_crop": True, "crop_size": 48}),
        ("crop_size", {"size": 48, "do_center_crop": True, "crop_size": {"height": 32, "width": 24}}),
        ("crop_size", {"size": 48, "do_center_crop": True, "crop_size": 40}),
        ("image_processor_type", {"image_processor_type": "EfficientNetImageProcessor"}),
    ],
)
def test_what_is_not_followed_is_refused(vit, tmp_path, key, content):
    shutil.copytree(vit[1], tmp_path / "hub")
    (tmp_path / "hub" / "preprocessor_config.json").write_text(json.dumps({**SQUARE, **content}))
    with refused(CheckpointError, key, tmp_path / "hub", code="K07"):
        regard.load(tmp_path / "hub")


def test_another_image_size_on_request(vit, tmp_path):
    """A named model may have another image size than the file; the crop keeps its share."""
    timm = pytest.importorskip("timm")
    theirs = timm.create_model("vit_tiny_patch16_224", num_classes=3)
    timm.models.save_for_hf(theirs, str(tmp_path))
    with pytest.warns(UserWarning, match="resized"):
        net = regard.load(tmp_path, model="vit_tiny_patch16_384")
    assert (net.card.short_side, net.card.crop_pct) == (384, 0.9)


def of_timm(folder, **settings):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    net = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=64, num_heads=1, depth=2, num_classes=3
    )
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_(std=0.15)
    timm.models.save_for_hf(net, str(folder))
    path = folder / "config.json"
    content = json.loads(path.read_text())
    content["pretrained_cfg"] |= settings
    path.write_text(json.dumps(content))
    return net.eval(), content["pretrained_cfg"]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"crop_mode": "squash"},
        {"interpolation": "bilinear", "crop_pct": 0.8},
        {"mean": ENDS[0], "std": ENDS[1], "crop_pct": 1.0, "crop_mode": "squash"},
        {"crop_pct": None},
    ],
)
@pytest.mark.parametrize("shape", [(45, 60), (71, 50)])
def test_as_timm_prepares_them(tmp_path, settings, shape):
    net, written = of_timm(tmp_path, **settings)
    timm = pytest.importorskip("timm")
    data = timm.data.resolve_data_config(pretrained_cfg=written)
    transform = timm.data.create_transform(**data, is_training=False)
    image = picture(*shape)
    with torch.no_grad():
        expected = net(transform(image)[None]).softmax(-1)[0]
    found = regard.load(tmp_path)
    # Pillow, which timm uses, and torchvision clip and round between the two passes of a resize differently.
    torch.testing.assert_close(regard.predict(found, image).probabilities, expected, rtol=0, atol=0.02)
    seen = Evaluation.of(found.card)(ClassSample(torch.from_numpy(np.array(image)).permute(2, 0, 1), 0)).image
    levels = transform(image) * torch.tensor(data["std"])[:, None, None] + torch.tensor(data["mean"])[:, None, None]
    assert (levels * 255 - seen).abs().mean() < 0.5


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("crop_mode", "border"), ("interpolation", "nearest"), ("crop_pct", 1.2), ("crop_pct", "0.9"),
        ("input_size", [1, 32, 32]), ("input_size", [3, 32, 48]), ("input_size", [3, 48, 48]),
        ("test_input_size", [3, 48, 48]), ("test_crop_pct", 1.0),
    ],
)  # fmt: skip
def test_what_timm_says_and_is_not_followed_is_refused(tmp_path, key, value):
    of_timm(tmp_path, **{key: value})
    with refused(CheckpointError, key, tmp_path, code="K07"):
        regard.load(tmp_path)


def test_old_files_of_timm_have_one_level(tmp_path):
    of_timm(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**content.pop("pretrained_cfg"), **content, "crop_pct": 0.7}))
    assert regard.load(tmp_path).card.crop_pct == 0.7


def test_a_checkpoint_keeps_how_images_are_prepared(vit, tmp_path):
    shutil.copytree(vit[1], tmp_path / "hub")
    processor("DeiT", {"size": 39, "crop_size": 32, "resample": 2}).save_pretrained(tmp_path / "hub")
    net = regard.load(tmp_path / "hub")
    from regard.training.checkpoint_writer import save_checkpoint

    state = {"model_state": model_state(net), "progress": {"best_step": 1, "scores": {}}}
    save_checkpoint(tmp_path / "run" / "checkpoints", 1, {"model": dict(net.state_dict())}, state, protect=[])
    assert load(tmp_path / "run").card == net.card
    assert (net.card.squash, net.card.interpolation, net.card.crop_rounding) == (True, "bilinear", "down")
