"""Weight files of all kinds, good, damaged and hostile. K01 to K15 are the codes of the error lines."""

import argparse
import json
import os
import pickle
import re
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from regard.errors import CheckpointError
from regard.weights.state_dict import load_exactly, read_weights

FORMATS = ["safetensors", "zip", "legacy"]


class Net(nn.Module):
    """Names as in DETR and DeiT: a body, a position embedding, batch norm and a class head."""

    def __init__(self, classes: int = 5, tokens: int = 7) -> None:
        super().__init__()
        self.pos_embed = nn.Parameter(torch.randn(1, tokens, 4))
        self.body = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
        self.class_embed = nn.Linear(4, classes + 1)


class Bomb:
    """Makes a file when it is unpickled by an unsafe reader."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.proof}",)


class Evaluates(Bomb):
    def __reduce__(self) -> tuple:
        return eval, (f"open({str(self.proof)!r}, 'w')",)


def weights(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "a.weight": torch.randn(3, 40, generator=generator),
        "a.bias": torch.randn(40, generator=generator).half(),
        "count": torch.tensor(12),
    }


def save(path: Path, content: object, form: str = "zip") -> Path:
    if form == "safetensors":
        save_file(content, path, {"epoch": "3"})
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "zip")
    return path


def name_of(form: str) -> str:
    return "w.safetensors" if form == "safetensors" else "w.pth"


def refused(path: Path, code: str) -> str:
    """The error line of reading `path`, after what holds for all of them."""
    with pytest.raises(CheckpointError) as caught:
        read_weights(path)
    line = caught.value.line
    assert caught.value.code == code, line
    assert line.isprintable() and str(path) in line and len(line) < 500 + len(str(path))
    assert "weights_only=False" not in line
    return line


def equal(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return sorted(left) == sorted(right) and all(
        left[name].dtype == right[name].dtype and torch.equal(left[name], right[name]) for name in left
    )


@pytest.mark.parametrize("form", FORMATS)
def test_reads_what_was_written(tmp_path, form):
    read = read_weights(save(tmp_path / name_of(form), weights(), form))
    assert equal(read.tensors, weights())
    assert read.metadata == ({"epoch": "3"} if form == "safetensors" else {})
    assert not any(tensor.requires_grad for tensor in read.tensors.values())


def test_content_decides_and_not_the_suffix(tmp_path):
    save(tmp_path / "w.safetensors", weights(), "safetensors")
    assert equal(read_weights((tmp_path / "w.safetensors").rename(tmp_path / "w.bin")).tensors, weights())
    save(tmp_path / "w.pth", weights())
    assert "rename it to .pth" in refused((tmp_path / "w.pth").rename(tmp_path / "w.safetensors"), "K06")


@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_training_checkpoint_of_the_authors(tmp_path, form):
    """`args` is an argparse.Namespace, the reason why a plain weights_only load of these files fails."""
    net = Net()
    optimizer = torch.optim.AdamW(net.parameters())
    net.class_embed(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    arguments = argparse.Namespace(lr=1e-4, backbone="resnet50", frozen_weights=None, betas=[0.9, 0.99])
    content = {"model": net.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 49, "args": arguments}
    path = save(tmp_path / "checkpoint.pth", content, form)
    before = set(torch.serialization.get_safe_globals())
    read = read_weights(path)
    assert equal(read.tensors, net.state_dict())
    assert read.metadata == {"epoch": 49, "args": vars(arguments)}
    assert set(torch.serialization.get_safe_globals()) == before
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)


def test_namespace_allowed_by_the_user_stays_allowed(tmp_path):
    path = save(tmp_path / "c.pth", {"model": weights(), "args": argparse.Namespace(lr=1)})
    with torch.serialization.safe_globals([argparse.Namespace]):
        read_weights(path)
        assert argparse.Namespace in torch.serialization.get_safe_globals()


@pytest.mark.parametrize(
    "wrap",
    [
        lambda w, o: w,
        lambda w, o: OrderedDict(w),
        lambda w, o: {"model": w},
        lambda w, o: {"state_dict": w, "arch": "resnet50"},
        lambda w, o: {"model": "deit_tiny", "state_dict": w},
        lambda w, o: {"model": {"depth": 3}, "state_dict": w},
        lambda w, o: {"model_ema": w, "epoch": 3},
        lambda w, o: {"model_ema": o, "model": w},
        lambda w, o: {"ema": {"module": w, "updates": 7}},
        lambda w, o: {"model": {name: nn.Parameter(t, t.is_floating_point()) for name, t in w.items()}},
    ],
)
def test_k10_wrappers(tmp_path, wrap):
    assert equal(read_weights(save(tmp_path / "w.pth", wrap(weights(), weights(1)))).tensors, weights())


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "module.module."]
)
def test_k10_prefixes(tmp_path, form, prefix):
    named = {prefix + name: tensor for name, tensor in weights().items()}
    assert equal(read_weights(save(tmp_path / name_of(form), named, form)).tensors, weights())


def test_k10_prefix_of_a_compiled_part_and_of_an_averaged_model(tmp_path):
    net = Net()
    inner = {name.replace("body.", "body._orig_mod."): t for name, t in net.state_dict().items()}
    assert equal(read_weights(save(tmp_path / "a.pth", inner)).tensors, net.state_dict())
    averaged = torch.optim.swa_utils.AveragedModel(net).state_dict()
    assert "n_averaged" in averaged
    assert equal(read_weights(save(tmp_path / "b.pth", {"model_ema": averaged})).tensors, net.state_dict())


def test_k10_a_child_called_module_keeps_its_name(tmp_path):
    named = {"module.a": torch.ones(2), "b": torch.ones(2)}
    assert equal(read_weights(save(tmp_path / "w.pth", named)).tensors, named)


def test_k10_two_tensors_of_one_name(tmp_path):
    refused(save(tmp_path / "w.pth", {"a._orig_mod.b": torch.ones(2), "a.b": torch.zeros(2)}), "K10")


def test_metadata_keeps_plain_values_only(tmp_path):
    nested: list = [1.0] * 900
    for _ in range(6):
        nested = [nested] * 900  # Written once, 900**7 values when walked through.
    content = {
        "model": weights(),
        "epoch": 3,
        "nested": nested,
        "score": torch.ones(1),
        "best": {"ap": 0.4, "x": {1: torch.ones(1)}},
    }
    read = read_weights(save(tmp_path / "w.pth", content))
    assert read.metadata == {"epoch": 3, "best": {"ap": 0.4}}


def test_many_tensors_without_a_wrapper(tmp_path):
    many = {f"t{i}": torch.tensor(float(i)) for i in range(1500)}
    read = read_weights(save(tmp_path / "w.pth", many))
    assert equal(read.tensors, many) and read.metadata == {}


def test_k01_missing_path(tmp_path):
    save(tmp_path / "detr-r50.pth", weights())
    assert f"did you mean {tmp_path / 'detr-r50.pth'}?" in refused(tmp_path / "detr_r50.pth", "K01")
    assert "check the path" in refused(tmp_path / "none" / "w.pth", "K01")
    refused(tmp_path / ("x" * 300), "K01")


def test_k01_pipe_does_not_wait(tmp_path):
    os.mkfifo(tmp_path / "w.pth")
    assert "not an ordinary file" in refused(tmp_path / "w.pth", "K01")


def test_k02_directory(tmp_path):
    assert "name a weights file" in refused(tmp_path, "K02")
    save(tmp_path / "w.pth", weights())
    assert "name the file in it: w.pth" in refused(tmp_path, "K02")


@pytest.mark.parametrize("form", FORMATS)
def test_k03_empty(tmp_path, form):
    (tmp_path / name_of(form)).touch()
    assert "0 bytes" in refused(tmp_path / name_of(form), "K03")


@pytest.mark.parametrize("form", FORMATS)
def test_k04_cut_anywhere(tmp_path, form):
    path = save(tmp_path / name_of(form), weights(), form)
    data = path.read_bytes()
    for length in [5, 9, 30, 64, *range(100, len(data), 61), len(data) // 2, len(data) - 1]:
        path.write_bytes(data[:length])
        with pytest.raises(CheckpointError) as caught:
            read_weights(path)
        expected = {"K04"} if length >= 30 or form == "safetensors" else {"K04", "K12"}
        assert caught.value.code in expected, (length, caught.value.line)
    path.write_bytes(data)
    assert equal(read_weights(path).tensors, weights())


def test_k05_any_flipped_bit_of_a_torch_zip_is_found_or_harmless(tmp_path):
    path = save(tmp_path / "w.pth", weights())
    data = path.read_bytes()
    found = 0
    for place in range(0, len(data), 7):
        path.write_bytes(data[:place] + bytes([data[place] ^ (1 << place % 8)]) + data[place + 1 :])
        try:
            assert equal(read_weights(path).tensors, weights()), place
        except CheckpointError:
            found += 1
    assert found > len(data) / 7 / 3
    with zipfile.ZipFile(save(path, weights())) as archive:
        record = archive.getinfo("w/data/0")
    flipped = bytearray(path.read_bytes())
    flipped[flipped.index(weights()["a.weight"].numpy().tobytes()) + record.file_size // 2] ^= 4
    path.write_bytes(flipped)
    torch.load(path, weights_only=True)  # torch itself does not look at the checksum.
    assert "w/data/0" in refused(path, "K05")


def test_k05_file_that_was_saved_without_checksums(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        save(tmp_path / "w.pth", weights())
    finally:
        torch.serialization.set_crc32_options(True)
    assert equal(read_weights(tmp_path / "w.pth").tensors, weights())


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 166618694\n", "run: git lfs pull"),
        (b"\n<!DOCTYPE html><html><body>Not found</body></html>", "web page"),
        (b"<?xml version='1.0'?><Error>AccessDenied</Error>", "web page"),
        (b'{"error": "Repository not found"}' + b" " * 20, "text"),
        (b"\x89HDF\r\n\x1a\n" + bytes(100), "unknown format"),
    ],
)
def test_k06_other_content(tmp_path, suffix, content, text):
    (tmp_path / f"w{suffix}").write_bytes(content)
    assert text in refused(tmp_path / f"w{suffix}", "K06")


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"epoch": 3, "optimizer": {"state": {}}},
        {"model": {}},
        [torch.ones(2)],
        torch.ones(2),
        3,
        {"a": torch.empty(3, device="meta")},
        {"a": torch.ones(3, dtype=torch.complex64)},
    ],
)
def test_k06_torch_file_without_usable_weights(tmp_path, content):
    refused(save(tmp_path / "w.pth", content), "K06")


def test_long_names_do_not_flood_the_line(tmp_path):
    refused(save(tmp_path / "w.pth", {"x" * 10_000: 1}), "K06")
    refused(save(tmp_path / "v.pth", {"x" * 10_000: torch.tensor(float("nan"))}), "K11")


def test_k06_other_archive(tmp_path):
    np.savez(tmp_path / "w.npz", a=np.ones(3))
    assert "not of torch.save" in refused(tmp_path / "w.npz", "K06")


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_k11_nan_or_infinity(tmp_path, form, bad, dtype):
    tensors = {**weights(), "b": torch.ones(5, dtype=dtype), "empty": torch.ones(0)}
    assert equal(read_weights(save(tmp_path / name_of(form), tensors, form)).tensors, tensors)
    tensors["b"][3] = bad
    assert "1 of 5 tensors (b)" in refused(save(tmp_path / name_of(form), tensors, form), "K11")


def test_k11_in_eight_bits(tmp_path):
    good = torch.tensor([1.0, -2.0]).to(torch.float8_e5m2)
    assert read_weights(save(tmp_path / "w.pth", {"a": good})).tensors["a"].float().tolist() == [1.0, -2.0]
    refused(save(tmp_path / "w.pth", {"a": torch.tensor([1.0, float("nan")]).to(torch.float8_e5m2)}), "K11")


@pytest.mark.parametrize("form", ["zip", "legacy"])
@pytest.mark.parametrize("kind", [Bomb, Evaluates])
def test_k12_bomb_does_not_run(tmp_path, form, kind, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    proof = tmp_path / "it_ran"
    path = save(tmp_path / "w.pth", {"model": weights(), "extra": kind(proof)}, form)
    line = refused(path, "K12")
    assert re.search(r"asks to run (posix\.system|eval) ", line)
    assert not proof.exists()
    torch.load(path, weights_only=False)
    assert proof.exists(), "the bomb must be a real one"


@pytest.mark.parametrize("protocol", range(6))
def test_k12_bare_pickle_is_not_even_opened(tmp_path, protocol):
    proof = tmp_path / "it_ran"
    (tmp_path / "w.pth").write_bytes(pickle.dumps(Bomb(proof), protocol))
    refused(tmp_path / "w.pth", "K12" if protocol >= 2 else "K06")
    assert not proof.exists()


def test_k12_namespace_is_no_way_in(tmp_path):
    proof = tmp_path / "it_ran"
    refused(save(tmp_path / "w.pth", {"model": weights(), "args": argparse.Namespace(x=Bomb(proof))}), "K12")
    assert not proof.exists()


@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_k13_whole_module(tmp_path, form):
    line = refused(save(tmp_path / "w.pth", {"model": Net()}, form), "K13")
    assert f"{Net.__module__}.Net" in line and "torch.save(model.state_dict()" in line


def test_k13_torchscript(tmp_path):
    with zipfile.ZipFile(tmp_path / "w.pt", "w") as archive:
        for name in ("data.pkl", "constants.pkl", "code/__torch__/net.py", "version"):
            archive.writestr(f"w/{name}", b"3")
    assert "TorchScript" in refused(tmp_path / "w.pt", "K13")


def test_k14_compressed_zip(tmp_path):
    save(tmp_path / "plain.pth", {"a": torch.zeros(4_000_000)})
    with (
        zipfile.ZipFile(tmp_path / "plain.pth") as plain,
        zipfile.ZipFile(tmp_path / "w.pth", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for entry in plain.infolist():
            packed.writestr(entry.filename, plain.read(entry))
    assert (tmp_path / "w.pth").stat().st_size < 100_000
    assert torch.load(tmp_path / "w.pth", weights_only=True)["a"].numel() == 4_000_000
    assert re.search(r"\(160\d{5} bytes in a file of \d{5}\)", refused(tmp_path / "w.pth", "K14"))


@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_k14_one_number_that_claims_to_be_a_billion(tmp_path, form):
    line = refused(save(tmp_path / "w.pth", {"a": torch.ones(1).expand(10**9)}, form), "K14")
    assert "claims 4000000000 bytes" in line


def test_tied_weights_are_fine(tmp_path):
    tensor = torch.randn(100, 100)
    tied = {f"class_embed.{layer}.weight": tensor for layer in range(6)}
    assert equal(read_weights(save(tmp_path / "w.pth", tied)).tensors, tied)


def test_k15_too_many_tensors(tmp_path, monkeypatch):
    monkeypatch.setattr("safetensors.torch.load_file", None)  # Refused by the header: the reader would be slow.
    entry = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    header = json.dumps({f"tensor_{i}": entry for i in range(10_001)}).encode()
    (tmp_path / "w.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    assert "10001 tensors; at most 10000" in refused(tmp_path / "w.safetensors", "K15")
    one = torch.ones(1)
    refused(save(tmp_path / "w.pth", {f"t{i}": one for i in range(10_001)}), "K15")


def test_k15_large_header(tmp_path):
    with (tmp_path / "w.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", 90_000_000) + b"{")
        file.truncate(100_000_000)
    refused(tmp_path / "w.safetensors", "K15")


@pytest.mark.parametrize(
    "header",
    [
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
        b'{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,36]}}',
        b'{"a":{"dtype":"XXX","shape":[1],"data_offsets":[0,4]}}',
        b'{"a":3}',
        b'{"a":' + b"[" * 100_000,
        b"{" + b"\xff" * 20,
    ],
)
def test_safetensors_with_a_false_header(tmp_path, header):
    (tmp_path / "w.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 4)
    refused(tmp_path / "w.safetensors", "K04")


@pytest.mark.parametrize("form", FORMATS)
def test_damage_never_gives_another_exception(tmp_path_factory, form):
    path = save(tmp_path_factory.mktemp("damage") / name_of(form), weights(), form)
    data = path.read_bytes()

    @settings(max_examples=60, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.integers(0, len(data) - 1), st.binary(min_size=1, max_size=4), st.integers(0, 9))
    def check(place: int, splice: bytes, removed: int) -> None:
        path.write_bytes(data[:place] + splice + data[place + removed :])
        try:
            read = read_weights(path)
        except CheckpointError as error:
            assert str(error).isprintable()
        else:
            assert all(torch.isfinite(tensor).all() for tensor in read.tensors.values())

    check()


def test_load_exactly_copies_everything(tmp_path):
    net, other = Net(), Net()
    load_exactly(other, read_weights(save(tmp_path / "w.pth", net.state_dict())).tensors, where="w.pth")
    assert equal(other.state_dict(), net.state_dict())


def test_load_exactly_converts_half_precision():
    net, other = Net(), Net()
    half = {name: t.half() if t.is_floating_point() else t for name, t in net.state_dict().items()}
    load_exactly(other, half, where="w.pth")
    assert other.pos_embed.dtype == torch.float32
    torch.testing.assert_close(other.pos_embed, net.pos_embed, atol=1e-3, rtol=1e-3)


def test_load_exactly_takes_batch_norm_without_its_counter():
    net = Net()
    old = {name: t for name, t in Net().state_dict().items() if not name.endswith("num_batches_tracked")}
    load_exactly(net, old, where="w.pth")
    load_exactly(nn.Linear(2, 2), {**nn.Linear(2, 2).state_dict(), "bn.num_batches_tracked": torch.tensor(1)}, where="")
    assert torch.equal(net.pos_embed, old["pos_embed"])


def misfit(tensors: dict[str, torch.Tensor], code: str) -> str:
    """The error line of loading `tensors` into a `Net`, which must not have changed."""
    net = Net()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with pytest.raises(CheckpointError) as caught:
        load_exactly(net, tensors, where="runs/w.pth")
    assert caught.value.code == code, caught.value.line
    assert equal(net.state_dict(), before)
    assert "runs/w.pth" in caught.value.line and caught.value.line.isprintable() and len(caught.value.line) < 500
    return caught.value.line


def test_k07_another_architecture():
    line = misfit(nn.TransformerEncoderLayer(8, 2).state_dict(), "K07")
    assert "not weights of Net: 0 of its 10 tensors" in line and "self_attn.in_proj_weight" in line


def test_k07_missing_and_unexpected_are_counted_and_named():
    tensors = Net().state_dict()
    del tensors["body.0.weight"]
    tensors.update({f"extra.{i}": torch.ones(1) for i in range(300)}, **{"body.0.bias": torch.ones(9)})
    line = misfit(tensors, "K07")
    assert "1 missing (body.0.weight)" in line
    assert "300 not in the model (extra.0, extra.1, extra.2 and 297 more)" in line
    assert "1 of another shape (body.0.bias (9,), the model has (4,))" in line


def test_k07_one_tensor_too_many():
    misfit({**Net().state_dict(), "extra": torch.ones(1)}, "K07")


def test_k07_other_shape_or_integers():
    tensors = Net().state_dict()
    tensors["body.0.weight"] = torch.ones(4, 5)
    assert "body.0.weight (4, 5), the model has (4, 4)" in misfit(tensors, "K07")
    tensors["body.0.weight"] = torch.ones(4, 4, dtype=torch.int8)
    assert "body.0.weight (4, 4) of torch.int8, the model has (4, 4)" in misfit(tensors, "K07")


def test_k08_another_number_of_classes():
    line = misfit({**Net().state_dict(), **Net(classes=91).state_dict()}, "K08")
    assert "another number of classes: class_embed.weight (92, 4), the model has (6, 4)" in line
    assert "leave class_embed.weight, class_embed.bias out" in line


def test_k08_not_when_the_width_differs_too():
    tensors = {
        **Net().state_dict(),
        "class_embed.weight": torch.ones(92, 8),
        "class_embed.bias": torch.ones(92),
    }
    misfit(tensors, "K07")


def test_k09_another_image_size():
    line = misfit(Net(tokens=17).state_dict(), "K09")
    assert "another image size: pos_embed (1, 17, 4), the model has (1, 7, 4)" in line
