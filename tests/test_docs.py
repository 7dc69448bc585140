"""The documentation is made from the source: each setting, command, model and error code has its place."""

import ast
import dataclasses
import re
from pathlib import Path

import pytest

import regard
from documents import blocks, console_lines, regard_commands
from error_page import errors_page, messages_of_source
from links import REFERENCE, broken_links, to_reference
from reference_pages import FAMILY_TITLES, commands_page, field_meanings, models_page, settings_page
from regard.cli import app
from regard.config import apply_overrides
from regard.data.generated.shapes import ShapesConfig
from regard.data.images import read_image
from regard.errors import CODES, RegardError
from regard.models.catalog import list_models
from regard.models.configs import FAMILIES
from regard.recipes.classification import ClassificationRecipe
from regard.recipes.detection import DetectionRecipe
from regard.recipes.retinanet import RetinaNetRecipe
from regard.training.config import TrainingConfig
from regard.weights.load import load

ROOT = Path(__file__).parents[1]
CONFIGS = [DetectionRecipe, RetinaNetRecipe, ClassificationRecipe, ShapesConfig, *map(type, FAMILIES.values())]
PAGES = sorted((ROOT / "docs").rglob("*.md"))


def commands(group=app, words=()):
    """The words of every command."""
    for name in group:
        if not name.startswith("-"):
            if group[name].default_command is not None:
                yield (*words, name)
            yield from commands(group[name], (*words, name))


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.__name__)
def test_every_setting_has_a_meaning(config):
    meanings = field_meanings(config)
    missing = [f.name for f in dataclasses.fields(config) if f.name != "model" and not meanings.get(f.name)]
    assert not missing, f"{config.__name__}: write the meaning of {missing} as a comment at the field"


def test_the_settings_page_has_every_setting_with_its_default():
    page = settings_page()
    for config in CONFIGS:
        for field in dataclasses.fields(config):
            assert field.name in ("model", "name") or re.search(rf"\| `(model\.)?{field.name}` \|", page), field.name
    assert re.search(r"\| `amp` \| `auto` \| \w.* \| `auto`, `off`, `bf16`, `fp16` \|", page)
    assert re.search(r"\| `minutes` \| `none` \| \w.* \| number or `none` \|", page)
    assert re.search(r"\| `model.layers` \| `3,4,6,3` \| \w.* \| whole numbers with commas \|", page)
    assert re.search(r"\| `log_to` \| `none` \| \w.* \| some of `tensorboard`, .* with commas, or `none` \|", page)
    assert FAMILY_TITLES.keys() == FAMILIES.keys()


def test_the_commands_page_explains_every_command_and_argument():
    page = commands_page()
    named = list(commands())
    assert len(named) > 10
    for words in named:
        assert re.search(rf"^#+ regard {' '.join(words)}$", page, re.M), words
    arguments = re.findall(r"^\* `(.+?)`(.*)$", page, re.M)
    assert len(arguments) > 50
    unexplained = [name for name, meaning in arguments if not re.match(r": \S", meaning)]
    assert not unexplained


def test_the_models_page_has_every_model():
    page = models_page()
    assert all(f"| `{name}` |" in page for name in list_models())


def test_every_error_code_has_a_meaning():
    used = set()
    for path in (ROOT / "src").rglob("*.py"):
        if path.name == "errors.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                used |= set(re.findall(r"^[ACIKT]\d\d$", node.value))
    types_of_tensors = {"I16", "I32", "I64"}  # names in safetensors; two of them are error codes too
    assert used - set(CODES) <= types_of_tensors
    assert not set(CODES) - used, "codes that nothing raises"


def test_every_error_code_has_messages_on_its_page():
    messages = messages_of_source()
    assert not [code for code in CODES if not messages[code]]
    page = errors_page()
    assert all(re.search(rf"^### {code}: .+ {{ #{code.lower()} }}\n\n(Exit code \d:|`)", page, re.M) for code in CODES)


@pytest.mark.parametrize(
    ("code", "cause"),
    [
        ("C01", lambda folder: apply_overrides(TrainingConfig(), ["lt=1"])),
        ("C03", lambda folder: apply_overrides(TrainingConfig(), ["epochs=-1"])),
        ("I01", lambda folder: read_image(folder / "empty")),
        ("I03", lambda folder: read_image(folder / "page")),
        ("K03", lambda folder: load(folder / "empty.pth")),  # the code is handed on as an argument
        ("K06", lambda folder: load(folder / "page.safetensors")),
    ],
)
def test_the_errors_page_has_the_message_remedy_and_exit_code_of_a_real_error(tmp_path, code, cause):
    for name, content in {"empty": b"", "page": b"<html>", "empty.pth": b"", "page.safetensors": b"<html>"}.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(RegardError) as caught:
        cause(tmp_path)
    error = caught.value
    assert error.code == code
    assert any(
        fits(message.what, error.what) and fits(message.remedy, error.remedy or "")
        for message in messages_of_source()[code]
        if message.outcome == str(error.exit_code)
    ), error


def fits(template, text):
    """Whether a text is a template with values in place of the names in braces."""
    return re.fullmatch(".*".join(map(re.escape, re.split(r"{[^}]*}", template))), text) is not None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT / "docs")))
def test_commands_are_understood_and_can_be_pasted(page):
    text = page.read_text()
    for words in regard_commands(text):
        app.parse_args(words, exit_on_error=False, print_error=False)
    starts = r"(OMP_NUM_THREADS=1 )?(uv (run|add|sync|pip install) |pip install )"
    assert not [line for line in console_lines(text) if not re.match(starts, line)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT / "docs")))
def test_python_names_exist(page):
    for block in blocks(page.read_text(), "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "regard":
                assert hasattr(regard, node.attr), node.attr
            elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("regard"):
                exec(ast.unparse(node))


@pytest.mark.parametrize("page", [*PAGES, *sorted(ROOT.glob("*.md"))], ids=lambda page: str(page.relative_to(ROOT)))
def test_files_exist(page):
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / target).exists(), f"{page}: {target}"


def test_links_to_the_source_lead_to_pages_of_reference_in_the_site():
    made = re.findall(r'"(reference/\w+\.md)"', (ROOT / "docs" / "build.py").read_text())
    for file, page in REFERENCE.items():
        assert (ROOT / file).exists() and page.partition("#")[0] in made
        assert to_reference(f"[x](../../{file}) [y](../{file})") == f"[x](../{page}) [y]({page})"
    assert set(made) == {page.partition("#")[0] for page in REFERENCE.values()}
    used = {file for page in PAGES for file in re.findall(r"\]\((?:\.\./)+(src/[^)]+)\)", page.read_text())}
    assert used == set(REFERENCE)
    assert (
        to_reference("[a](../guide/a.md) [b](../../src/nothing.py)") == "[a](../guide/a.md) [b](../../src/nothing.py)"
    )


def test_broken_links_of_a_built_site_are_found(tmp_path):
    (tmp_path / "guide").mkdir()
    (tmp_path / "guide/detect.html").write_text('<h1 id="top">Detect</h1><a href="../index.html#home">home</a>')
    (tmp_path / "a.png").write_bytes(b"")
    good = '<p id="home"><a href="guide/detect.html#top">x</a><a href="#home">x</a><img src="a.png">'
    (tmp_path / "index.html").write_text(good)
    assert not list(broken_links(tmp_path))
    for target in ("nowhere.html", "guide/detect.html#nowhere", "#nowhere", "b.png", "guide"):
        (tmp_path / "index.html").write_text(f'{good}<img src="{target}">')
        assert list(broken_links(tmp_path)) == [f"index.html: broken link {target}"]
