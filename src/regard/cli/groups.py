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
    help="Vision models built on attention. Add `--debug` to any command to see where in the code an error arose.",
    version=_version,
    default_parameter=Parameter(negative=""),  # no --no-FLAG beside each flag
    suppress_keyboard_interrupt=False,
)
app.register_install_completion_command(help="Complete commands and options with the Tab key: bash, zsh or fish.")
data_app = App(name="data", help="Check, show, convert and make data sets.")
app.command(data_app)
study_app = App(name="study", help="Run a comparison as one command.")
app.command(study_app)
distill_app = App(name="distill", help="Store the logits of a teacher.")
app.command(distill_app)
