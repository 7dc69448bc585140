"""The house stands: imports point down, heavy packages are imported where they are used."""

import ast
import subprocess
import sys
from pathlib import Path

import regard

ROOT = Path(regard.__file__).parent

# Floors of the house, from the ground up. A module may import from floors below its own, and within its own folder.
FLOORS = [
    {"errors"},
    {"config", "categories", "outputs", "boxes", "batches", "folders"},
    {"attention", "panoptic_segments"},
    {"models", "losses", "data", "training", "evaluation", "pictures"},
    {"mask_pictures"},
    {
        "results", "classification_results", "mask_results", "segmentation_results", "loading", "detection_batches",
        "detection_pictures", "classification_pictures", "classification_recipes", "imagenet_names",
    },
    {"detection_judging", "classification_batches"},
    {"evaluation_batches"},
    {"classification_evaluation"},
    {"detection", "prediction", "recipes", "teachers"},
    {"answers", "classifier_features", "prediction_files", "explanations"},
    {"classification"},
    {"detection_runs", "classification_runs", "classification_judging"},
    {"runs"},
    {"quickstart", "studies", "benchmarks"},
    {"cli"},
    {"__main__"},
]  # fmt: skip
FLOOR_OF = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}


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
        elif isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names if alias.name.startswith("regard.")]
    return found


def test_imports_point_down():
    wrong = []
    for path in ROOT.rglob("*.py"):
        place = path.relative_to(ROOT)
        if place.name == "__init__.py" and len(place.parts) == 1:
            continue  # the face of the house
        room = place.parts[0].removesuffix(".py")
        assert room in FLOOR_OF, f"{place} has no floor yet: give it one in FLOORS"
        for module, line in imports_of(path):
            other = room_of(module)
            if other != room and FLOOR_OF[other] >= FLOOR_OF[room]:
                wrong.append(f"{place}:{line} imports {module}")
    assert not wrong, "imports that run up or sideways:\n" + "\n".join(wrong)


def test_every_room_exists():
    rooms = {path.relative_to(ROOT).parts[0].removesuffix(".py") for path in ROOT.rglob("*.py")} - {"__init__"}
    assert set(FLOOR_OF) == rooms


def test_models_and_losses_do_not_know_each_other():
    for room, other in (("models", "losses"), ("losses", "models"), ("training", "models"), ("training", "losses")):
        for path in (ROOT / room).glob("*.py"):
            assert not [m for m, _ in imports_of(path) if room_of(m) == other], path


def test_help_is_light():
    """`regard --help` and `import regard` load neither torch nor any other heavy package."""
    code = (
        "import sys\n"
        "import regard\n"
        "from regard.cli import main\n"
        "try:\n"
        "    main(['--help'])\n"
        "except SystemExit as ended:\n"
        "    assert not ended.code\n"
        "heavy = {'torch', 'torchvision', 'scipy', 'matplotlib', 'hotcoco', 'numpy', 'PIL'} & set(sys.modules)\n"
        "sys.exit(f'imported: {heavy}' if heavy else 0)\n"
    )
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr


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
