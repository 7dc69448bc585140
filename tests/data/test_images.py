"""Each file of the corpus gives its pixels or its error; nothing that a file can hold gives anything else."""

from __future__ import annotations

import io
import os
import pathlib
import re
import shutil
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile, ImageOps

import image_corpus as corpus
import image_files as files
from refusals import refused
from regard.data import images
from regard.data.image_folders import are_safe, is_unsafe, list_images
from regard.data.images import decode_image, image_size, read_image, to_image
from regard.errors import DataError, ImageError

GOOD = corpus.good_images()
BAD = corpus.bad_images()
LARGE = ("I16", "I17", "I18")
SEEDS = files.seeds()
PNG = files.encode(files.scene(), "PNG")
JPEG = files.encode(files.scene(), "JPEG")


def hwc(image: torch.Tensor) -> np.ndarray:
    return image.permute(1, 2, 0).numpy()


@pytest.fixture
def deadline() -> Iterator[None]:
    """Ten seconds: what opens a pipe or reads /dev/zero would wait for ever."""

    def stop(*_: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(10)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("case", GOOD, ids=lambda case: case.id)
def test_good_file_gives_its_pixels(case: corpus.Good, tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"  # the suffix says nothing (I10)
    path.write_bytes(case.data)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        image = read_image(path)
    frames = [str(w.message) for w in caught if "frame" in str(w.message)]
    assert len(frames) == case.warns and all(str(path) in line for line in frames)
    assert image.dtype == torch.uint8 and image.permute(1, 2, 0).is_contiguous()
    assert hwc(image).shape == case.pixels.shape
    assert np.abs(hwc(image).astype(int) - case.pixels).max() <= case.tolerance
    assert image_size(path) == case.pixels.shape[:2]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # Pillow's warnings of harmless things stop nobody
        assert torch.equal(decode_image(case.data, name="x"), image)
        assert image_size(path) == case.pixels.shape[:2]
    assert path.read_bytes() == case.data


@pytest.mark.parametrize("case", BAD, ids=lambda case: case.id)
def test_bad_file_gives_its_error(case: corpus.Bad, tmp_path: Path, deadline: None) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(case.data)
    with pytest.raises(DataError) as caught, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        read_image(path, max_pixels=case.max_pixels)
    error = caught.value
    assert error.code and re.fullmatch(case.code, error.code)
    assert re.search(case.words, str(error)), str(error)
    assert str(path) in str(error) and error.remedy and "\n" not in error.line
    with pytest.raises(DataError) as again, warnings.catch_warnings():
        warnings.simplefilter("error")
        decode_image(case.data, name="upload", max_pixels=case.max_pixels)
    assert again.value.code == error.code and "upload" in str(again.value)
    assert path.read_bytes() == case.data


@pytest.mark.parametrize("case", [c for c in BAD if c.id[:3] in LARGE], ids=lambda case: case.id)
def test_size_is_refused_from_the_header(case: corpus.Bad, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: object) -> None:
        pytest.fail("pixels were decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    with pytest.raises(DataError), warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        decode_image(case.data, name="x", max_pixels=case.max_pixels)


@pytest.mark.parametrize("name", ["JPEG", "JPEG-progressive", "GIF", "TIFF-lzw", "WEBP", "BMP-palette"])
def test_plain_pixels_equal_those_of_pillow(name: str) -> None:
    plain = np.array(ImageOps.exif_transpose(Image.open(io.BytesIO(SEEDS[name]))).convert("RGB"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert np.array_equal(hwc(decode_image(SEEDS[name], name="x")), plain)


def test_every_flipped_bit_in_a_png_is_found() -> None:
    """I08. JPEG has no checksums (I07): there a flip may pass, and only the outcome's kind is certain."""
    rng = np.random.default_rng(0)
    for place in rng.integers(8, len(PNG) - 12, 200):
        data = bytearray(PNG)
        data[place] ^= 1 << rng.integers(8)
        with pytest.raises(DataError):
            decode_image(bytes(data), name="x")


def test_flipped_bits_in_jpeg_pixels_keep_the_size() -> None:
    rng = np.random.default_rng(0)
    start = JPEG.index(b"\xff\xda") + 14
    passed = 0
    for place in rng.integers(start, len(JPEG) - 2, 100):
        data = bytearray(JPEG)
        data[place] ^= 1 << rng.integers(8)
        try:
            assert decode_image(bytes(data), name="x").shape == (3, files.HEIGHT, files.WIDTH)
            passed += 1
        except DataError as error:
            assert error.code in ("I04", "I05", "I07")
    assert passed > 50  # if this fails the decoder has learnt to find them: change the promise in the module


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    name=st.sampled_from(sorted(SEEDS)),
    cut=st.none() | st.floats(0, 1),
    changes=st.lists(st.tuples(st.floats(0, 1), st.sampled_from([40, 300, 10**9]), st.integers(1, 255)), max_size=4),
)
def test_damage_gives_pixels_or_one_error(
    name: str,
    cut: float | None,
    changes: list[tuple[float, int, int]],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    data = bytearray(SEEDS[name])
    for place, reach, flip in changes:
        data[int(place * (min(len(data), reach) - 1))] ^= flip
    data = data[: len(data) if cut is None else int(cut * len(data))]
    path = tmp_path_factory.getbasetemp() / "damaged"
    path.write_bytes(data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image = read_image(path, max_pixels=10**7)
        except DataError as error:
            assert error.code and "\n" not in str(error)
        else:
            assert image.dtype == torch.uint8 and image.shape[0] == 3 and image.numel() <= 3 * 10**7
            assert image_size(path) == image.shape[1:]


@pytest.mark.parametrize("data", [JPEG, PNG], ids=["JPEG", "PNG"])
def test_file_is_opened_and_decoded_once(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(data)
    prepare = ImageFile.ImageFile.load_prepare
    simplejpeg = pytest.importorskip("simplejpeg")
    with (
        mock.patch.object(simplejpeg, "decode_jpeg", wraps=simplejpeg.decode_jpeg) as quick,
        mock.patch.object(pathlib.Path, "open", side_effect=lambda mode: io.FileIO(path, "r")) as opened,
        mock.patch.object(Image, "open", wraps=Image.open) as parsed,
        mock.patch.object(ImageFile.ImageFile, "load_prepare", autospec=True, side_effect=prepare) as decoded,
    ):
        read_image(path)
    assert opened.call_count == parsed.call_count == decoded.call_count + quick.call_count == 1
    assert quick.call_count == (data == JPEG)


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("progressive", [False, True])
def test_simplejpeg_gives_the_same_pixels(subsampling: int, progressive: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("simplejpeg")
    rng = np.random.default_rng(subsampling)
    noise = Image.fromarray(rng.integers(0, 256, (61, 83, 3), dtype=np.uint8)).resize((83, 61))
    file = io.BytesIO()
    noise.save(file, "JPEG", quality=80, subsampling=subsampling, progressive=progressive)
    quick = decode_image(file.getvalue(), name="a.jpg")
    monkeypatch.setitem(sys.modules, "simplejpeg", None)
    assert torch.equal(quick, decode_image(file.getvalue(), name="a.jpg"))


def test_cut_images_are_refused_where_another_library_allows_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.warns(UserWarning, match="LOAD_TRUNCATED_IMAGES"), refused(ImageError, "x", code="I04"):
        decode_image(JPEG[:-200], name="x")


# Places that are no image files (I27), names (I28), files that change (I29)


MAKERS = {
    "dangling": lambda path: path.symlink_to(path.with_name("gone")),
    "loop": lambda path: path.symlink_to(path),
    "directory": lambda path: path.mkdir(),
    "pipe": os.mkfifo,
    "device": lambda path: path.symlink_to("/dev/zero"),
}


@pytest.mark.parametrize("read", [read_image, image_size, to_image, list_images])
@pytest.mark.parametrize("kind", MAKERS)
def test_links_folders_and_pipes_are_refused(kind: str, read: Callable, tmp_path: Path, deadline: None) -> None:
    path = tmp_path / "x.jpg"
    MAKERS[kind](path)
    with pytest.raises(DataError) as caught:
        read(path)
    assert str(path) in str(caught.value) and caught.value.remedy
    assert caught.value.code == "I27" or (kind == "directory" and read is list_images)


def test_unreadable_missing_and_impossible_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with refused(ImageError, "gone.jpg", code="I29"):
        read_image(tmp_path / "gone.jpg")
    with refused(ImageError, r"a\x00b.jpg", code="I27"):
        read_image("a\0b.jpg")
    with refused(ImageError, "n" * 300, code="I27"):
        read_image(tmp_path / ("n" * 300))
    path = tmp_path / "a.jpg"
    path.write_bytes(JPEG)

    def forbidden(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(pathlib.Path, "open", forbidden)
    with refused(ImageError, "Permission denied", path, code="I27"):
        read_image(path)


NAMES = ["ümläut 图像", "new\nline", "%s%n", "-rf", "n" * 251, "\x1b[31m", "a b'\"", "Case"]


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_any_name_is_read_and_shown_on_one_line(name: str, tmp_path: Path) -> None:
    path = tmp_path / f"{name}.png"
    path.write_bytes(PNG)
    assert read_image(path).shape[1:] == image_size(str(path))
    assert list_images(tmp_path) == [path]
    path.write_bytes(PNG[:-9])
    with pytest.raises(DataError) as caught:
        read_image(path)
    assert caught.value.line.isprintable()


def test_file_that_is_replaced_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(JPEG[:300])
    decode = images._decode

    def replacing(file: BinaryIO, where: str | Path, limit: int) -> torch.Tensor:
        try:
            return decode(file, where, limit)
        finally:
            path.write_bytes(JPEG)

    with mock.patch.object(images, "_decode", side_effect=replacing) as reads:
        assert torch.equal(read_image(path), decode_image(JPEG, name="x"))
    assert reads.call_count == 3
    path.write_bytes(JPEG[:300])
    with mock.patch.object(images, "_decode", side_effect=decode) as reads, pytest.raises(DataError):
        read_image(path)
    assert reads.call_count == 1  # it stayed bad


# What users hold (I31)

RGB = files.scene()
WANTED = torch.from_numpy(RGB).permute(2, 0, 1)
SOURCES: dict[str, tuple[Any, torch.Tensor]] = {
    "array": (RGB, WANTED),
    "array-float32": (RGB.astype(np.float32) / 255, WANTED),
    "array-float64": (RGB / 255, WANTED),
    "array-float-big-endian": ((RGB / 255).astype(">f4"), WANTED),
    "array-mirrored": (RGB[:, ::-1], WANTED.flip(2)),
    "array-grey": (RGB[..., 0], WANTED[:1].expand(3, -1, -1)),
    "array-grey-1": (RGB[..., :1], WANTED[:1].expand(3, -1, -1)),
    "array-rgba": (np.dstack([RGB, np.full_like(RGB[..., 0], 255)]), WANTED),
    "array-rgba-clear": (np.dstack([RGB, np.zeros_like(RGB[..., 0])]), torch.full_like(WANTED, 255)),
    "tensor": (WANTED, WANTED),
    "tensor-float": (WANTED / 255, WANTED),
    "tensor-half": (WANTED.half() / 255, WANTED),
    "tensor-gradient": ((WANTED / 255).requires_grad_(), WANTED),
    "pillow": (Image.fromarray(RGB), WANTED),
    "pillow-grey": (Image.fromarray(RGB[..., 0]), WANTED[:1].expand(3, -1, -1)),
    "pillow-16": (Image.fromarray(RGB[..., 0].astype(np.uint16) * 257), WANTED[:1].expand(3, -1, -1)),
}


@pytest.mark.parametrize("name", SOURCES)
def test_every_source_becomes_the_same_image(name: str) -> None:
    source, wanted = SOURCES[name]
    image = to_image(source)
    assert image.dtype == torch.uint8 and torch.equal(image, wanted)
    image.zero_()
    assert torch.equal(to_image(source), wanted)  # `source` is not shared


def test_pillow_image_is_turned_as_its_file_is(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(files.encode(RGB, "JPEG", exif=files.exif(6)))
    assert torch.equal(to_image(Image.open(path)), to_image(str(path)))
    assert to_image(path).shape == (3, files.WIDTH, files.HEIGHT)
    path.write_bytes(JPEG[:-200])
    with refused(ImageError, code="I04"):
        to_image(Image.open(path))


HOLED = RGB / 255
HOLED[3, 3] = np.nan
REFUSED: dict[str, tuple[Any, ...]] = {
    "NaN": (HOLED, "nan"),
    "infinity": (np.where(np.isnan(HOLED), np.inf, HOLED), "inf"),
    "NaN-tensor": (torch.from_numpy(HOLED).permute(2, 0, 1), "nan"),
    "float-255": (RGB.astype(np.float32), "0..1", "0..255 by 255"),
    "float-255-tensor": (WANTED.float(), "0..1"),
    "normalised": ((RGB / 255 - 0.5) / 0.25, "normalisation"),
    "channels-first": (RGB.transpose(2, 0, 1), "(3, 36, 52)", "transpose(1, 2, 0)"),
    "channels-last-tensor": (torch.from_numpy(RGB), "(36, 52, 3)", "permute(2, 0, 1)"),
    "2-channels": (RGB[..., :2], "(36, 52, 2)"),
    "0-channels": (RGB[..., :0], "(36, 52, 0)"),
    "4-channels-tensor": (torch.zeros(4, 5, 5), "(4, 5, 5)"),
    "empty": (RGB[:0], "empty"),
    "empty-tensor": (WANTED[:, :0], "empty"),
    "batch": (RGB[None], "list of images"),
    "batch-tensor": (WANTED[None], "list of images"),
    "batch-0": (WANTED[None][:0], "list of images"),
    "flat": (RGB.ravel(), "shape"),
    "int64": (RGB.astype(np.int64), "int64", "uint8"),
    "int64-tensor": (WANTED.long(), "int64", "uint8"),
    "bool": (RGB > 3, "bool", "uint8"),
    "complex": (RGB.astype(complex), "complex"),
    "objects": (RGB.astype(object), "object"),
    "list": ([[1, 2], [3, 4]], "list"),
    "nothing": (None, "NoneType"),
    "bytes": (JPEG, "bytes"),
    "pillow-int": (Image.fromarray(np.ones((4, 4), np.int32)), "32-bit"),
    "pillow-float": (Image.fromarray(np.full((4, 4), 9, np.float32)), "9..9"),
    "pillow-empty": (Image.new("RGB", (0, 4)), "0x4"),
    "address": ("https://example.org/cat.jpg", "download"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_values_are_refused(name: str) -> None:
    source, *names = REFUSED[name]
    with refused(DataError, *names), warnings.catch_warnings():
        warnings.simplefilter("error")
        to_image(source)


def test_max_pixels_holds_for_every_source() -> None:
    pixels = files.HEIGHT * files.WIDTH
    assert decode_image(JPEG, name="x", max_pixels=pixels).shape[0] == 3
    for decode in (
        lambda: decode_image(JPEG, name="x", max_pixels=pixels - 1),
        lambda: to_image(Image.fromarray(RGB), max_pixels=pixels - 1),
    ):
        with refused(ImageError, "52x36"):
            decode()


@pytest.mark.parametrize(
    "name", ["", "/a.png", "..", "a/../b.png", "..\\a.png", "C:\\a.png", "http://a/b.png", "a\0.png", "\\a.png", "a/.."]
)
def test_no_unsafe_name_is_among_safe_ones(name: str) -> None:
    assert is_unsafe(name)
    assert not are_safe([name, "a.png"]) and not are_safe(["a.png", name])
    assert are_safe(["a.png", "b/c d.jpg", "ä"])


def test_list_images(tmp_path: Path, deadline: None) -> None:
    for name in (
        "b.JPG",
        "a.png",
        "sub/c.tif",
        "sub/deep/d.webp",
        "sub deep/e.png",
        "x.jpg/inside.gif",
        "Case.png",
        "case.png",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(PNG)
    wanted = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    for name in ("notes.txt", ".hidden.png", "._a.png", "sub/.cache/e.png", "f.heic"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(PNG)
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    (tmp_path / "sub" / "up").symlink_to(tmp_path)
    with pytest.warns(UserWarning, match=r"1 image .*f\.heic — .*magick INPUT OUTPUT") as caught:
        assert list_images(tmp_path) == wanted
    assert [warning.message.issue.code for warning in caught] == ["I32"]
    (tmp_path / "f.heic").unlink()
    assert list_images(str(tmp_path)) == wanted
    assert list_images(tmp_path / "notes.txt") == [tmp_path / "notes.txt"]
    (tmp_path / "missing.png").symlink_to(tmp_path / "gone.png")
    assert tmp_path / "missing.png" in list_images(tmp_path)

    shutil.move(tmp_path / "sub" / "deep", tmp_path.parent / "elsewhere")
    (tmp_path / "linked").symlink_to(tmp_path.parent / "elsewhere")
    assert tmp_path / "linked" / "d.webp" in list_images(tmp_path)
    (tmp_path / "nothing").mkdir()
    with refused(DataError, tmp_path / "nothing", ".jpeg"):
        list_images(tmp_path / "nothing")
    with refused(ImageError, "gone", code="I29"):
        list_images(tmp_path / "gone")
