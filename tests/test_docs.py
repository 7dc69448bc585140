"""The documentation is made from the source: each setting, command, model and error code has its place."""

import ast
import dataclasses
import importlib.util
import re
import shlex
from pathlib import Path

import pytest

from regard.cli import app
from regard.data.generated.shapes import ShapesConfig
from regard.errors import CODES
from regard.models.catalog import list_models
from regard.models.configs import FAMILIES
from regard.recipes.classification import ClassificationRecipe
from regard.recipes.detection import DetectionRecipe

ROOT = Path(__file__).parents[1]
CONFIGS = [DetectionRecipe, ClassificationRecipe, ShapesConfig, *map(type, FAMILIES.values())]
PAGES = sorted((ROOT / "docs").rglob("*.md"))


@pytest.fixture(scope="module")
def build():
    spec = importlib.util.spec_from_file_location("build_docs", ROOT / "docs" / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.__name__)
def test_every_setting_has_a_meaning(build, config):
    meanings = {
        name: text for base in reversed(config.__mro__[:-1]) for name, text in build.field_meanings(base).items()
    }
    missing = [f.name for f in dataclasses.fields(config) if f.name != "model" and not meanings.get(f.name)]
    assert not missing, f"{config.__name__}: write the meaning of {missing} as a comment at the field"


def test_the_settings_page_has_every_setting(build):
    page = build.settings_page()
    for config in CONFIGS:
        for field in dataclasses.fields(config):
            assert field.name == "model" or re.search(rf"`(model\.)?{field.name}`", page), field.name


def test_the_commands_page_has_every_command_and_option(build):
    page = build.commands_page()
    for words in ("quickstart", "train", "evaluate", "predict", "explain", "models", "benchmark", "data check"):
        assert f"## regard {words}\n" in page
    assert "`--threshold`" in page and "| `MODEL` |" in page
    assert not re.search(r"\|  \|$", page, re.M), "an argument without an explanation"


def test_the_models_page_has_every_model(build):
    page = build.models_page()
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


def test_the_errors_page_gives_messages_and_remedies(build):
    page = build.errors_page()
    assert all(f"### {code}\n" in page for code in CODES)
    assert "- `JPEG is cut off before its end`; remedy: `copy or download it again`" in page


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT / "docs")))
def test_commands_are_understood(page):
    blocks = re.findall(r"```console\n(.*?)```", page.read_text(), re.S)
    for line in "\n".join(blocks).splitlines():
        command = re.search(r"\bregard (?!@)(.*)", line.split(" #")[0])
        if command and "pip" not in line and "pytest" not in line:
            words = [word for word in shlex.split(command[1]) if word != "..."]
            app.parse_args(words, exit_on_error=False, print_error=False)


@pytest.mark.parametrize("page", [*PAGES, *ROOT.glob("*.md")], ids=lambda page: str(page.relative_to(ROOT)))
def test_files_exist(page):
    made = {"settings.md", "commands.md", "api.md", "models.md", "errors.md"}  # the strict build checks these
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
        assert Path(target).name in made or (page.parent / target).exists(), f"{page}: {target}"
