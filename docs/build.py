"""Build the documentation site: `uv run --group docs python docs/build.py`, then open build/site/index.html.

The pages of `docs/` are copied to `build/docs`. References are written there from the source: settings from the
dataclasses, commands from the command line, the API from docstrings, models from the catalog, errors from the code.
A broken link or anchor fails the build.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import math
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import regard
from regard.cli import app, options_of
from regard.data.generated.shapes import ShapesConfig
from regard.errors import CODES
from regard.models.catalog import WEIGHTS, list_models
from regard.models.configs import FAMILIES
from regard.models.parameter_counts import PARAMETER_COUNTS
from regard.recipes.classification import CLASSIFICATION_RECIPES, ClassificationRecipe
from regard.recipes.detection import DETECTION_RECIPES, DetectionRecipe
from regard.training.config import TrainingConfig

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "regard"
PAGES = ROOT / "build" / "docs"


def main() -> None:
    """Write all pages and run the site generator on them."""
    shutil.rmtree(ROOT / "build" / "docs", ignore_errors=True)
    shutil.copytree(ROOT / "docs", PAGES, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    write_pages(PAGES)
    built = subprocess.run(["zensical", "build", "--clean", "--strict"], cwd=ROOT, capture_output=True, text=True)
    output = built.stdout + built.stderr
    print(output, end="")
    if built.returncode or "griffe:" in output:  # its warnings about docstrings do not count as strict
        sys.exit("error: the site has warnings")


def write_pages(folder: Path) -> None:
    """Write the pages that are made from the source, below `folder`."""
    (folder / "reference").mkdir(exist_ok=True)
    pages = {
        "reference/settings.md": settings_page(),
        "reference/commands.md": commands_page(),
        "reference/api.md": api_page(),
        "reference/models.md": models_page(),
        "reference/errors.md": errors_page(),
        "changelog.md": root_page("CHANGELOG.md"),
        "contributing.md": root_page("CONTRIBUTING.md"),
    }
    for name, text in pages.items():
        (folder / name).write_text(text, encoding="utf-8")


def root_page(name: str) -> str:
    """A page of the repository's root; links into the repository become plain text, for the site has no such files."""
    text = (ROOT / name).read_text(encoding="utf-8")
    text = re.sub(r"\]\(docs/([^)]+)\)", r"](\1)", text)
    return re.sub(r"\[([^\]]+)\]\((?!http|#|[\w/]+\.(?:md|png|jpg))[^)]+\)", r"\1", text)


# Settings


def settings_page() -> str:
    """Every setting: name, type, default and meaning, which is the comment at its field."""
    parts = [
        "# Settings\n",
        "Write settings as `key=value` after a command: `regard train detr_resnet50 --data coco/ lr=5e-5`. Settings of",
        "the network start with `model.`. A run keeps all of its settings in `RUN/config.yaml`. A [recipe](#recipes)",
        "replaces some of the defaults, which are bold below.\n",
        "## Training, all models\n",
        settings_table(TrainingConfig),
        "## Detection\n",
        settings_table(DetectionRecipe, but=TrainingConfig),
        "## Classification\n",
        settings_table(ClassificationRecipe, but=TrainingConfig),
    ]
    for name, config in FAMILIES.items():
        parts += [f"## Network: {name.removesuffix('Config')}\n", settings_table(type(config), prefix="model.")]
    parts += ["## Generated images\n", "As text: `--data shapes:size=96,classes=5`.\n", settings_table(ShapesConfig)]
    parts += ["## Recipes\n", "`regard train MODEL --recipe NAME`.\n", "### Detection recipes\n"]
    parts += [*recipes(DETECTION_RECIPES), "### Classification recipes\n", *recipes(CLASSIFICATION_RECIPES)]
    return "\n".join(parts)


def recipes(named: object) -> list[str]:
    return [f"**{name}**\n\n{inspect.getdoc(make)}\n" for name, make in dict(named).items()]  # type: ignore[call-overload]


def settings_table(config: type, *, but: type | None = None, prefix: str = "") -> str:
    """A table of the fields of a dataclass, without those of the class `but`."""
    known = {field.name for field in dataclasses.fields(but)} if but else set()  # type: ignore[arg-type]
    meanings = field_meanings(config)
    rows = ["| setting | values, default | meaning |", "| --- | --- | --- |"]
    for field in dataclasses.fields(config):
        if field.name in known or field.name == "model":
            continue
        meaning = meanings.get(field.name, "")
        rows.append(f"| `{prefix}{field.name}` | {values_of(field)} | {meaning} |")
    return "\n".join(rows) + "\n"


def values_of(field: dataclasses.Field) -> str:
    """The values that a setting takes, the default in bold."""
    kind, default = str(field.type), field.default
    if kind.startswith("Literal"):
        choices = re.findall(r"['\"]([^'\"]+)['\"]", kind)
        return ", ".join(f"**{choice}**" if choice == default else choice for choice in choices)
    names = {"int": "whole number", "float": "number", "bool": "true or false", "str": "text"}
    words = kind.removesuffix(" | None").removeprefix("tuple[").removesuffix(", ...]")
    text = (
        f"{names.get(words, words)}{'s, with commas' if 'tuple' in kind else ''}{' or none' if 'None' in kind else ''}"
    )
    if default is dataclasses.MISSING:
        return text
    parts = default if isinstance(default, tuple) else [default]
    shown = [f"{part:.3g}" if isinstance(part, float) else str(part) for part in parts]
    return f"{text}, **{','.join(shown)}**".replace("None", "none").replace("True", "true").replace("False", "false")


def field_meanings(config: type) -> dict[str, str]:
    """The meaning of each field: the comment behind it or above it, or its line in the docstring of the class."""
    meanings: dict[str, str] = {}
    for names, text in re.findall(r"^([a-z_]+(?:, [a-z_]+)*): (.+(?:\n    .+)*)", inspect.getdoc(config) or "", re.M):
        for name in names.split(", "):
            meanings[name] = " ".join(text.split())
    above = ""
    for line in inspect.getsource(config).splitlines():
        field = re.match(r"    ([a-z_]+): [^#]*(?:# (.*))?$", line)
        comment = re.match(r"    # (.*)$", line)
        if field and (field[2] or above):
            meanings[field[1]] = field[2] or above
        above = f"{above} {comment[1]}".strip() if comment else ""
    return {name: text.replace("|", "\\|") for name, text in meanings.items()}


# Commands


def commands_page() -> str:
    """Every command with its help text."""
    parts = ["# Commands\n", "In a checkout, write `uv run regard ...`. `regard COMMAND --help` prints the same.\n"]
    for words, function in commands():
        text = inspect.getdoc(function) or ""
        summary, _, arguments = text.partition("Args:")
        parts += [f"## regard {' '.join(words)}\n", summary.strip() + "\n", "| argument | default | meaning |"]
        parts.append("| --- | --- | --- |")
        explained = argument_meanings(arguments)
        signature = inspect.signature(function).parameters
        for name, group in options_of(function):
            if group is None:
                option = shown_option(signature[name])
                default = signature[name].default
                meaning = explained.get(name, "settings as key=value" if name == "settings" else "")
            else:  # a field of a dataclass
                option, default = f"--{name}", getattr(group, name)
                meaning = argument_meanings((inspect.getdoc(group) or "").partition("Args:")[2])[name]
            value = "" if default in (None, False, inspect.Parameter.empty) else f"`{default}`"
            parts.append(f"| `{option.replace('_', '-')}` | {value} | {meaning.replace('|', chr(92) + '|')} |")
        parts.append("")
    return "\n".join(parts)


def argument_meanings(text: str) -> dict[str, str]:
    """The meaning of each argument in the `Args:` section of a docstring."""
    text = inspect.cleandoc(text.partition("Raises:")[0])
    return {name: " ".join(words.split()) for name, words in re.findall(r"^(\w+): (.+(?:\n .+)*)", text, re.M)}


def shown_option(parameter: inspect.Parameter) -> str:
    """How a parameter of a command is written: `MODEL`, `IMAGES ...` or `--data`."""
    if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
        return f"{parameter.name.upper()} ..."
    return parameter.name.upper() if parameter.kind.name.startswith("POSITIONAL") else f"--{parameter.name}"


def commands(group: object = app, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], object]]:
    """The words and the function of every command."""
    for name in group:  # type: ignore[attr-defined]
        if name.startswith("-"):
            continue
        inner = group[name]  # type: ignore[index]
        if inner.default_command is not None:
            yield (*words, name), inner.default_command
        else:
            yield from commands(inner, (*words, name))


# Python


def api_page() -> str:
    """The public names, each rendered from its docstring."""
    parts = ["# Python API\n", "`import regard` is cheap: torch is imported with the first name that needs it.\n"]
    parts += [f"::: {home}.{name}\n" for name, home in sorted(regard._HOMES.items())]
    for module in ("attention", "losses", "models"):
        parts.append(f"## regard.{module}\n")
        parts += [f"::: {path}\n    options:\n      heading_level: 3\n" for path in sorted(exported(module))]
    return "\n".join(parts)


def exported(module: str) -> list[str]:
    """The full paths of what a package exports in its `__init__`."""
    tree = ast.parse((SOURCE / module / "__init__.py").read_text(encoding="utf-8"))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    inner = [node for node in imports if (node.module or "").startswith("regard.")]
    return [f"{node.module}.{alias.name}" for node in inner for alias in node.names]


def models_page() -> str:
    """Every named model with its parameters, released weights and published scores."""
    parts = ["# Models\n", "`regard.create(NAME)` builds a model, `regard.load(NAME)` downloads released weights.\n"]
    parts += ["| model | parameters | released weights | published |", "| --- | ---: | --- | --- |"]
    for name in list_models():
        weights = WEIGHTS.get(name)
        scores = ", ".join(f"{key} {value}" for key, value in weights.scores.items()) if weights else ""
        file = f"`{weights.file_name}`" if weights else ""
        parts.append(f"| `{name}` | {PARAMETER_COUNTS[name] / 1e6:.1f} M | {file} | {scores} |")
    return "\n".join(parts) + "\n"


# Errors


def errors_page() -> str:
    """Every error code: its meaning, and the messages and remedies that carry it."""
    parts = [
        "# Errors\n",
        "An error is one line: what was found, where, and what to do. `error[C01]` names the case; look it up here.",
        "`{...}` stands for a name or number. Exit codes: 2 settings, 3 data, 4 weights and checkpoints, 5 diverged,",
        "6 machine.\n",
    ]
    messages = error_messages()
    titles = {"I": "Images", "A": "Annotations and data sets", "C": "Settings", "K": "Weights", "T": "Training"}
    for letter, title in titles.items():
        parts.append(f"## {title}\n")
        for code, meaning in CODES.items():
            if code.startswith(letter):
                parts += [f"### {code}\n", f"{meaning}\n"]
                parts += [f"- {message}" for message in messages.get(code, [])] + [""]
    return "\n".join(parts)


def error_messages() -> dict[str, list[str]]:
    """The messages in the source by code: `what` and `remedy` of each call that names the code."""
    found: dict[str, dict[str, str | None]] = {}
    for path in sorted(SOURCE.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
        constants = texts_in(tree.body, math.inf)
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            around = [f for f in functions if f.lineno <= call.lineno <= (f.end_lineno or 0)]
            if not around:
                continue
            inside = min(around, key=length)
            note_call(call, {**constants, **texts_in(list(ast.walk(inside)), call.lineno)}, found)
    return {
        code: [f"`{what}`" + (f"; remedy: `{remedy}`" if remedy else "") for what, remedy in sorted(messages.items())]
        for code, messages in found.items()
    }


def length(function: ast.FunctionDef) -> int:
    return (function.end_lineno or 0) - function.lineno


def texts_in(nodes: Sequence[ast.AST], before: float) -> dict[str, str]:
    """Names such as `what` and `remedy` with the text that was last assigned to each before a line."""
    texts: dict[str, str] = {}
    assigned = [node for node in nodes if isinstance(node, ast.Assign) and node.lineno < before]
    for node in sorted(assigned, key=lambda node: node.lineno):
        target, value = node.targets[0], node.value
        pairs = (
            zip(target.elts, value.elts, strict=False)
            if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple)
            else [(target, value)]
        )
        for name, content in pairs:
            if isinstance(name, ast.Name) and (text := text_of(content, texts)):
                texts[name.id] = text
    return texts


def note_call(call: ast.Call, texts: dict[str, str], found: dict[str, dict[str, str | None]]) -> None:
    """Add the message of a call such as `ConfigError(what, remedy=..., code="C01")` or `report.add("A09", ...)`."""
    keywords = {keyword.arg: keyword.value for keyword in call.keywords}
    arguments = [keywords["code"]] if "code" in keywords else call.args
    code = next((a.value for a in arguments if isinstance(a, ast.Constant) and a.value in CODES), None)
    candidates = [text for argument in call.args if (text := text_of(argument, texts)) and text not in CODES]
    what = next((text for text in candidates if " " in text or "code" in keywords), None)
    if code is None or what is None:
        return
    remedy = text_of(keywords["remedy"], texts) if "remedy" in keywords else None
    if isinstance(call.func, ast.Name) and call.func.id == "unknown_name":
        what, remedy = f"unknown {what} ...", remedy or "did you mean ...?"
    messages = found.setdefault(str(code), {})
    messages[what] = remedy or messages.get(what)


def text_of(node: ast.AST, texts: dict[str, str]) -> str | None:
    """A text or f-string of the source with its values as `{name}`; None for anything else."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.Name):
        return texts.get(node.id)
    if isinstance(node, ast.JoinedStr):
        parts = []
        for value in node.values:
            inner = value.value if isinstance(value, ast.FormattedValue) else value
            short = ast.unparse(inner) if isinstance(inner, (ast.Name, ast.Attribute)) else "..."
            parts.append(str(inner.value) if isinstance(inner, ast.Constant) else f"{{{short.rsplit('.', 1)[-1]}}}")
        return "".join(parts).replace("{...}", "...")
    return None


if __name__ == "__main__":
    sys.exit(main())
