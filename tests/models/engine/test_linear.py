"""Linear layers by oneDNN: the numbers of torch's, for all shapes and precisions, and only where they are faster."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from regard import optimize
from regard.models.build import Model, build, create
from regard.models.configs.vit import ViTConfig
from regard.models.engine import engine_of, engines, linear
from regard.models.engine.linear import OneDNNLinear, products_are_slow, replace_linear_layers
from run_files import small_detector

SLOW = pytest.mark.parametrize("slow", [True, False])


def small_transformer() -> Model:
    return build(ViTConfig(num_classes=5, image_size=16, patch_size=4, embed_dim=16, num_heads=2, depth=2), "nano")


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(7,), (1, 7), (5, 7), (2, 3, 7), (2, 1, 3, 7), (0, 7), (2, 0, 7)])
def test_the_numbers_are_those_of_torch(shape, bias):
    torch.manual_seed(0)
    layer = nn.Linear(7, 4, bias=bias)
    x = torch.randn(shape)
    with torch.no_grad():
        found, expected = OneDNNLinear(layer)(x), layer(x)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_what_does_not_lie_in_one_piece():
    layer, x = nn.Linear(6, 4), torch.randn(3, 8, 6, 2)
    with torch.no_grad():
        for view in (x[..., 0], x[:, ::2, :, 1], x[..., 0].transpose(0, 1)):
            torch.testing.assert_close(OneDNNLinear(layer)(view), layer(view), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions_are_torchs(dtype):
    layer = nn.Linear(6, 4).to(dtype)
    x = torch.randn(3, 6, dtype=dtype)
    assert torch.equal(OneDNNLinear(layer)(x), layer(x))


def test_only_plain_linear_layers_are_replaced():
    net = nn.Sequential(nn.Linear(4, 4), nn.MultiheadAttention(4, 2), nn.Sequential(nn.Linear(4, 2)))
    replace_linear_layers(net)
    kinds = [type(module) for module in net.modules() if isinstance(module, nn.Linear)]
    assert kinds[0] is kinds[-1] is OneDNNLinear and kinds[1] is not OneDNNLinear


@pytest.mark.parametrize(
    ("text", "expected"), [("vendor_id\t: AuthenticAMD\n", True), ("vendor_id\t: GenuineIntel\n", False), (None, False)]
)
def test_the_processor_decides(tmp_path, monkeypatch, text, expected):
    file = tmp_path / "cpuinfo"
    if text is not None:
        file.write_text(text)
    monkeypatch.setattr(linear, "_PROCESSOR", file)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    products_are_slow.cache_clear()
    try:
        assert products_are_slow() == expected
    finally:
        products_are_slow.cache_clear()


@SLOW
@pytest.mark.parametrize("make", [small_transformer, small_detector, lambda: create("resnet20")])
def test_engines_agree_with_the_model(monkeypatch, make, slow):
    monkeypatch.setattr(engines, "products_are_slow", lambda: slow)
    torch.manual_seed(0)
    net = make().eval()
    engine = optimize(net)
    assert any(isinstance(module, OneDNNLinear) for module in engine.modules()) == slow
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected, found = net(images), engine(images)
    for name in ("logits", "boxes") if hasattr(expected, "boxes") else ("",):
        one, other = (getattr(each, name) if name else each for each in (found, expected))
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


@SLOW
def test_a_vision_transformer_has_an_engine_where_it_is_faster(monkeypatch, slow):
    monkeypatch.setattr(engines, "products_are_slow", lambda: slow)
    net = small_transformer().eval()
    assert (engine_of(net) is not net) == slow


@pytest.mark.own_process  # torch's compiler imports setuptools, which fails where distutils was imported before
def test_compiled_code_calls_the_layer_as_one_piece():
    """With the default backend, whose code for oneDNN's product wants weights that are constants."""
    torch.manual_seed(0)
    net = nn.Sequential(OneDNNLinear(nn.Linear(6, 8)), nn.ReLU(), OneDNNLinear(nn.Linear(8, 3, bias=False)))
    compiled = torch.compile(net)
    with torch.no_grad():
        for shape in ((5, 6), (2, 3, 6)):
            x = torch.randn(shape)
            torch.testing.assert_close(compiled(x), net(x), rtol=1e-5, atol=1e-6)
