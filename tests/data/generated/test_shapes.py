"""Generated images: the same bytes for the same options, and annotations that agree with the pixels."""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from refusals import refused
from regard.data.check_images import look_at
from regard.data.coco.annotations import read_annotations
from regard.data.coco.dataset import open_detection
from regard.data.generated import shapes
from regard.data.generated.cache import cache_folder
from regard.data.generated.shapes import (
    FIRST_STUFF_ID,
    NAMED,
    SHAPES,
    STUFF,
    ShapesConfig,
    data_folder,
    parse_shapes,
    render_scene,
    run_lengths,
    write_shapes,
)
from regard.data.paths import WITH_BOXES, data_text
from regard.errors import ConfigError

CONFIG = ShapesConfig(size=48, train=8, val=5, classes=4, min_objects=1, max_objects=5, seed=3)
FEW = "shapes:size=32,train=3,val=1"
SPLITS = {"train": CONFIG.train, "val": CONFIG.val}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("shapes") / "data"
    write_shapes(CONFIG, path)
    return path


def digest(folder: Path) -> str:
    """Of the names and bytes of all files."""
    total = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        total.update(str(path.relative_to(folder)).encode() + b"\0")
        if path.is_file():
            total.update(path.read_bytes())
    return total.hexdigest()


def content(folder: Path, kind: str, split: str) -> dict:
    return json.loads((folder / "annotations" / f"{kind}_{split}.json").read_text())


def box_of(mask: np.ndarray) -> list[int]:
    rows, columns = np.nonzero(mask)
    left, top = columns.min(), rows.min()
    return [left, top, columns.max() - left + 1, rows.max() - top + 1]


def test_same_options_same_bytes(folder, tmp_path):
    write_shapes(CONFIG, tmp_path / "again")
    assert digest(tmp_path / "again") == digest(folder)
    write_shapes(replace(CONFIG, seed=4), tmp_path / "other")
    assert digest(tmp_path / "other") != digest(folder)


def test_an_image_depends_on_its_number_alone(folder, tmp_path):
    write_shapes(replace(CONFIG, train=2, val=7), tmp_path / "fewer")
    for name in ("train/000002.png", "val/000005.png"):
        assert (tmp_path / "fewer" / name).read_bytes() == (folder / name).read_bytes()
    pictures = {path.read_bytes() for path in folder.rglob("0*.png") if "annotations" not in path.parts}
    assert len(pictures) == CONFIG.train + CONFIG.val


def test_checks_find_nothing(folder):
    for split in SPLITS:
        data = open_detection(folder, split)
        assert not data.annotations.report.issues, str(data.annotations.report)
        assert not [look.error for look in look_at(data) if look.error]
        assert [c.name for c in data.categories] == list(SHAPES[: CONFIG.classes])
        assert [c.id for c in data.categories] == [1, 2, 3, 4]
        stated = sum(len(data[i].boxes) for i in range(len(data)))
        assert stated == len(content(folder, "instances", split)["annotations"])
    assert not read_annotations(folder / "annotations" / "instances_val.json").report.issues


@pytest.mark.parametrize("split", SPLITS)
def test_boxes_and_areas_are_those_of_the_masks(folder, split):
    instances = content(folder, "instances", split)
    sizes = {image["id"]: (image["height"], image["width"]) for image in instances["images"]}
    assert list(sizes.values()) == [(CONFIG.size, CONFIG.size)] * SPLITS[split]
    for annotation in instances["annotations"]:
        rle = annotation["segmentation"]
        mask = coco_mask.decode(coco_mask.frPyObjects(rle, *rle["size"])).astype(bool)
        assert mask.shape == sizes[annotation["image_id"]]
        assert annotation["bbox"] == box_of(mask)
        assert annotation["area"] == mask.sum() > 0
        assert annotation["iscrowd"] == 0


@pytest.mark.parametrize("split", SPLITS)
def test_panoptic_images_agree_with_their_json(folder, split):
    panoptic = content(folder, "panoptic", split)
    instances = content(folder, "instances", split)
    things = {c["id"]: c["name"] for c in panoptic["categories"] if c["isthing"]}
    stuff = {c["id"]: c["name"] for c in panoptic["categories"] if not c["isthing"]}
    assert list(things.values()) == list(SHAPES[: CONFIG.classes])
    assert stuff == {FIRST_STUFF_ID + i: name for i, name in enumerate(STUFF)}
    assert len(panoptic["annotations"]) == SPLITS[split]
    for row in panoptic["annotations"]:
        code = np.asarray(Image.open(folder / "annotations" / f"panoptic_{split}" / row["file_name"])).astype(int)
        ids = code[..., 0] + 256 * code[..., 1] + 256**2 * code[..., 2]
        assert set(np.unique(ids)) == {segment["id"] for segment in row["segments_info"]}  # each pixel, each segment
        assert 0 not in ids
        for segment in row["segments_info"]:
            mask = ids == segment["id"]
            assert (segment["area"], segment["bbox"]) == (mask.sum(), box_of(mask))
        boxes = [s["bbox"] + [s["category_id"]] for s in row["segments_info"] if s["category_id"] in things]
        same = [a["bbox"] + [a["category_id"]] for a in instances["annotations"] if a["image_id"] == row["image_id"]]
        assert boxes == same


def test_options_are_kept(tmp_path):
    config = ShapesConfig(
        size=80, train=12, val=2, classes=6, min_objects=2, max_objects=3, min_scale=0.15, max_scale=0.25
    )
    write_shapes(config, tmp_path / "data")
    instances = content(tmp_path / "data", "instances", "train")
    assert Image.open(tmp_path / "data" / "train" / "000001.png").size == (80, 80)
    assert len(list((tmp_path / "data" / "train").iterdir())) == 12
    assert len(list((tmp_path / "data" / "val").iterdir())) == 2
    counts = np.bincount([a["image_id"] for a in instances["annotations"]], minlength=13)[1:]
    assert set(counts) == {2, 3}
    assert {a["category_id"] for a in instances["annotations"]} == set(range(1, 7))
    longest = [max(a["bbox"][2:]) for a in instances["annotations"]]
    assert max(longest) <= 0.25 * 80 * 1.1  # outlines reach up to 0.95 of the radius beyond a corner's own angle
    assert np.median(longest) > 0.1 * 80


def test_images_without_objects():
    scenes = [render_scene(ShapesConfig(min_objects=0, max_objects=1), (0, 0, i)) for i in range(12)]
    assert {len(scene.labels) for scene in scenes} == {0, 1}


def test_objects_stay_visible(monkeypatch):
    """Of every object that was painted at least the promised share is left in the end."""
    painted: list[np.ndarray] = []
    paint = shapes._paint
    monkeypatch.setattr(shapes, "_paint", lambda image, mask, rng: painted.append(mask) or paint(image, mask, rng))
    config = ShapesConfig(size=48, min_objects=6, max_objects=9, min_scale=0.3, max_scale=0.6)
    covered = 0
    for number in range(12):
        painted.clear()
        scene = render_scene(config, (0, 0, number))
        assert len(painted) == len(scene.labels)
        shares = [(scene.segments == k).sum() / mask.sum() for k, mask in enumerate(painted)]
        assert min(shares) >= config.min_visible
        covered += sum(share < 1 for share in shares)
        assert all(((scene.segments == k) <= mask).all() for k, mask in enumerate(painted))
    assert covered > 5  # overlaps do occur


def test_hard_images_hide_more(monkeypatch):
    """More of an object may be hidden than in easy images, and at most what was promised."""
    painted: list[np.ndarray] = []
    paint = shapes._paint
    monkeypatch.setattr(shapes, "_paint", lambda image, mask, rng: painted.append(mask) or paint(image, mask, rng))
    least = []
    for number in range(40):
        painted.clear()
        scene = render_scene(NAMED["shapes_hard"], (0, 0, number))
        least += [(scene.segments == k).sum() / mask.sum() for k, mask in enumerate(painted)]
    assert NAMED["shapes_hard"].min_visible <= min(least) < NAMED["shapes"].min_visible


def test_hard_images_have_more_of_everything():
    scenes = {name: [render_scene(config, (0, 0, i)) for i in range(60)] for name, config in NAMED.items()}
    areas = {name: [np.bincount(s.segments[s.segments >= 0]) for s in found] for name, found in scenes.items()}
    sizes = {name: np.concatenate(found) for name, found in areas.items()}
    assert np.ptp(sizes["shapes_hard"]) > 1.2 * np.ptp(sizes["shapes"])
    counts = {name: [len(s.labels) for s in found] for name, found in scenes.items()}
    assert max(counts["shapes"]) == 4 and max(counts["shapes_hard"]) == 8 and min(counts["shapes_hard"]) >= 1
    assert {label for s in scenes["shapes_hard"] for label in s.labels} == set(range(6))


def test_clutter_is_no_object():
    """Lines change pixels alone: what is behind them, objects or landscape, is annotated as if they were not there."""
    config = ShapesConfig(size=48, max_objects=1)
    behind = before = 0
    for number in range(20):
        scene = render_scene(replace(config, clutter=10), (0, 0, number))
        assert scene.labels == [scene.labels[0]] and set(np.unique(scene.segments)) <= {-2, -1, 0}
        plain = render_scene(config, (0, 0, number))
        horizon = (plain.segments != 0) & (scene.segments != 0)
        assert (plain.segments == scene.segments)[horizon].all()
        changed = np.abs(plain.image.astype(int) - scene.image).max(-1) > 60
        behind += (changed & horizon).sum()
        inside = scene.image[scene.segments == 0].astype(int)
        before += (np.abs(inside - np.median(inside, 0)).max(-1) > 60).any()
    assert behind > 20 * 10 and before > 3


def test_images_of_one_class():
    config = ShapesConfig(one_class=True, classes=3, min_objects=4, max_objects=6, min_scale=0.1, max_scale=0.2)
    labels = [render_scene(config, (0, 0, i)).labels for i in range(30)]
    assert all(len(set(found)) == 1 and 4 <= len(found) <= 6 for found in labels)
    assert {found[0] for found in labels} == {0, 1, 2}


def test_images_from_before_keep_their_bytes():
    """Options that came later change neither an image nor the name of its folder unless they are set."""
    assert ShapesConfig().fingerprint == "c0724ee7ec" and CONFIG.fingerprint == "b4f6b4a425"
    segments = render_scene(CONFIG, (3, 0, 0)).segments.astype(np.int64)
    assert hashlib.sha256(segments.tobytes()).hexdigest()[:12] == "da89cfccdf0c"
    assert ShapesConfig(clutter=1).fingerprint != ShapesConfig().fingerprint
    assert "clutter" not in ShapesConfig().options() and ShapesConfig(clutter=1).options()["clutter"] == 1


def test_objects_stand_out():
    """The mean colour of an object differs from that of the ring around it: there is something to see."""
    config = ShapesConfig(size=64, max_objects=1)
    for number in range(10):
        scene = render_scene(config, (1, 0, number))
        inside = scene.segments == 0
        grown = np.zeros_like(inside)
        grown[1:-1, 1:-1] = (
            inside[:-2, 1:-1] | inside[2:, 1:-1] | inside[1:-1, :-2] | inside[1:-1, 2:] | inside[1:-1, 1:-1]
        )
        ring = grown & ~inside
        image = scene.image.astype(float)
        assert np.abs(image[inside].mean(0) - image[ring].mean(0)).max() > 15


@pytest.mark.parametrize("seed", range(6))
def test_run_lengths(seed):
    rng = np.random.default_rng(seed)
    height, width = (int(n) for n in rng.integers(1, 12, 2))
    mask = rng.random((height, width)) < (0.0, 1.0, 0.2, 0.5, 0.8, 0.95)[seed]
    counts = run_lengths(mask)
    assert sum(counts) == mask.size and min(counts[1:], default=1) > 0
    rle = coco_mask.frPyObjects({"size": [height, width], "counts": counts}, height, width)
    assert (coco_mask.decode(rle) == mask).all()
    assert coco_mask.area(rle) == mask.sum()


def test_parse():
    assert parse_shapes("shapes") == ShapesConfig()
    assert parse_shapes("shapes:size=96,train=20,classes=5") == ShapesConfig(size=96, train=20, classes=5)
    assert parse_shapes("shapes:max_scale=0.6") == ShapesConfig(max_scale=0.6)
    assert parse_shapes("shapes_hard:train=20") == replace(NAMED["shapes_hard"], train=20)
    assert set(NAMED) == set(WITH_BOXES)


@pytest.mark.parametrize(
    ("text", "code", "says"),
    [
        ("shapes:sise=96", "C01", "did you mean 'size'"),
        ("shapes:size", "C01", "expected key=value"),
        ("shapes:size=big", "C02", "a whole number"),
        ("shapes:size=64.5", "C02", "a whole number"),
        ("shapes:max_scale=nan", "C02", "a number"),
        ("shapes:size=8", "C03", "size=8, expected 32 to 2048"),
        ("shapes:classes=7", "C03", "classes=7, expected 1 to 6"),
        ("shapes:classes=0", "C03", "classes=0"),
        ("shapes:train=-1", "C03", "train=-1"),
        ("shapes:min_objects=5", "C03", "min_objects=5, expected 0 to 4"),
        ("shapes:min_scale=0.6", "C03", "min_scale=0.6, expected 0.05 to 0.5"),
        ("shapes:seed=-1", "C03", "seed=-1"),
        ("shapes:min_visible=0", "C03", "min_visible=0"),
        ("shapes_hard:clutter=101", "C03", "clutter=101, expected 0 to 100"),
        ("shapes:one_class=many", "C02", "one_class"),
    ],
)
def test_wrong_options(text, code, says):
    with refused(ConfigError, says, "shapes", code=code):
        data_folder(text)


def test_other_data_are_a_folder(tmp_path):
    assert data_folder(str(tmp_path)) == tmp_path
    assert data_folder("shapeshifters/") == Path("shapeshifters")


def test_a_folder_called_shapes(tmp_path, monkeypatch):
    """It is never passed over for generated images without a word."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REGARD_HOME", str(tmp_path / "home"))
    (tmp_path / "shapes").mkdir()
    with refused(ConfigError, "./shapes", "shapes:", code="C09"):
        data_folder("shapes")
    assert not (tmp_path / "home").exists()
    for given in (Path("shapes"), "./shapes", data_text(Path("shapes"))):
        assert data_folder(given) == Path("shapes")
    assert data_text(Path("shapes_hard")) == "./shapes_hard"
    monkeypatch.setattr(shapes, "cached_folder", lambda name, write: name)
    assert data_folder("shapes:") == data_folder(data_text("shapes:")) == f"shapes-64px-{ShapesConfig().fingerprint}"


def test_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("REGARD_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "data"
    small = replace(CONFIG, train=2, val=1)
    text = "shapes:size=48,train=2,val=1,classes=4,min_objects=1,max_objects=5,seed=3"
    path = data_folder(text)
    assert path.parent == tmp_path / "data" and small.fingerprint in path.name
    before = {file: file.stat().st_mtime_ns for file in path.rglob("*")}
    monkeypatch.setattr(shapes, "write_shapes", lambda *_: pytest.fail("generated again"))
    assert data_folder(text) == path
    assert {file: file.stat().st_mtime_ns for file in path.rglob("*")} == before
    names = {replace(small, **{key: getattr(small, key) * 2}).fingerprint for key in ("size", "train", "seed")}
    assert len(names | {small.fingerprint}) == 4


def test_cache_without_own_folder(monkeypatch):
    monkeypatch.delenv("REGARD_HOME", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache_folder() == Path("/somewhere/regard/data")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "regard" / "data"


def test_made_by_several_at_once(tmp_path, monkeypatch):
    monkeypatch.setenv("REGARD_HOME", str(tmp_path))
    with ThreadPoolExecutor(4) as pool:
        folders = set(pool.map(lambda _: data_folder(FEW), range(4)))
    assert len(folders) == 1
    assert [path.name for path in (tmp_path / "data").iterdir()] == [folders.pop().name]  # no temporary folder is left
    write_shapes(parse_shapes(FEW), tmp_path / "alone")
    assert digest(tmp_path / "alone") == digest(data_folder(FEW))


def test_interrupted(tmp_path, monkeypatch):
    """A folder is whole or absent."""
    monkeypatch.setenv("REGARD_HOME", str(tmp_path))

    def stopped(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shapes, "_write_json", stopped)
        with pytest.raises(KeyboardInterrupt):
            data_folder(FEW)
    assert not list((tmp_path / "data").iterdir())
    assert (data_folder(FEW) / "annotations" / "panoptic_val.json").is_file()


def test_a_full_disk_is_not_hidden(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setenv("REGARD_HOME", str(tmp_path))
    monkeypatch.setattr(shapes, "_write_json", full)
    with pytest.raises(OSError, match="No space"):
        data_folder(FEW)


def test_nothing_is_written_over(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    for target in (tmp_path, tmp_path / "mine.txt"):
        with refused(ConfigError, target, code="C11"):
            write_shapes(CONFIG, target)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
