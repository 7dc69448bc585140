"""The application and its groups of commands."""

from __future__ import annotations

from typing import Annotated

from cyclopts import App, Parameter

from regard import __version__

Settings = Annotated[str, Parameter(help="Settings as key=value, such as lr=2e-4 model.num_queries=300.")]


def _version() -> str:
    """Return the versions of regard and torch, and the device that `device=auto` takes."""
    import torch

    from regard.training.distributed import choose_device

    return f"regard {__version__}, torch {torch.__version__}, device {choose_device('auto')}"


app = App(
    name="regard",
    help="Vision models built on attention. With `--debug` any command shows where in the code an error arose.",
    version=_version,
    suppress_keyboard_interrupt=False,
)
data_app = App(name="data", help="Make and check data sets.")
app.command(data_app)
study_app = App(name="study", help="Comparisons, each as one command.")
app.command(study_app)
distill_app = App(name="distill", help="Prepare the training of a student.")
app.command(distill_app)
