"""Settings: what is accepted, and what is answered with one clear line."""

from dataclasses import dataclass, field
from typing import Literal

import pytest

from refusals import refused
from regard.config import (
    RENAMED,
    apply_mapping,
    apply_overrides,
    as_words,
    check_choices,
    line_of,
    near_path,
    read_yaml,
    to_mapping,
)
from regard.errors import ConfigError
from regard.models.configs.vit import ViTConfig
from regard.recipes import recipe_for, recipe_from_file
from regard.training.config import TrainingConfig


@dataclass(frozen=True, kw_only=True)
class Inner:
    width: int = 8
    kind: Literal["on", "off", "auto"] = "auto"


@dataclass(frozen=True, kw_only=True)
class Outer:
    lr: float = 0.1
    steps: int = 10
    ema: bool = False
    name: str = "x"
    minutes: float | None = None
    drops: tuple[float, ...] = (0.5,)
    inner: Inner = field(default_factory=Inner)


@pytest.mark.parametrize(
    ("word", "path", "value"),
    [
        ("lr=1e-4", "lr", 1e-4),
        ("lr=1", "lr", 1.0),
        ("steps=3", "steps", 3),
        ("steps=3.0", "steps", 3),
        ("steps=1e3", "steps", 1000),
        ("ema=true", "ema", True),
        ("--ema=off", "ema", False),
        ("name=a=b", "name", "a=b"),
        ("minutes=2", "minutes", 2.0),
        ("minutes=none", "minutes", None),
        ("drops=0.3,1", "drops", (0.3, 1.0)),
        ("drops=0.3", "drops", (0.3,)),
        ("drops=[0.3, 1]", "drops", (0.3, 1.0)),
        ("inner.width=16", "inner.width", 16),
        ("inner.kind=off", "inner.kind", "off"),
    ],
)
def test_accepted(word, path, value):
    found = apply_overrides(Outer(), [word])
    for part in path.split("."):
        found = getattr(found, part)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("word", "code", "names"),
    [
        ("learning_rate=1", "C01", "'learning_rate'"),
        ("stepz=1", "C01", "'steps'"),
        ("inner.widht=1", "C01", "'inner.width'"),
        ("lr", "C01", "key=value"),
        ("=3", "C01", "key=value"),
        ("drops=0.3,,1", "C02", "drops=''"),
        ("drops=0.3,x", "C02", "drops='x'"),
        ("lr=fast", "C02", "lr='fast'"),
        ("lr=nan", "C02", "lr="),
        ("lr=inf", "C02", "lr="),
        ("steps=2.5", "C02", "steps="),
        ("ema=maybe", "C02", "true or false"),
        ("inner=3", "C02", "inner"),
        ("inner.kind=atuo", "C02", "'auto'"),
    ],
)
def test_refused(word, code, names):
    with refused(ConfigError, names, code=code):
        apply_overrides(Outer(), [word])


def test_yaml_types_are_checked_without_loss():
    values = {"lr": "1e-3", "steps": 5, "inner": {"kind": True}}  # YAML 1.1: 1e-3 is text, on is a truth value
    assert apply_mapping(Outer(), values) == Outer(lr=1e-3, steps=5, inner=Inner(kind="on"))
    for wrong in ({"steps": True}, {"ema": 1}, {"name": 3}, {"steps": None}, {"lr": [1]}, {"inner": None}):
        with pytest.raises(ConfigError):
            apply_mapping(Outer(), wrong)


def test_choices_made_in_python():
    check_choices(Inner(kind="on"))
    with refused(ConfigError, "kind", "'of'", "'off'", code="C02"):
        check_choices(Inner(kind="of"))


def test_round_trip(tmp_path):
    import yaml

    config = Outer(lr=3e-5, minutes=1.5, inner=Inner(kind="off"))
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(to_mapping(config)))
    assert apply_mapping(Outer(), read_yaml(path)) == config


# Ten short lines that mean millions of values, if aliases are followed.
BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{c}: &{c} [{','.join(['*' + p] * 9)}]\n" for p, c in zip("abcdef", "bcdefg", strict=True)
)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("lr: 1\nlr: 2\n", "'lr'"),
        ("inner:\n  width: 1\n  width: 2\n", "'width'"),
        ("a: !!python/object/apply:os.system ['true']\n", "python/object/apply:os.system"),
        ("a: !mine 3\n", "!mine"),
        ("a: [1, 2\n", "settings.yaml:2"),
        ("- 1\n- 2\n", "settings.yaml"),
        ("just text", "settings.yaml"),
        ("", "settings.yaml"),
        (BOMB, "10000"),
        ("a: " + "[" * 3000 + "]" * 3000, "nested"),
        ("x" * 1_000_001, "1000001"),
    ],
)  # fmt: skip
def test_hostile_yaml(tmp_path, text, names):
    path = tmp_path / "settings.yaml"
    path.write_text(text)
    before = path.read_bytes()
    with refused(ConfigError, names, code="C12"):
        read_yaml(path)
    assert path.read_bytes() == before


def test_unreadable_files(tmp_path):
    for path in (tmp_path / "missing.yaml", tmp_path):
        with refused(ConfigError, path):
            read_yaml(path)
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00a")
    with refused(ConfigError, "UTF-8", tmp_path / "bytes.yaml"):
        read_yaml(tmp_path / "bytes.yaml")


def test_place_of_a_key(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("lr: 1\ninner:\n  width: 3\n  widht: 4\n")
    assert line_of(path, "inner.widht") == f"{path}:4"
    assert line_of(path, "nothing") == str(path)


def test_a_path_that_is_not_there(tmp_path):
    (tmp_path / "panoptic").mkdir()
    assert near_path(tmp_path / "panoptc") == f"did you mean {tmp_path / 'panoptic'}?"
    assert near_path(tmp_path / "shpes", ["shapes"]) == "did you mean shapes?"
    assert near_path(tmp_path / "none" / "of") == near_path(tmp_path / "xyz") == "check the path"
    assert near_path(tmp_path / "xyz", otherwise="leave it out") == "leave it out"


@pytest.mark.parametrize(
    ("missing", "found"),
    [
        ("photo/", "photos"),
        ("PHOTOS", "photos"),
        ("photo/a.jpg", "photos/a.jpg"),
        ("photos/b.jpg", "photos/a.jpg"),
        ("photo/b.jpg", "photos/a.jpg"),
        ("photo/quite another.png", "photos"),
        ("photo/inner/c.jpg", "photos/inner/c.jpg"),
        ("photos/a.jpg/inner", None),  # below a file
        (".hiden", None),
        ("x" * 300, None),
        ("null\0", None),
    ],
)
def test_the_first_wrong_part_of_a_path_is_corrected(tmp_path, missing, found):
    (tmp_path / "photos" / "inner").mkdir(parents=True)
    for name in ("photos/a.jpg", "photos/inner/c.jpg", ".hidden"):
        (tmp_path / name).touch()
    expected = "check the path" if found is None else f"did you mean {tmp_path / found}?"
    assert near_path(tmp_path / missing) == expected


def test_settings_of_earlier_versions_load_under_their_new_names():
    recipe = recipe_for("deit_nano_patch4_32")
    old = {"least_lr": 1e-6, "drop_at": [0.5], "clip_norm": 0.3, "repeats": 2, "crop_ratio": 0.9}
    new = {"min_lr": 1e-6, "milestones": [0.5], "max_norm": 0.3, "repeated_augmentation": 2, "crop_pct": 0.9}
    assert old.keys() == RENAMED.keys()
    assert apply_mapping(recipe, old) == apply_mapping(recipe, new) != recipe
    with refused(ConfigError, "clip_norm", "max_norm", code="C12"):
        apply_mapping(recipe, {"clip_norm": 0.1, "max_norm": 0.2})


def test_an_error_in_a_renamed_setting_names_its_line(tmp_path):
    (tmp_path / "config.yaml").write_text("name: detr_tiny\nclip_norm: -1\n")
    with pytest.raises(ConfigError) as raised:
        recipe_from_file(tmp_path / "config.yaml")
    assert raised.value.where == f"{tmp_path / 'config.yaml'}:2"


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("num_queries=5", "model.num_queries"), ("model.d_model=64", "model.embed_dim"), ("learning_rate=1", "lr"),
     ("lerning_rate=3", "lr"), ("LR=1", "lr"), ("epoch=3", "epochs"), ("Batch=3", "batch_size")],
)  # fmt: skip
def test_a_setting_of_another_name_is_answered_with_ours(typed, meant):
    with refused(ConfigError, typed.partition("=")[0], f"{meant!r}?", code="C01"):
        apply_overrides(recipe_for("detr_tiny"), [typed])


def test_a_setting_unlike_any_is_answered_with_all():
    with refused(ConfigError, "zzz", "epochs", "model.num_queries", code="C01"):
        apply_overrides(recipe_for("detr_tiny"), ["zzz=1"])


def test_overrides_as_a_mapping():
    own = recipe_for("detr_tiny")
    given = {"lr": 1e-3, "model.num_queries": 50, "milestones": (0.5, 0.75), "model": {"dropout": 0.2}, "minutes": None}
    words = as_words(given)
    assert "lr=0.001" in words and "model.num_queries=50" in words and "model.dropout=0.2" in words
    settings = apply_overrides(own, words)
    assert (settings.lr, settings.model.num_queries, settings.model.dropout) == (1e-3, 50, 0.2)
    assert settings.milestones == (0.5, 0.75) and settings.minutes is None
    assert as_words(["lr=1"]) == as_words({"lr": 1}) == ("lr=1",) and as_words(()) == ()
    for odd in ("lr=1", [("lr", 1)]):
        with refused(ConfigError, "overrides=", '{"lr": 0.001}', code="C01"):
            as_words(odd)


@pytest.mark.parametrize("value", [2**63, -(2**63), 10**400, "9" * 400, 1e300])
def test_whole_numbers_that_no_float_holds(value):
    with refused(ConfigError, "image_size", "at most 2^63 - 1", code="C03"):
        apply_mapping(ViTConfig(), {"image_size": value})


def test_the_largest_whole_number():
    assert apply_mapping(TrainingConfig(), {"seed": 2**63 - 1}).seed == 2**63 - 1


@pytest.mark.parametrize("key", ["on", "1", "2.5", "null", "2026-01-01"])
def test_keys_that_are_no_text(tmp_path, key):
    path = tmp_path / "a.yaml"
    for line in (f"{key}: 1", f"model: {{{key}: 1}}"):
        path.write_text(f"name: resnet20\n{line}\n")
        with refused(ConfigError, "unknown key", code="C01"):
            recipe_from_file(path)
