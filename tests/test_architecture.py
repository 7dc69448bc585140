"""Imports point down, heavy packages are imported where they are used.

`uv run pytest tests/test_architecture.py -s` prints the rooms, floors and arrows.
"""

import ast
import subprocess
import sys
from pathlib import Path

import regard

ROOT = Path(regard.__file__).parent

# Floors from the ground up: a file may import from floors below its own, and from its own room (a file or folder at
# the top of the package).
FLOORS = {
    "errors, which every room raises": {"errors"},
    "tools that know neither data nor models": {"config", "safe_files", "structures", "attention", "drawing"},
    "the parts of a training, none of which knows another": {"data", "models", "losses", "metrics", "training"},
    "what joins two parts": {"weights", "recipes", "results"},
    "a model over images": {"evaluation", "prediction", "distillation"},
    "what a model looks at": {"explanations"},
    "the verbs": {"runs", "exporting", "serving"},
    "comparisons of many runs, models and files": {"studies", "benchmarks"},
    "the command line": {"cli"},
    "python -m regard": {"__main__"},
}
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS.values()) for room in rooms}
BEFORE = "45 rooms, 261 arrows, 12 floors"  # at commit 7ddb5a2, counted in the same way


def room_of(module: str) -> str:
    return module.split(".")[1] if "." in module else "__init__"


def imports_of(path: Path) -> list[tuple[str, int]]:
    """Modules of ours that a file imports, wherever in the file."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: write the import in full"
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("regard."):
            found.append((node.module, node.lineno))
        elif isinstance(node, ast.ImportFrom) and node.module == "regard":
            found += [(f"regard.{alias.name}", node.lineno) for alias in node.names]
        elif isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names if alias.name.startswith("regard.")]
    return found


def arrows() -> dict[tuple[str, str], str]:
    """Room and imported room -> one place where that is imported. `__init__` at the top, the face, is left out."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        place = path.relative_to(ROOT)
        room = place.parts[0].removesuffix(".py")
        if room == "__init__":
            continue
        for module, line in imports_of(path):
            if room_of(module) not in (room, "__init__", "__version__"):
                found.setdefault((room, room_of(module)), f"{place}:{line} imports {module}")
    return found


def test_imports_point_down():
    found = arrows()
    wrong = [place for (room, other), place in found.items() if FLOOR_OF[other] >= FLOOR_OF[room]]
    assert not wrong, "imports that run up or sideways:\n" + "\n".join(wrong)
    print(f"\nbefore: {BEFORE}\nnow:    {len(FLOOR_OF)} rooms, {len(found)} arrows, {len(FLOORS)} floors, none up")
    for (floor, rooms), number in zip(FLOORS.items(), range(len(FLOORS)), strict=True):
        print(f"{number}  {floor}: {', '.join(sorted(rooms))}")
    assert len(FLOOR_OF) <= 25 and len(found) <= 150 and len(FLOORS) <= 10


def test_every_room_has_a_floor():
    rooms = {path.relative_to(ROOT).parts[0].removesuffix(".py") for path in ROOT.rglob("*.py")} - {"__init__"}
    assert set(FLOOR_OF) == rooms


def test_every_test_file_mirrors_a_source_file_or_folder():
    tests = Path(__file__).parent
    for path in tests.rglob("*/test_*.py"):
        assert (ROOT / path.relative_to(tests).parent).is_dir(), path


def test_models_and_losses_do_not_know_each_other():
    for room, other in (("models", "losses"), ("losses", "models"), ("training", "models"), ("training", "losses")):
        for path in (ROOT / room).glob("*.py"):
            assert not [m for m, _ in imports_of(path) if room_of(m) == other], path


# Verbs of the Python API, each keyword of which users know.
PUBLIC_VERBS = {
    "cli/commands.py evaluate",
    "runs/__init__.py train",
    "evaluation/__init__.py evaluate",
    "explanations/explain.py explain",
    "models/augment.py augment",
    "prediction/predict.py predict",
}


def test_files_and_functions_fit_a_screen():
    """450 lines of a file, 60 of a function, 8 arguments; layers (`__init__` of modules) take as many as they need."""
    wrong = []
    for path in sorted(ROOT.rglob("*.py")):
        place, text = path.relative_to(ROOT).as_posix(), path.read_text()
        if len(text.splitlines()) > 450:
            wrong.append(f"{place} has {len(text.splitlines())} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                lines = node.end_lineno - node.lineno + 1
                names = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
                count = len([name for name in names if name not in ("self", "cls")])
                if lines > 60:
                    wrong.append(f"{place} {node.name} has {lines} lines")
                if count > 8 and node.name != "__init__" and f"{place} {node.name}" not in PUBLIC_VERBS:
                    wrong.append(f"{place} {node.name} has {count} arguments")
    assert not wrong, "\n".join(wrong)


def loaded_by(*commands: str, folder: Path) -> tuple[set[str], list[str]]:
    """Run commands one after the other in a new process; return its heavy packages and the exit codes."""
    code = (
        "import sys\n"
        "import regard\n"
        "from regard.cli import main\n"
        "codes = []\n"
        "for command in sys.argv[1:]:\n"
        "    try:\n"
        "        main(command.split())\n"
        "        codes.append('0')\n"
        "    except SystemExit as ended:\n"
        "        codes.append(str(ended.code or 0))\n"
        "heavy = {'torch', 'torchvision', 'scipy', 'matplotlib', 'hotcoco', 'numpy', 'PIL'} & set(sys.modules)\n"
        "sys.exit(' '.join(codes) + ';' + ' '.join(heavy))\n"
    )
    finished = subprocess.run([sys.executable, "-c", code, *commands], capture_output=True, text=True, cwd=folder)
    codes, heavy = finished.stderr.splitlines()[-1].split(";")
    return set(heavy.split()), codes.split()


def test_help_and_names_are_light(tmp_path):
    """`import regard`, help texts, names and mistyped names load no heavy package."""
    helps = [
        "--help",
        "train --help",
        "study --help",
        "study convergence --help",
        "study",
        "study --list",
        "study attention --full",
        "models",
        "models detr*",
    ]
    mistakes = [
        "models dter", "train detr_resnt50", "train aa_resnet20 --recipe fats", "train detr_tiny --data shapes lrr=1",
        "evaluate detr_resnt50 --data shapes", "distill cache nothing --data x --teacher y --output z",
    ]  # fmt: skip
    heavy, codes = loaded_by(*helps, *mistakes, folder=tmp_path)
    assert codes == ["0"] * len(helps) + ["2"] * len(mistakes)
    assert heavy <= {"numpy", "PIL"}  # of the rooms that check data folders


def test_missing_files_are_answered_without_torch(tmp_path):
    (tmp_path / "cat.jpg").touch()
    commands = {
        "train detr_tiny --data nowhere": "3", "train aa_resnet20 --data nowhere": "3", "data check nowhere": "3",
        "evaluate detr_resnet50 --data nowhere": "3", "evaluate nothing.pth --data shapes": "4",
        "evaluate runs/nothing --data shapes": "2", "predict nothing.pth cat.jpg": "4",
        "predict detr_resnet50 nothing.jpg": "3", "explain detr_resnet50 nothing.jpg": "3",
        "study padding --data nowhere": "3", "report nowhere": "2",
    }  # fmt: skip
    heavy, codes = loaded_by(*commands, folder=tmp_path)
    assert codes == list(commands.values())
    assert not heavy & {"torch", "torchvision", "scipy", "matplotlib", "hotcoco"}


def test_no_pickles_and_no_code_from_files():
    forbidden = (
        "pickle.load",
        "yaml.load(",
        " eval(",
        " exec(",
        "weights_only=False",
        "os.system",
        "shell=True",
    )
    for path in ROOT.rglob("*.py"):
        text = path.read_text()
        assert not [word for word in forbidden if word in text], path
