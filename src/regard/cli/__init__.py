"""The command line: the verbs of the Python API and nothing more. Torch is imported when a verb runs."""

from __future__ import annotations

import dataclasses
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import TextIO, get_args, get_type_hints

from cyclopts.exceptions import CycloptsError

from regard.cli.commands import cache, train
from regard.cli.data import shapes
from regard.cli.groups import app as app
from regard.cli.other_names import check_names
from regard.cli.studies import study_app as study_app
from regard.cli.typed import error_line
from regard.errors import RegardError, escape
from regard.training.launch import STOPPED, end_at_once, first_failure


def main(arguments: list[str] | None = None) -> None:
    """Run a command. Errors with a known cause print one line on stderr; `--debug` adds the traceback.

    arguments: those of this process if None, which then ends at once after Ctrl-C.
    """
    try:
        _run(sys.argv[1:] if arguments is None else arguments)
    except SystemExit as ended:
        if arguments is None and ended.code in STOPPED:
            end_at_once(ended.code)
        raise


def _run(words: list[str]) -> None:
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _warn
            warnings.filterwarnings("ignore", module="PIL")  # about metadata, which is not used
            check_names(words)
            app(_plain_settings(words), exit_on_error=False, print_error=False)
    except RegardError as error:
        _leave(error_line(error), error.exit_code, debug)
    except CycloptsError as error:
        _leave(escape(f"error: {' '.join(str(error).split())}"), 2, debug)
    except KeyboardInterrupt:
        _leave("interrupted", 130, debug)
    except BrokenPipeError:  # the reader of the output, such as head, has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        place = "" if error.filename is None else f" — {error.filename}"
        _leave(escape(f"error: {error.strerror or error}{place}"), 6, debug)
    except Exception as error:
        # torch raises OutOfMemoryError for GPUs and a RuntimeError for the CPU.
        known = type(error).__name__ in ("MemoryError", "OutOfMemoryError")
        if known or "can't allocate memory" in str(error):
            _leave("error: out of memory — use a smaller batch_size or smaller images", 6, debug)
        if debug:
            raise
        what = escape(f"{type(error).__name__}: {error}")
        _leave(f"error: {what} — unexpected error: please report it with the output of --debug", 1, debug)


def options_of(command: Callable[..., None]) -> list[tuple[str, type | None]]:
    """Return the options of a command: their names, and the dataclass of those that are the fields of one."""
    found: list[tuple[str, type | None]] = []
    for name, hint in get_type_hints(command).items():
        group = next((kind for kind in get_args(hint) if dataclasses.is_dataclass(kind)), None)
        fields = [(field.name, group) for field in dataclasses.fields(group)] if group else [(name, None)]
        found += [(field, kind if isinstance(kind, type) else None) for field, kind in fields if field != "return"]
    return found


def _plain_settings(words: Sequence[str]) -> list[str]:
    """Rewrite `--lr=1e-4` and `--lr 1e-4` as `lr=1e-4` if the command takes settings and has no such option."""
    commands: dict[str, Callable[..., None]] = {"train": train, "data shapes": shapes, "distill cache": cache}
    command = commands.get(" ".join(words[: 2 if words[:1] in (["data"], ["distill"]) else 1]))
    if command is None:
        return list(words)
    options = {f"--{name.replace('_', '-')}" for name, _ in options_of(command)} | {"--help", "--version"}
    plain = []
    rest = iter(words)
    for word in rest:
        key, equals, value = word.partition("=")
        if not key.startswith("--") or key == "--" or key in options:
            plain.append(word)
            continue
        plain.append(f"{key[2:].replace('-', '_')}={value if equals else next(rest, '')}")
    return plain


def _warn(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Print a warning as one line, without the place in the code."""
    print(escape(f"warning: {message}"), file=sys.stderr)


def _leave(line: str, code: int, debug: bool) -> None:
    is_first, code = first_failure(code)
    if is_first:
        if debug:
            import traceback

            traceback.print_exc()
        print(line, file=sys.stderr)
    sys.exit(code)
