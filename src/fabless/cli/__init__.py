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
    group_commands=_SETUP,
    suppress_keyboard_interrupt=False,
)
# Each with the line that the overview shows: reading it from a command's own help would load every command's module.
for _path, _name, _group, _help in (
    ("fabless.cli.decide:design", "design", _ANSWER, "Answer a study: which chip to build, and should we."),
    ("fabless.cli.decide:compare", "compare", _ANSWER, "Compare a study's chip with those one can rent or buy."),
    ("fabless.cli.decide:estimate", "estimate", _ANSWER, "Time one decode step and one prefill on a chip."),
    ("fabless.cli.check:train", "train", _ANSWER, "Time one training step."),
    ("fabless.cli.synthesis:synth", "synth", _TRUTH, "Say what the chip's blocks cost in a process: area, clock, energy."),
    ("fabless.cli.lookup:models", "models", _LOOK, "List the built-in models."),
    ("fabless.cli.lookup:chips", "chips", _LOOK, "List the chips of the catalogue."),
    ("fabless.cli.lookup:show", "show", _LOOK, "Show one model or chip in full, with sources."),
    ("fabless.cli.check:validate", "validate", _LOOK, "Hold predictions against measurements."),
    ("fabless.cli.execute:run", "run", _TRUTH, "Write text with a real model on the chip, bit for bit."),
    ("fabless.cli.execute:compile", "compile", _TRUTH, "Compile a model for a chip."),
    ("fabless.cli.execute:quality", "quality", _TRUTH, "Say how much text quality number formats cost."),
    ("fabless.cli.trace:trace", "trace", _TRUTH, "Look inside one launch of a program."),
    ("fabless.cli.execute:asm", "asm", _TRUTH, "Assemble a program and prove it legal."),
    ("fabless.cli.execute:disasm", "disasm", _TRUTH, "Print a program as assembly."),
    ("fabless.cli.hardware:rtl", "rtl", _TRUTH, "Emit a chip as Verilog, or let its RTL write text."),
    ("fabless.cli.simulate:simulate", "simulate", _TRUTH, "Count the cycles of a launch exactly."),
    ("fabless.cli.fpga:fpga", "fpga", _TRUTH, "Place a block of a chip on an FPGA."),
    ("fabless.cli.hardware:doctor", "doctor", _SETUP, "Say which tools are missing and how to install them."),
    ("fabless.cli.lookup:schema", "schema", _SETUP, "Print the JSON Schema of a study file."),
):
    app.command(_path, name=_name, group=_group, help=_help)
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
