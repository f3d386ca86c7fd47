"""The command line: one module per group of commands, loaded when called, and the only place that prints."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from cyclopts import App, CycloptsError, Group

import fabless
from fabless.core.errors import FablessError

if TYPE_CHECKING:
    from collections.abc import Sequence

_ANSWER = Group("Decide", sort_key=0)
_LOOK = Group("Look up and check", sort_key=1)
_TRUTH = Group("Run it", sort_key=2)
_SETUP = Group("Set up", sort_key=9)

app = App(
    name="fabless",
    help="Should we have our own inference chip, and which one?",
    version=fabless.__version__,
    help_format="plaintext",
)
for _path, _name, _group in (
    ("fabless.cli.decide:design", "design", _ANSWER),
    ("fabless.cli.decide:compare", "compare", _ANSWER),
    ("fabless.cli.decide:estimate", "estimate", _ANSWER),
    ("fabless.cli.lookup:models", "models", _LOOK),
    ("fabless.cli.lookup:chips", "chips", _LOOK),
    ("fabless.cli.lookup:show", "show", _LOOK),
    ("fabless.cli.check:validate", "validate", _LOOK),
    ("fabless.cli.check:train", "train", _ANSWER),
    ("fabless.cli.lookup:schema", "schema", _SETUP),
):
    app.command(_path, name=_name, group=_group)
app.register_install_completion_command(name="--install-completion")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and leave with its exit code: 0, 2 for anything the reader can mend, 130 when interrupted."""
    sys.exit(run(arguments))


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; errors of the reader's input are one message on standard error, no traceback."""
    try:
        app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
    except FablessError as error:
        return _complain(str(error), error.exit_code)
    except CycloptsError as error:
        return _complain(f"{error} (see 'fabless --help')", 2)
    except KeyboardInterrupt:
        return _complain("interrupted; finished work is kept and will not be computed again", 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except SystemExit as leaving:
        return leaving.code if isinstance(leaving.code, int) else 0
    return 0


def _complain(message: str, code: int) -> int:
    print(f"fabless: {message}", file=sys.stderr)
    return code
