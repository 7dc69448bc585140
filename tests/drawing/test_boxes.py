"""Pictures: every box is where it should be, names stay readable, and nothing breaks a drawing."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from refusals import refused
from regard.drawing import boxes as pictures
from regard.drawing.boxes import MIN_SIDE, PALETTE, class_color, compare, draw_boxes, grid
from regard.errors import ConfigError, DataError

GREY = 128
RED, WHITE = (248, 0, 0), (255, 255, 255)


def grey(height: int, width: int) -> Tensor:
    return torch.full((3, height, width), GREY, dtype=torch.uint8)


def where(picture: Image.Image, color: tuple[int, int, int]) -> np.ndarray:
    """(H, W) bool, True for pixels of exactly this colour."""
    return (np.asarray(picture) == color).all(-1)


def draw_one(image: Tensor | Image.Image, box: list[float], name: str = "cat", **options: object) -> Image.Image:
    return draw_boxes(image, torch.tensor([box]), [name], [RED], **options)  # type: ignore[arg-type]


class TestBoxes:
    @pytest.mark.parametrize(("height", "width"), [(400, 500), (64, 64), (150, 90), (900, 1200)])
    def test_the_line_lies_on_the_edges(self, height: int, width: int) -> None:
        box = [0.2 * width, 0.3 * height, 0.8 * width, 0.7 * height]
        picture = draw_one(grey(height, width), box)
        factor = picture.width / width
        assert factor == picture.height / height == int(factor)
        x0, y0, x1, y1 = (round(v * factor) for v in box)
        red = where(picture, RED)
        assert red[(y0 + y1) // 2, [x0, x1 - 1]].all()
        assert red[[y0, y1 - 1], (x0 + x1) // 2].all()
        line = red[(y0 + y1) // 2].sum() / 2
        assert line == red[y0 + (y1 - y0) // 2 :, (x0 + x1) // 2].sum()
        assert abs(line - min(picture.size) / 180) <= 1
        halo = line + 1
        background = where(picture, (GREY,) * 3)
        inner = background[int(y0 + halo) : int(y1 - halo), int(x0 + halo) : int(x1 - halo)]
        assert inner.all()
        assert background[:, : int(x0 - halo)].all()
        assert background[int(y1 + halo) :].all()

    def test_small_images_are_enlarged_and_sharp(self) -> None:
        image = torch.randint(0, 256, (3, 64, 80), dtype=torch.uint8)
        picture = draw_boxes(image, torch.zeros(0, 4), [], [])
        assert picture.size == (400, 320)
        assert np.array_equal(np.asarray(picture)[2::5, 2::5], image.permute(1, 2, 0).numpy())

    @pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 2), (MIN_SIDE - 1, 5), (MIN_SIDE, MIN_SIDE)])
    def test_no_shape_makes_a_huge_picture(self, size: tuple[int, int]) -> None:
        picture = draw_one(grey(*size), [0, 0, size[1], size[0]], scores=[0.5])
        assert max(picture.size) <= max(3000, pictures.MAX_ENLARGED_SIDE)

    def test_large_images_keep_their_size(self) -> None:
        assert draw_one(grey(700, 900), [1, 1, 5, 5]).size == (900, 700)

    def test_earlier_boxes_lie_on_top(self) -> None:
        boxes = torch.tensor([[100.0, 100, 200, 300], [100.0, 100, 200, 300]])
        picture = draw_boxes(grey(400, 400), boxes, ["", ""], [RED, WHITE])
        assert picture.getpixel((100, 200)) == RED

    def test_lines_are_closed(self) -> None:
        red = where(draw_one(grey(400, 400), [50, 150, 350, 350]), RED)
        assert red[250:350, 349].all() and red[349, 50:350].all()

    @pytest.mark.parametrize("name", ["tensor", "RGB", "L", "RGBA", "P"])
    def test_the_input_is_not_changed(self, name: str) -> None:
        image = grey(400, 400) if name == "tensor" else Image.new("RGB", (400, 400), (GREY,) * 3).convert(name)
        boxes = torch.tensor([[100.0, 100, 200, 300]])
        before = image.clone() if isinstance(image, Tensor) else image.copy()
        picture = draw_boxes(image, boxes, ["cat"], [RED])
        assert picture.mode == "RGB"
        assert where(picture, RED).any()
        assert torch.equal(image, before) if isinstance(image, Tensor) else image == before
        assert boxes.tolist() == [[100, 100, 200, 300]]

    def test_a_view_in_the_memory_order_of_decoders_is_drawn_as_it_is(self) -> None:
        pixels = torch.randint(0, 256, (330, 340, 3), dtype=torch.uint8)
        picture = draw_boxes(pixels.permute(2, 0, 1), torch.zeros(0, 4), [], [])
        assert np.array_equal(np.asarray(picture), pixels.numpy())

    @pytest.mark.parametrize("image", [torch.zeros(3, 9, 9), torch.zeros(1, 9, 9).byte(), torch.zeros(9, 9).byte()])
    def test_other_tensors_are_refused(self, image: Tensor) -> None:
        with refused(DataError, "(3, H, W) uint8", tuple(image.shape), code="I31"):
            draw_one(image, [0, 0, 1, 1])

    @pytest.mark.parametrize(
        "box", [[500, 10, 600, 20], [-50, -50, -1, 300], [10, 400, 20, 500], [float("nan"), 0, 10, 10]]
    )
    def test_boxes_outside_leave_no_trace(self, box: list[float]) -> None:
        assert where(draw_one(grey(400, 400), box), (GREY,) * 3).all()

    @pytest.mark.parametrize(
        "box",
        [
            [-1e30, -1e30, 1e30, 1e30], [float("-inf"), 0, float("inf"), 10], [0, 0, 400, 400], [-20, -20, 30, 30],
            [380, 380, 450, 450], [100, 100, 100, 100], [200, 100, 100, 50], [399.9, 399.9, 400, 400], [0, 0, 0.1, 0.1],
        ],
    )  # fmt: skip
    def test_boxes_at_the_border_show(self, box: list[float]) -> None:
        assert where(draw_one(grey(400, 400), box, scores=[1.0]), RED).sum() > 300  # name and some of the line

    def test_a_box_around_everything_shows_its_whole_line(self) -> None:
        red = where(draw_one(grey(400, 400), [0, 0, 400, 400], name=""), RED)
        assert red[0].all() and red[-1].all() and red[:, 0].all() and red[:, -1].all()

    @pytest.mark.parametrize("size", [1, 3, 6])
    @pytest.mark.parametrize("place", [(200, 200), (0, 0), (394, 394), (0, 394)])
    def test_tiny_objects_are_not_hidden_by_their_name(self, size: int, place: tuple[int, int]) -> None:
        x, y = place
        box = [x, y, x + size, y + size]
        named, bare = (where(draw_one(grey(400, 400), box, name), RED) for name in ("cat", ""))
        tag = named & ~bare
        rows, columns = np.nonzero(tag)
        assert not (rows.min() <= y + size // 2 <= rows.max() and columns.min() <= x + size // 2 <= columns.max())


class TestNames:
    @staticmethod
    def tags(
        boxes: Tensor, names: list[str], size: tuple[int, int], monkeypatch: pytest.MonkeyPatch, show: str = "auto"
    ) -> list:
        seen: list = []
        original = pictures.draw_tag
        monkeypatch.setattr(pictures, "draw_tag", lambda pen, tag, size: (seen.append(tag), original(pen, tag, size)))
        draw_boxes(grey(*size), boxes, names, [RED] * len(names), [0.5] * len(names), show)
        return seen[::-1]

    @pytest.mark.parametrize("seed", range(4))
    def test_stay_inside_and_apart(self, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
        g = torch.Generator().manual_seed(seed)
        centre = torch.rand(18, 2, generator=g) * torch.tensor([640, 480])
        half = 10 + torch.rand(18, 2, generator=g) * 80
        tags = self.tags(torch.cat((centre - half, centre + half), 1), ["dog"] * 18, (480, 640), monkeypatch)
        assert len(tags) == 18
        for x0, y0, x1, y1 in (tag.place for tag in tags):
            assert 0 <= x0 < x1 <= 640
            assert 0 <= y0 < y1 <= 480
        hidden = sum(pictures.overlap(a.place, b.place) for a, b in itertools.combinations(tags, 2))
        assert hidden <= 0.02 * sum((x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in (tag.place for tag in tags))

    def test_the_best_keep_theirs_where_there_is_no_room_for_all(self, monkeypatch: pytest.MonkeyPatch) -> None:
        boxes = torch.tensor([[150.0, 150, 250, 200]] * 60)
        tags = self.tags(boxes, ["dog"] * 60, (400, 400), monkeypatch, "on")
        assert 4 <= len(tags) < 60
        first = tags[0].place
        for tag in tags[1:]:
            area = (tag.place[2] - tag.place[0]) * (tag.place[3] - tag.place[1])
            assert pictures.overlap(tag.place, first) < area / 2

    @pytest.mark.parametrize("size", [(480, 640), (64, 64), (20, 400), (400, 20), (1, 1)])
    @pytest.mark.parametrize("name", ["raccoon " * 200, "W" * 100_000, "名" * 500])
    def test_long_ones_are_cut_and_keep_their_score(
        self, name: str, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        box = torch.tensor([[0.0, 0, size[1], size[0]]])
        started = time.perf_counter()
        [tag] = self.tags(box, [name], size, monkeypatch)
        assert time.perf_counter() - started < 2
        assert tag.text.endswith("… 0.50")
        assert tag.place[0] >= 0

    @pytest.mark.parametrize(
        "name",
        ["", "Straße", "ñandú", "пёс", "猫", "😀", "שלום", "a\nb\tc\x1b[31m", "\ud800", "\0", "e" + "\u0301" * 99],
    )
    def test_any_text_is_drawn(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        [tag] = self.tags(torch.tensor([[100.0, 100, 300, 300]]), [name], (400, 400), monkeypatch)
        assert "\n" not in tag.text

    def test_a_machine_without_other_fonts(self, monkeypatch: pytest.MonkeyPatch) -> None:
        built_in = pictures.ImageFont.truetype

        def only_built_in(font: object, *rest: object, **options: object) -> object:
            if isinstance(font, str):
                raise OSError("cannot open resource")
            return built_in(font, *rest, **options)  # type: ignore[arg-type]

        pictures._font.cache_clear()
        monkeypatch.setattr(pictures.ImageFont, "truetype", only_built_in)
        assert where(draw_one(grey(400, 400), [100, 100, 300, 300], "猫 Straße"), RED).any()
        assert pictures._font(20, False).getname() == pictures._font(20, True).getname()
        pictures._font.cache_clear()

    def test_text_and_background_differ(self) -> None:
        def luminance(color: tuple[int, ...]) -> float:
            linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in color)]
            return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))

        for color in (*PALETTE, WHITE, (0, 0, 0)):
            dark, light = sorted((luminance(color), luminance(pictures._text_color(color))))
            assert (light + 0.05) / (dark + 0.05) >= 3.8


class TestDensePictures:
    """Names get smaller, or are left out, before they hide the objects."""

    @staticmethod
    def boxes(count: int, side: float) -> Tensor:
        """Boxes on a square grid of 256 pixels."""
        columns = int(np.ceil(np.sqrt(count)))
        places = torch.tensor([(i % columns, i // columns) for i in range(count)]) * 256 / columns
        return torch.cat((places, places + side), 1)

    @pytest.mark.parametrize(("count", "side"), [(60, 20), (30, 12), (2, 100), (5, 80)])
    def test_objects_stay_visible(self, count: int, side: float) -> None:
        boxes = self.boxes(count, side)
        visible = {}
        for show in ("auto", "on", "off"):
            picture = draw_boxes(grey(256, 256), boxes, ["nucleus"] * count, [RED] * count, [0.87] * count, show)
            places = (boxes * 2).int().tolist()
            visible[show] = np.mean([where(picture, (GREY,) * 3)[y0:y1, x0:x1].mean() for x0, y0, x1, y1 in places])
        assert visible["off"] > 0.5 and 0.75 * visible["off"] <= visible["auto"] <= visible["off"]
        if count == 60:
            assert visible["on"] < 0.6 * visible["off"]

    def test_names_are_written_where_they_hide_little(self, monkeypatch: pytest.MonkeyPatch) -> None:
        few = TestNames.tags(self.boxes(4, 90), ["dog"] * 4, (256, 256), monkeypatch)
        many = TestNames.tags(self.boxes(60, 20), ["nucleus"] * 60, (256, 256), monkeypatch)
        forced = TestNames.tags(self.boxes(60, 20), ["nucleus"] * 60, (256, 256), monkeypatch, "on")
        none = TestNames.tags(self.boxes(4, 90), ["dog"] * 4, (256, 256), monkeypatch, "off")
        assert (len(few), len(many), len(none)) == (4, 0, 0) and len(forced) > 20

    def test_a_single_object_keeps_its_name(self, monkeypatch: pytest.MonkeyPatch) -> None:
        tags = TestNames.tags(torch.tensor([[0.0, 0, 3, 3]]), ["a long name of a class"], (20, 20), monkeypatch)
        assert len(tags) == 1


class TestColors:
    def test_are_stable_and_repeat(self) -> None:
        assert class_color(0) == (0, 158, 255)
        assert class_color(3) == class_color(3 + len(PALETTE)) == PALETTE[3]
        assert len(set(PALETTE)) == len(PALETTE) == 20

    @pytest.mark.parametrize("blindness", ["none", "protanopia", "deuteranopia"])
    def test_the_first_eight_differ_for_everyone(self, blindness: str) -> None:
        # Machado et al. 2009, severity 1, on linear RGB; then CIE 1976 L*a*b* for D65.
        simulate = {
            "none": np.eye(3),
            "protanopia": [
                [0.152286, 1.052583, -0.204868],
                [0.114503, 0.786281, 0.099216],
                [-0.003882, -0.048116, 1.051998],
            ],
            "deuteranopia": [
                [0.367322, 0.860646, -0.227968],
                [0.280085, 0.672501, 0.047413],
                [-0.01182, 0.04294, 0.968881],
            ],
        }[blindness]
        rgb = np.array(PALETTE[:8]) / 255
        linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
        seen = np.clip(linear @ np.array(simulate).T, 0, 1)
        to_xyz = [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.072175], [0.0193339, 0.119192, 0.9503041]]
        xyz = np.cbrt(seen @ np.array(to_xyz).T / (0.95047, 1, 1.08883))
        lab = np.stack((116 * xyz[:, 1], 500 * (xyz[:, 0] - xyz[:, 1]), 200 * (xyz[:, 1] - xyz[:, 2])), 1)
        nearest = min(np.linalg.norm(a - b) for a, b in itertools.combinations(lab, 2))
        assert nearest > 15  # 2.3 is just noticeable


class TestSheets:
    def test_grid_shows_every_picture(self) -> None:
        colors = [(10 * i, 0, 200) for i in range(1, 6)]
        images = [Image.new("RGB", (60 + 10 * i, 50 + i), color) for i, color in enumerate(colors)]
        sheet = grid(images, 2, padding=7)
        for image, color in zip(images, colors, strict=True):
            assert where(sheet, color).sum() == image.width * image.height
        assert sheet.size == (7 + 100 + 7 + 90 + 7, 7 + 51 + 7 + 53 + 7 + 54 + 7)
        assert where(sheet, WHITE)[:7].all() and where(sheet, WHITE)[-7:].all()

    def test_captions_take_their_own_room(self) -> None:
        images = [Image.new("RGB", (200, 100), RED)] * 3
        plain, named = grid(images, 3), grid(images, 3, ["one", "two\nlines", "a very long caption " * 20])
        assert where(plain, RED).sum() == where(named, RED).sum()
        assert named.height > plain.height
        assert (~where(named, WHITE) & ~where(named, RED)).sum() > 100
        ink = ~where(named, WHITE) & ~where(named, RED)
        assert not ink[:, -12:].any()

    def test_large_pictures_are_shrunk_in_proportion(self) -> None:
        red = where(grid([Image.new("RGB", (1000, 500), RED)], 4, longest=300), RED)
        assert red.any(0).sum() == 300
        assert red.any(1).sum() == 150

    def test_modes_mix_and_inputs_stay(self) -> None:
        images = [Image.new(mode, (50, 50)) for mode in ("L", "RGBA", "P", "RGB", "1")]
        sheet = grid(images, 5)
        assert sheet.mode == "RGB"
        assert [image.mode for image in images] == ["L", "RGBA", "P", "RGB", "1"]

    def test_nothing_to_show(self) -> None:
        with refused(ConfigError, "0 pictures"):
            grid([], 3)
        with refused(ConfigError, "0 columns"):
            grid([Image.new("RGB", (5, 5))], 0)

    def test_captions_must_fit_the_pictures(self) -> None:
        for captions in (["one"], ["one"] * 3):
            with refused(ConfigError, f"{len(captions)} captions", "2 pictures"):
                grid([Image.new("RGB", (50, 50))] * 2, 2, captions)

    @pytest.mark.parametrize(("size", "beside"), [((300, 200), True), ((200, 300), True), ((900, 200), False)])
    def test_compare_lays_wide_pictures_above_each_other(self, size: tuple[int, int], beside: bool) -> None:
        sheet = compare(Image.new("RGB", size, RED), Image.new("RGB", size, (0, 0, 250)))
        truth, prediction = (np.argwhere(where(sheet, color)).min(0).tolist() for color in (RED, (0, 0, 250)))
        same, further = (0, 1) if beside else (1, 0)
        assert truth[same] == prediction[same]
        assert prediction[further] >= truth[further] + size[same]
