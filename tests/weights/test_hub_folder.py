"""Folders of the Hugging Face hub: their vision transformers see images as those who wrote them say."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

import regard
from refusals import refused
from regard.errors import CheckpointError
from regard.models.vit import VisionTransformer
from regard.structures.image_batch import ImageBatch


def randomized(net):
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_(std=0.2)
    return net.eval()


def picture(side: int = 32) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8))


def seen(image: Image.Image) -> torch.Tensor:
    return ImageBatch.from_images([torch.from_numpy(np.array(image)).permute(2, 0, 1)]).normalized().pixels


@pytest.fixture(scope="module")
def of_transformers(tmp_path_factory):
    """A folder as transformers writes it, its model, and what that answers to `picture`."""
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=128, num_hidden_layers=2, num_attention_heads=2, intermediate_size=512, image_size=32, patch_size=8,
        id2label={0: "cat", 1: "dog", 2: "owl"}, label2id={"cat": 0, "dog": 1, "owl": 2}, attn_implementation="eager",
    )  # fmt: skip
    net = randomized(transformers.ViTForImageClassification(config))
    processor = transformers.ViTImageProcessor(size={"height": 32, "width": 32}, image_std=[0.5, 0.4, 0.3])
    folder = tmp_path_factory.mktemp("hub") / "vit"
    net.save_pretrained(folder)
    processor.save_pretrained(folder)
    with torch.no_grad():
        return folder, net(**processor(picture(), return_tensors="pt")).logits


def test_a_folder_of_transformers(of_transformers):
    folder, expected = of_transformers
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        net = regard.load(folder)
    assert isinstance(net, VisionTransformer)
    assert [category.name for category in net.card.categories] == ["cat", "dog", "owl"]
    assert net.card.crop_pct is None  # squeezed to a square, as its processor does
    with torch.no_grad():
        torch.testing.assert_close(net(seen(picture())), expected, rtol=1e-5, atol=1e-5)
    found = regard.predict(net, picture())
    torch.testing.assert_close(found.probabilities, expected[0].softmax(dim=0), rtol=1e-4, atol=1e-5)


def test_the_file_alone_sees_what_all_our_models_see(of_transformers, tmp_path):
    folder, expected = of_transformers
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    net = regard.load(tmp_path / "model.safetensors")
    with torch.no_grad():
        assert (net(seen(picture())) - expected).abs().max() > 0.01
    assert [category.name for category in net.card.categories] == ["0", "1", "2"]


def test_a_folder_of_timm(tmp_path):
    timm = pytest.importorskip("timm")
    theirs = randomized(
        timm.create_model(
            "vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=128, num_heads=2, depth=2, num_classes=3
        )
    )
    timm.models.save_for_hf(theirs, str(tmp_path), model_config={"label_names": ["cat", "dog", "owl"]})
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["pretrained_cfg"]["mean"] == [0.5, 0.5, 0.5]
    net = regard.load(tmp_path)
    assert net.card.crop_pct == config["pretrained_cfg"]["crop_pct"] == 0.9
    pixels = torch.from_numpy(np.array(picture())).permute(2, 0, 1)[None] / 255
    with torch.no_grad():
        torch.testing.assert_close(net(seen(picture())), theirs((pixels - 0.5) / 0.5), rtol=1e-5, atol=1e-5)


def test_a_vit_alone_says_that_it_may_want_another_normalisation(tmp_path):
    net = regard.create("vit_tiny_patch16_224", num_classes=2)
    torch.save(net.state_dict(), tmp_path / "mine.pth")
    with pytest.warns(UserWarning, match=r"ImageNet.* 0\.5.*config\.json"):
        regard.load(tmp_path / "mine.pth")


@pytest.mark.parametrize(
    ("content", "says"),
    [("{", "JSON"), ("[]", "JSON object"),
     ('{"image_mean": [0.5], "image_std": [1, 1, 1]}', "[0.5]"),
     ('{"image_mean": [0, 0, 0], "image_std": [0, 1, 1]}', "[0, 1, 1]")],
)  # fmt: skip
def test_broken_descriptions(of_transformers, tmp_path, content, says):
    folder, _ = of_transformers
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    (tmp_path / "preprocessor_config.json").write_text(content)
    with refused(CheckpointError, says, "preprocessor_config.json", code="K06"):
        regard.load(tmp_path)


def test_the_number_of_heads_is_that_of_the_folder(of_transformers, tmp_path):
    """192 wide and 6 heads: without the JSON file it would be a tiny one with 3."""
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=192, num_hidden_layers=2, num_attention_heads=6, intermediate_size=768, image_size=32, patch_size=8,
        num_labels=3, attn_implementation="eager",
    )  # fmt: skip
    theirs = randomized(transformers.ViTForImageClassification(config))
    theirs.save_pretrained(tmp_path)
    net = regard.load(tmp_path)
    assert net.config.num_heads == 6
    with torch.no_grad():
        torch.testing.assert_close(net(seen(picture())), theirs(seen(picture())).logits, rtol=1e-5, atol=1e-5)
    content = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**content, "hidden_act": "gelu_new"}))
    with refused(CheckpointError, "hidden_act", "'gelu_new'", "config.json", code="K07"):
        regard.load(tmp_path)
