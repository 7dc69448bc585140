"""Explanations: maps against formulas in plain loops and eager attention, and at the right places of the image."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from PIL import Image
from torch.overrides import TorchFunctionMode

import regard
from detr_cases import SMALL, randomized
from refusals import refused
from regard.attention.augmented_conv import AugmentedConv2d
from regard.attention.relative import relative_logits
from regard.cli import app
from regard.data.samples import ClassSample
from regard.data.transforms.classification import Evaluation
from regard.errors import ConfigError, MachineError
from regard.explanations.detr import covered, relevance
from regard.explanations.explain import Explanation, SaliencyMap, explain_queries
from regard.explanations.recording import AttentionRecorder
from regard.explanations.vit import rollout
from regard.models.build import build, create
from regard.models.configs.vit import ViTConfig
from regard.models.token_merging import merge_tokens
from regard.structures.categories import Category, ModelCard
from regard.structures.image_batch import ImageBatch
from run_files import small_detector, write_run

PHOTO = np.random.default_rng(0).integers(0, 255, (48, 80, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def vit():
    torch.manual_seed(0)
    net = create("deit_nano_distilled_patch4_32", num_classes=4).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return net


@pytest.fixture(scope="module")
def detr():
    net = randomized(SMALL)
    with torch.no_grad():
        net.query_embed.weight.mul_(30)
        net.class_embed.bias[-1] = -3  # objects everywhere
    names = tuple(Category(i, f"class{i}") for i in range(SMALL.num_classes))
    net.card = ModelCard("detr_small", names, short_side=64, max_size=128)
    return net


class Eager(TorchFunctionMode):
    """Attention as softmax and sums, its weights kept with their gradients."""

    def __init__(self):
        super().__init__()
        self.weights = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is not F.scaled_dot_product_attention:
            return function(*args, **(kwargs or {}))
        query, key, value = args[:3]
        mask = (kwargs or {}).get("attn_mask")
        logits = query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5
        if mask is not None:
            logits = logits.masked_fill(~mask, -torch.inf)
        weights = logits.softmax(-1)
        weights.retain_grad()
        self.weights.append(weights)
        return weights @ value

    def gradient_weighted(self):
        return [(a * a.grad).clamp(min=0).mean(1)[0].detach() for a in self.weights]


def prepared(net):
    """The photo as the classifier sees it."""
    image = torch.from_numpy(PHOTO).permute(2, 0, 1)
    seen = Evaluation(net.card.short_side, net.card.crop_pct)(ClassSample(image, 0)).image
    return ImageBatch.from_images([seen]).normalized().pixels


def test_rollout_is_the_formula():
    weights = [torch.rand(1, 2, 5, 5, dtype=torch.float64).softmax(-1) for _ in range(3)]
    expected = np.eye(5)
    for block in weights:
        mixed = np.zeros((5, 5))
        for i in range(5):
            for j in range(5):
                mixed[i, j] = 0.5 * (float(block[0, 0, i, j]) + float(block[0, 1, i, j])) / 2 + 0.5 * (i == j)
        expected = mixed @ expected
    found = rollout(weights)[0]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)
    torch.testing.assert_close(found.sum(-1), torch.ones(5, dtype=torch.float64))


def test_maps_of_heads_are_the_attention_of_the_model(vit):
    found = regard.explain(vit, PHOTO, "heads", layer=1)
    eager = Eager()
    with eager:
        logits = vit(prepared(vit).requires_grad_())
    torch.testing.assert_close(logits, vit(prepared(vit)))  # fused
    for saliency, row in zip(found.maps, eager.weights[1][0, :, 0], strict=True):
        torch.testing.assert_close(saliency.weights.flatten(), row[2:].detach(), atol=1e-6, rtol=1e-5)
        assert abs((saliency.weights.sum() + row[:2].sum()).item() - 1) < 1e-5
    of_tokens = regard.explain(vit, PHOTO, "tokens")
    assert len(of_tokens) == 2 * len(vit.blocks)
    expected = eager.weights[0][0, :, 1].mean(0)[2:].detach()
    torch.testing.assert_close(of_tokens.maps[1].weights.flatten(), expected, atol=1e-6, rtol=1e-5)
    both = vit.attention(torch.cat((torch.randn(1, 3, 32, 32), prepared(vit))))
    torch.testing.assert_close(both[1][1], eager.weights[1][0].detach(), atol=1e-6, rtol=1e-5)  # not of its neighbour


def test_a_patch_looks_from_where_it_is(vit):
    """The image is squeezed to a square of 8 x 8 patches: its right end, upper third."""
    found = regard.explain(vit, PHOTO, "patch", point=(79.0, 16.5))
    row = 2 + 2 * 8 + 7
    expected = vit.attention(prepared(vit))[0][0].mean(0)[row, 2:]
    torch.testing.assert_close(found.maps[0].weights.flatten(), expected.detach())
    assert found.maps[0].extent == (0, 0, 80, 48) and found.maps[0].point == (79.0, 16.5)


def test_relevance_of_vit_is_chefers_rule(vit):
    eager = Eager()
    with eager:
        logits = vit(prepared(vit).requires_grad_())
    logits[0, logits[0].argmax()].backward()
    expected = torch.eye(66)
    for weighted in eager.gradient_weighted():
        update = torch.zeros(66, 66)
        update[: len(weighted)] = weighted @ expected
        expected = expected + update
    found = regard.explain(vit, PHOTO, "relevance")
    for token, saliency in enumerate(found.maps):
        torch.testing.assert_close(saliency.weights.flatten(), expected[token, 2:], atol=1e-6, rtol=1e-4)
        assert saliency.weights.max() > 0


@pytest.mark.parametrize("size", [(90, 240), (240, 90), (64, 64)])
@pytest.mark.parametrize("ratio", [0.875, 0.5, None])
def test_extent_is_what_a_classifier_sees(size, ratio):
    """Pixels that tell their own place."""
    height, width = size
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    image = torch.stack((columns, rows, rows)).to(torch.uint8)
    resize = Evaluation(32, ratio)
    seen = resize(ClassSample(image, 0)).image.float()
    x0, y0, x1, y1 = resize.extent(height, width)
    middles = torch.arange(32) + 0.5
    for found, first, last in ((seen[0, 16], x0, x1), (seen[1, :, 16], y0, y1)):
        expected = first + middles * (last - first) / 32 - 0.5
        assert (found[3:-3] - expected[3:-3]).abs().max() < 1.0


def test_maps_of_detr_are_its_attention(detr):
    image = torch.from_numpy(PHOTO).permute(2, 0, 1)
    found = regard.explain(detr, PHOTO, "decoder", threshold=0.0)
    assert 0 < len(found) <= SMALL.num_queries
    eager = Eager()
    batch = ImageBatch.from_images([_resized(detr, image)]).normalized()
    with eager:
        output = detr(ImageBatch(batch.pixels.requires_grad_(), batch.sizes))
    order = output.logits[0].softmax(-1)[:, :-1].max(-1).values.argsort(descending=True)
    for saliency, query in zip(found.maps, order.tolist(), strict=False):
        expected = eager.weights[-1][0].mean(0)[query].detach()
        torch.testing.assert_close(saliency.weights.flatten(), expected, atol=1e-6, rtol=1e-5)
        assert abs(saliency.weights.sum().item() - 1) < 1e-5
    one = regard.explain(detr, PHOTO, "heads", threshold=0.0)
    torch.testing.assert_close(one.maps[2].weights.flatten(), eager.weights[-1][0, 2, order[0]].detach())
    encoder = regard.explain(detr, PHOTO, "encoder", point=(70.0, 3.0), layer=0, head=1)
    w = encoder.maps[0].weights.shape[1]
    cell = int(3 / 48 * 64 / 8) * w + int(70 / 80 * 106 / 8)
    torch.testing.assert_close(encoder.maps[0].weights.flatten(), eager.weights[0][0, 1, cell].detach())
    layers = regard.explain(detr, PHOTO, "layers", threshold=0.0)
    assert len(layers) == SMALL.decoder_layers and all(len(saliency.boxes) == len(found) for saliency in layers.maps)


def _resized(net, image):
    from regard.data.samples import Sample
    from regard.data.transforms.detection import EvaluationResize

    return EvaluationResize(net.card.short_side, net.card.max_size)(Sample(image)).image


def test_cells_cover_the_pixels_that_they_come_from(detr):
    """64 x 106 pixels at a stride of 8 are 8 x 14 cells: to the right they reach past the image."""
    assert covered(detr, (8, 14), (64, 106), (48, 80)) == pytest.approx((0, 0, 14 * 8 * 80 / 106, 48))


@pytest.mark.parametrize("encoder_layers", [0, 2])
def test_relevance_of_detr_is_chefers_rule(encoder_layers):
    net = randomized(dataclasses.replace(SMALL, encoder_layers=encoder_layers))
    batch = ImageBatch.from_images([torch.randn(3, 40, 56)])
    eager = Eager()
    with eager:
        output = net(ImageBatch(batch.pixels.clone().requires_grad_(), batch.sizes))
    output.logits[0, 1, 2].backward()
    weighted = eager.gradient_weighted()
    n, q = 5 * 7, SMALL.num_queries
    ii, qq, qi = torch.eye(n), torch.eye(q), torch.zeros(q, n)
    for one in weighted[:encoder_layers]:
        ii = ii + one @ ii
    for own, cross in zip(weighted[encoder_layers::2], weighted[encoder_layers + 1 :: 2], strict=True):
        qq, qi = qq + own @ qq, qi + own @ qi
        rows = [r - torch.eye(len(r)) for r in (qq, ii)]
        sums = [r.sum(-1, keepdim=True) for r in rows]
        normal = [
            torch.eye(len(r)) + torch.where(s > 0, r / s.clamp(min=1e-12), 0.0) for r, s in zip(rows, sums, strict=True)
        ]
        qi = qi + normal[0].T @ cross @ normal[1]
    with AttentionRecorder() as recorder:
        again = net(ImageBatch(batch.pixels.clone().requires_grad_(), batch.sizes))
    torch.testing.assert_close(again.logits, output.logits)
    found = relevance(again.logits[0, 1, 2], recorder.calls, encoder_layers)
    scale = qi.abs().max()
    assert scale > 0
    torch.testing.assert_close(found / scale, qi / scale, atol=1e-4, rtol=1e-3)


def test_augmented_networks(monkeypatch):
    torch.manual_seed(0)
    net = create("aa_resnet20", num_classes=4).eval()
    found = regard.explain(net, PHOTO)
    assert all(abs(saliency.weights.sum().item() - 1) < 1e-5 for saliency in found.maps)
    layers = [m for m in net.modules() if isinstance(m, AugmentedConv2d)]
    assert len(found) == len(layers)
    seen = {}
    for layer in layers:
        layer.register_forward_pre_hook(lambda module, args: seen.setdefault(module, args[0]))
    net(prepared(net))
    weights = layers[0].attention_logits(seen[layers[0]])[0].softmax(-1)
    cell = 8 * 16 + 8
    torch.testing.assert_close(found.maps[0].weights.flatten(), weights.mean(0)[cell].detach())
    heads = regard.explain(net, PHOTO, "heads", layer=0)
    count = layers[0].num_heads
    assert len(heads) == 2 * count and heads.columns == count
    torch.testing.assert_close(heads.maps[1].weights.flatten(), weights[1, cell].detach())
    assert (heads.maps[1].weights - heads.maps[count + 1].weights).abs().max() > 1e-4  # without relative logits

    kept = []

    def eager(query, key, value, position, method):
        weights = relative_logits(query, key, position).softmax(-1)
        weights.retain_grad()
        kept.append(weights)
        return (weights @ value.flatten(2, 3)).unflatten(2, query.shape[2:4])

    relevant = regard.explain(net, PHOTO, "relevance")
    monkeypatch.setattr("regard.attention.augmented_conv.relative_attention", eager)
    logits = net(prepared(net).requires_grad_())
    logits[0, logits[0].argmax()].backward()
    for saliency, weights in zip(relevant.maps, kept, strict=True):
        expected = (weights * weights.grad).clamp(min=0).mean(1)[0].sum(0).detach()
        torch.testing.assert_close(saliency.weights.flatten() / expected.max(), expected / expected.max())


def test_weights_on_pixels():
    """Cells of 10 x 10 pixels that begin left of the image; outside of them there is nothing."""
    saliency = SaliencyMap(torch.tensor([[1.0, 5.0]]), "", (-5.0, 0.0, 15.0, 10.0))
    found = saliency.on_pixels((12, 20))
    torch.testing.assert_close(found[5, [0, 4, 9, 14]], torch.tensor([1.2, 2.8, 4.8, 5.0]))
    assert (found[10:] == 0).all() and (found[:, 15:] == 0).all()


def test_arrays_and_pictures(vit, tmp_path):
    Image.fromarray(PHOTO).save(tmp_path / "photo.png")
    found = regard.explain(vit, tmp_path / "photo.png")
    assert repr(found) == f"Explanation(rollout, 2 maps; {tmp_path / 'photo.png'})"
    found.save(tmp_path / "new" / "maps.NPZ")
    with refused(MachineError, tmp_path / "photo.png" / "maps.npz"):
        found.save(tmp_path / "photo.png" / "maps.npz")
    with np.load(tmp_path / "new" / "maps.NPZ") as arrays:
        assert set(arrays) == {"weights", "extents", "points", "titles", "size"}
        assert np.array_equal(arrays["weights"][1], found.maps[1].weights.numpy())
        assert arrays["titles"].tolist() == ["rollout, class token", "rollout, distillation token"]
        assert arrays["size"].tolist() == [48, 80] and np.isnan(arrays["points"]).all()
    found.save(tmp_path / "maps.png")
    with Image.open(tmp_path / "maps.png") as picture:
        assert picture.size == found.plot().size and picture.width > 2 * 240
    with refused(ConfigError, "decoder maps", "threshold", code="C09"):
        Explanation("decoder", (), 4, Image.fromarray(PHOTO)).plot()


@pytest.mark.parametrize("what", ["decoder", "heads", "relevance"])
def test_nothing_above_the_threshold_tells_the_best(detr, what):
    """The remedy works when it is pasted."""
    best = regard.predict(detr, PHOTO, threshold=0.0)[0]
    found = regard.explain(detr, PHOTO, what, threshold=1.0)
    assert len(found) == 0
    with refused(ConfigError, "nothing above 1.00", f"{best['score']:.2f} {best['label']}", code="C09") as caught:
        found.plot()
    lower = float(caught.value.remedy.split("--threshold ")[1])
    assert lower > best["score"] - 0.02 and len(regard.explain(detr, PHOTO, what, threshold=lower)) >= 1


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"what": "rolout"}, "did you mean 'rollout'"),
        ({"what": ""}, "unknown kind of explanation"),
        ({"what": "rollout", "layer": 1}, "layer does not apply to rollout of deit_nano_distilled_patch4_32"),
        ({"what": "heads", "layer": 9}, "layer=9, there are 4: 0 to 3"),
        ({"what": "tokens", "head": -3}, "head=-3, there are 2"),
        ({"what": "patch", "point": (80.0, 2.0)}, "outside the area that the model sees: x 0 to 80 and y 0 to 48"),
        ({"threshold": 2.0}, "threshold=2.0, expected 0 to 1"),
        ({"threshold": 0.5}, "threshold is for the detections of a DETR"),
        ({"image_size": 0}, "image_size=0, expected at least 1"),
    ],
)
def test_what_there_is_not(vit, options, says):
    with pytest.raises(ConfigError) as caught:
        regard.explain(vit, PHOTO, **options)
    assert says in caught.value.line


def test_relevance_inside_code_without_gradients(vit, detr):
    """And it leaves none behind."""
    for net in (vit, detr):
        net.zero_grad()
    options = ((vit, {}), (detr, {"threshold": 0.0}))
    expected = [regard.explain(net, PHOTO, "relevance", **given) for net, given in options]
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            found = [regard.explain(net, PHOTO, "relevance", **given) for net, given in options]
        for one, other in zip(found, expected, strict=True):
            assert all(torch.equal(a.weights, b.weights) for a, b in zip(one.maps, other.maps, strict=True))
    assert all(parameter.grad is None for net in (vit, detr) for parameter in net.parameters())


def test_a_shallow_and_a_merging_transformer():
    net = build(ViTConfig(num_classes=3, depth=1, embed_dim=32, num_heads=2, patch_size=8, image_size=32), "shallow")
    assert regard.explain(net, PHOTO, "relevance").maps[0].weights.shape == (4, 4)
    for what in ("rollout", "relevance"):
        with refused(ConfigError, "merge_tokens", code="C09"):
            regard.explain(merge_tokens(net, 2), PHOTO, what)


def test_any_augmented_network():
    torch.manual_seed(0)
    net = regard.augment(torchvision.models.resnet18(num_classes=3), image_size=64, quiet=True)
    found = regard.explain(net, PHOTO, image_size=64)
    names = [name for name, module in net.named_modules() if isinstance(module, AugmentedConv2d)]
    assert [saliency.title for saliency in found.maps] == names
    assert regard.explain(net, PHOTO, "relevance", image_size=64).maps[0].title.split("for ")[1].startswith("class ")


def test_models_without_such_attention(detr):
    with refused(ConfigError, "resnet20", "regard.augment", code="C09"):
        regard.explain(create("resnet20", num_classes=3), PHOTO)
    with refused(ConfigError, "detr_tiny", "encoder", code="C09"):
        regard.explain(create("detr_tiny", num_classes=3), PHOTO, "encoder")
    with refused(ConfigError, "-500 0", "80x48", code="C03"):
        regard.explain(detr, PHOTO, "heads", point=(-500.0, 0.0), threshold=0.0)
    assert len(regard.explain(detr, PHOTO, threshold=1.0)) == 0


def test_places_of_queries(detr, tmp_path):
    rng = np.random.default_rng(1)
    for name, size in (("a.png", (40, 60, 3)), ("b.png", (64, 48, 3))):
        Image.fromarray(rng.integers(0, 255, size, dtype=np.uint8)).save(tmp_path / name)
    found = explain_queries(detr, tmp_path)
    assert found.boxes.shape == (2, SMALL.num_queries, 4)
    image = torch.from_numpy(np.array(Image.open(tmp_path / "b.png"))).permute(2, 0, 1)
    with torch.no_grad():
        alone = detr(ImageBatch.from_images([_resized(detr, image)]).normalized())
    torch.testing.assert_close(found.boxes[1], alone.boxes[0])
    with Image.open(found.save(tmp_path / "new" / "places.png")) as picture:
        assert picture.width > 1000
    with refused(ConfigError, "resnet20", "queries", code="C09"):
        explain_queries(create("resnet20", num_classes=3), tmp_path)


def test_from_the_command_line(tmp_path, monkeypatch, capsys):
    """A run in, a picture out; nothing is written over."""
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "run", small_detector(), {1: 0.5})
    Image.fromarray(PHOTO).save("photo.png")
    app(["explain", "run", "photo.png", "--threshold", "0", "--what", "layers"], result_action="return_value")
    app(["explain", "run", ".", "--output", "q.png"], result_action="return_value")
    assert capsys.readouterr().out.split() == ["explanations/photo-layers.png", "q.png"]
    assert (tmp_path / "explanations" / "photo-layers.png").stat().st_size > 1000
    app(["explain", "run", "photo.png", "--threshold", "0", "--what", "layers"], result_action="return_value")
    app(["explain", "run", ".", "--output", "q.npz"], result_action="return_value")
    assert capsys.readouterr().out.split() == ["explanations/photo-layers-2.png", "q.npz"]
    with np.load("q.npz") as arrays:
        assert arrays["boxes"].ndim == 3 and arrays["boxes"].shape[2] == 4
    for words, code in (
        (["photo.png", "--output", "photo.png"], "C11"),
        (["photo.png", "--output", "maps"], "C09"),
        ([".", "--layer", "1"], "C09"),
    ):
        with pytest.raises(ConfigError) as caught:
            app(["explain", "run", *words], result_action="return_value")
        assert caught.value.code == code
