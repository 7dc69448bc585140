"""The pages of reference: settings from the dataclasses, commands from the command line, the API from docstrings,
models from the catalog."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import regard
from regard.cli import app
from regard.data.generated.shapes import ShapesConfig
from regard.models.catalog import PAPER_RESULTS, WEIGHTS
from regard.models.configs import CONFIGS, FAMILIES
from regard.models.parameter_counts import PARAMETER_COUNTS
from regard.recipes.classification import CLASSIFICATION_RECIPES, ClassificationRecipe
from regard.recipes.detection import DETECTION_RECIPES, DetectionRecipe
from regard.recipes.retinanet import RETINANET_RECIPES, RetinaNetRecipe
from regard.training.config import TrainingConfig

SOURCE = Path(regard.__file__).parent
FAMILY_TITLES = {
    "DETRConfig": "DETR",
    "DETRDemoConfig": "DETR, the demo of the paper",
    "RetinaNetConfig": "RetinaNet, attention-augmented and plain",
    "ResNetConfig": "ResNet, attention-augmented and plain",
    "WideResNetConfig": "Wide ResNet, attention-augmented and plain",
    "MnasNetConfig": "MnasNet, attention-augmented and plain",
    "EfficientNetConfig": "EfficientNet-Lite0",
    "SANConfig": "SAN, networks of vector attention",
    "ViTConfig": "ViT, DeiT and DeiT III",
}
COMMANDS = ("quickstart", "train", "evaluate", "predict", "explain", "models", "data", "distill", "study", "benchmark")
VERBS = ("create", "load", "list_models", "train", "evaluate", "predict", "explain", "augment")
EXCEPTIONS = ("RegardError", "ConfigError", "DataError", "CheckpointError", "DivergedError", "MachineError")
RESULTS = ("Detections", "Segmentation", "Classification")
LAYERS = {"attention": "Attention layers", "losses": "Losses and matching", "models": "Models and their outputs"}


# Settings


def settings_page() -> str:
    """Return tables of all settings: name, values, default, and the meaning from the comment at the field."""
    parts = [
        "# Settings\n",
        "Write settings as `key=value` after `regard train MODEL --data DIR`: `lr=5e-5 model.num_queries=50`. A",
        "[recipe](#recipes) replaces some of these defaults. A run keeps all of its settings in `RUN/config.yaml`.\n",
        "## Training\n",
        "For all models.\n",
        settings_table(TrainingConfig),
        "## Detection and segmentation\n",
        settings_table(DetectionRecipe, without=TrainingConfig),
        "### RetinaNet\n",
        settings_table(RetinaNetRecipe, without=TrainingConfig),
        "## Classification\n",
        settings_table(ClassificationRecipe, without=TrainingConfig),
        "## Networks\n",
        "The [models](models.md) are rows of these settings.\n",
    ]
    for family, config in FAMILIES.items():
        parts += [f"### {FAMILY_TITLES[family]}\n", settings_table(type(config), prefix="model.")]
    parts += [
        "## Generated images\n",
        "Write them as text: `--data shapes:size=96,classes=5`. The defaults are those of `shapes`; `shapes_hard` has "
        "others, in `data/generated/shapes.py`.\n",
        settings_table(ShapesConfig),
        "## Recipes\n",
        "A recipe is a published or tried training: `regard train MODEL --recipe NAME`.\n",
        *recipes("Detection and segmentation", DETECTION_RECIPES),
        *recipes("RetinaNet", RETINANET_RECIPES),
        *recipes("Classification", CLASSIFICATION_RECIPES),
    ]
    return "\n".join(parts)


def settings_table(config: type, *, without: type | None = None, prefix: str = "") -> str:
    """Return a table of the fields of a dataclass, without those of the class `without`."""
    known = {field.name for field in dataclasses.fields(without)} if without else set()
    meanings = field_meanings(config)
    rows = ["| setting | default | meaning | values |", "| --- | --- | --- | --- |"]
    for field in dataclasses.fields(config):
        if field.name not in known | {"model", "name"}:  # the network has a table of its own; the name is MODEL
            meaning = meanings.get(field.name, "").rstrip(".")
            rows.append(f"| `{prefix}{field.name}` | {default_of(field)} | {meaning} | {values_of(str(field.type))} |")
    return "\n".join(rows) + "\n"


def values_of(kind: str) -> str:
    """Return the values of an annotation in words: `int | None` is "whole number or none"."""
    if "Literal" in kind:
        choices = ", ".join(f"`{choice}`" for choice in re.findall(r"['\"]([^'\"]+)['\"]", kind))
        return f"some of {choices}, with commas, or `none`" if kind.startswith("tuple") else choices
    names = {"int": "whole number", "float": "number", "bool": "`true`, `false`", "str": "text"}
    inner = kind.removesuffix(" | None")
    word = names[inner.removeprefix("tuple[").removesuffix(", ...]")]
    return f"{word}{'s with commas' if 'tuple' in kind else ''}{' or `none`' if inner != kind else ''}"


def default_of(field: dataclasses.Field) -> str:
    """Return the default as one writes it after `=`."""
    if field.default in (dataclasses.MISSING, ""):
        return "required"
    if isinstance(field.default, bool) or field.default is None:
        return f"`{str(field.default).lower()}`"
    parts = field.default if isinstance(field.default, tuple) else (field.default,)
    return f"`{','.join(f'{part:.3g}' if isinstance(part, float) else str(part) for part in parts)}`"


def field_meanings(config: type) -> dict[str, str]:
    """Return the meaning of each field: the comment behind or above it, or its line in the docstring of the class."""
    meanings: dict[str, str] = {}
    for base in reversed(config.__mro__[:-1]):
        text = inspect.getdoc(base) or ""
        for names, words in re.findall(r"^ *([a-z_]+(?:, [a-z_]+)*): (.+(?:\n {4,}.+)*)", text, re.M):
            meanings |= dict.fromkeys(names.split(", "), " ".join(words.split()))
        above = ""
        for line in inspect.getsource(base).splitlines():
            field = re.match(r"    ([a-z_0-9]+): [^#]*(?:# (.*))?$", line)
            comment = re.match(r"    # (.*)$", line)
            if field and (field[2] or above):
                meanings[field[1]] = field[2] or above
            above = f"{above} {comment[1]}".strip() if comment else ""
    return {name: words.replace("|", "\\|") for name, words in meanings.items()}


def recipes(title: str, named: Mapping[str, Callable]) -> list[str]:
    """Return a section of recipes with their docstrings. Commands in them become blocks of code."""
    parts = [f"### Recipes: {title.lower()}\n"]
    for name, make in named.items():
        text = re.sub(r"^ *((?:regard|torchrun) )", r"    \1", inspect.getdoc(make) or "", flags=re.M)
        parts.append(f"**`{name}`** {text}\n")
    return parts


# Commands


def commands_page() -> str:
    """Return every command with its arguments, as cyclopts documents the application."""
    text = app.generate_docs(output_format="markdown")
    text = re.sub(r", --empty-[\w-]+(?=`)| \*\[default: False\]\*", "", text)
    sections = {part.split(maxsplit=3)[2]: part for part in re.split(r"^(?=## regard )", text, flags=re.M)[1:]}
    rest = sorted(sections.keys() - set(COMMANDS))
    parts = [
        "# Commands\n",
        "In a checkout write `uv run regard` in place of `regard`. `regard COMMAND --help` prints the same. Add",
        "`--debug` to any command to see where in the code an error arose.\n",
        *(sections[name] for name in (*COMMANDS, *rest)),
    ]
    return "\n".join(parts)


# Python


def api_page() -> str:
    """Return directives for mkdocstrings: the verbs, what they return, errors, and the layers to build with."""
    home = {_name(path): path for path in exported("")}
    parts = ["# Python API\n", "`import regard` is light: torch is imported by the first name that needs it.\n"]
    parts += [_directive(home[name], 2) for name in VERBS]
    parts += ["## Results\n", "`regard.predict` returns one of three results, `regard.train` a run.\n"]
    parts += map(_directive, ("regard.results.result.Result", *(home[n] for n in RESULTS), "regard.runs.run.Run"))
    parts += ["## Options of evaluate\n"]
    parts += [_directive(f"regard.evaluation.options.{n}EvaluationOptions") for n in ("Detection", "Classification")]
    parts += ["## Exceptions\n", "Each [code](errors.md) has an explanation.\n"]
    parts += [_directive(f"regard.errors.{name}") for name in EXCEPTIONS]
    for module, title in LAYERS.items():
        paths = sorted(exported(module), key=lambda path: _name(path).lower())
        parts += [f"## {title}\n", f"Import them from `regard.{module}`.\n", *map(_directive, paths)]
    return "\n".join(parts)


def exported(module: str) -> list[str]:
    """Return the full paths of what a package exports in its `__init__`."""
    tree = ast.parse((SOURCE / module / "__init__.py").read_text(encoding="utf-8"))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    own = [node for node in imports if (node.module or "").startswith("regard.")]
    return list(dict.fromkeys(f"{node.module}.{alias.name}" for node in own for alias in node.names))


def _directive(path: str, level: int = 3) -> str:
    return f"::: {path}\n    options:\n      heading_level: {level}\n"


def _name(path: str) -> str:
    return path.rsplit(".", 1)[1]


# Models


def models_page() -> str:
    """Return every named model with its parameters, released weights and published scores, by family."""
    parts = [
        "# Models\n",
        "`regard.create(NAME)` builds a model with random weights. `regard.load(NAME)` downloads released weights once",
        "and checks their hash. Scores are those that the authors published, in percent on COCO val2017 or ImageNet;",
        "after `paper` stand those, and the number of parameters, of weights that were not released.\n",
    ]
    for family, named in itertools.groupby(CONFIGS.items(), lambda item: type(item[1]).__name__):
        parts += [f"## {FAMILY_TITLES[family]}\n", "| model | parameters | released weights | published |"]
        parts += ["| --- | ---: | --- | --- |", *(_model_row(name) for name, _ in named), ""]
    return "\n".join(parts)


def _model_row(name: str) -> str:
    weights = WEIGHTS.get(name)
    paper = PAPER_RESULTS.get(name)
    parts = [_scores(weights.scores)] if weights else []
    parts += [f"paper: {paper.parameters} M, {_scores(paper.scores)}"] if paper else []
    file = f"`{weights.file_name}`" if weights else ""
    return f"| `{name}` | {PARAMETER_COUNTS[name] / 1e6:.1f} M | {file} | {'; '.join(parts)} |"


def _scores(scores: Mapping[str, float]) -> str:
    return ", ".join(f"{key} {value:.1f}" for key, value in scores.items())
