"""The command line: the verbs of the Python API and nothing more. Torch is imported when a verb runs."""

from __future__ import annotations

import os
import sys
import warnings
from typing import TextIO

from cyclopts.exceptions import CycloptsError

from regard.cli import benchmark as benchmark
from regard.cli import commands as commands
from regard.cli import data as data
from regard.cli import doctor as doctor
from regard.cli import serve as serve
from regard.cli import studies as studies
from regard.cli.groups import app as app
from regard.cli.options import check_options, plain_settings
from regard.cli.options import options_of as options_of
from regard.cli.other_names import check_names
from regard.cli.places import check_places
from regard.cli.typed import error_line
from regard.cli.usage import as_usage_error
from regard.errors import MachineError, RegardError, escape
from regard.safe_files import FULL_DISK
from regard.training.full_memory import is_full_memory
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
            check_options(words)
            words = plain_settings(words)
            try:
                check_places(words)
                app(words, exit_on_error=False, print_error=False)
            except CycloptsError as error:
                raise as_usage_error(error, words) from error
    except RegardError as error:
        _leave(error_line(error), error.exit_code, debug)
    except KeyboardInterrupt:
        _leave("interrupted", 130, debug)
    except BrokenPipeError:  # the reader of the output, such as head, has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        _leave(_of_the_system(error).line, 6, debug)
    except Exception as error:
        if is_full_memory(error):
            remedy = "use a smaller batch_size or smaller images"
            _leave(MachineError("out of memory", remedy=remedy, code="T18").line, 6, debug)
        if debug:
            raise
        what = escape(f"{type(error).__name__}: {error}")
        _leave(f"error: {what} — unexpected error: please report it with the output of --debug", 1, debug)


def _of_the_system(error: OSError) -> MachineError:
    """Return what the system refused, with the file; a full disk has a code."""
    if error.errno in FULL_DISK:
        return MachineError("disk full", where=error.filename, remedy="free some space", code="T05")
    return MachineError(error.strerror or str(error), where=error.filename)


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
