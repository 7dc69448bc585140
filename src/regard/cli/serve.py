"""`regard serve`: models behind HTTP."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from regard.cli.groups import app
from regard.errors import MachineError, install_command
from regard.serving.options import ServingOptions

PACKAGES = {  # of the extra `serve`: module -> name of its distribution
    "fastapi": "fastapi", "uvicorn": "uvicorn", "python_multipart": "python-multipart",
    "prometheus_client": "prometheus-client", "hotcoco": "hotcoco",
}  # fmt: skip


@app.command
def serve(
    *checkpoints: str,
    options: Annotated[ServingOptions | None, Parameter(name="*")] = None,
    device: str = "auto",
) -> None:
    """Serve models over HTTP until Ctrl-C or SIGTERM: predictions and attention of images that clients send.

    Args:
        checkpoints: runs, weights files, .onnx files or names of models with released weights, each also as NAME=PATH;
            the newest run of `regard quickstart` if none is given, else the example in this package.
        device: auto, cpu, cuda, cuda:0 or mps.
    """
    missing = [name for module, name in PACKAGES.items() if importlib.util.find_spec(module) is None]
    if missing:
        what = f"serving needs the package{'s' if len(missing) > 1 else ''} {', '.join(missing)}"
        raise MachineError(what, remedy=install_command(*missing))
    from regard.serving.sources import named_sources
    from regard.weights.source import check_source

    sources = named_sources(checkpoints or (_quickstart(),))
    for source in sources.values():
        check_source(source)
    from regard.serving.server import serve
    from regard.weights.load import load_on

    serve(sources, lambda source: load_on(source, device)[0], options or ServingOptions())


def _quickstart() -> str:
    """Return the newest run of `regard quickstart` here that has a checkpoint, or the example if there is none."""
    runs = [path for path in Path("runs").glob("quickstart*") if any(path.glob("checkpoints/*/manifest.json"))]
    return str(max(runs, key=lambda path: path.stat().st_mtime)) if runs else "example"
