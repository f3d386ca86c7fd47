"""The error tree: what can go wrong, and what each message must finish.

FablessError                exit code 2 on the command line, one clear message
├── InputError              a file, key, value or unit that the reader gave is wrong
│   └── UnitError           a quantity has the wrong dimension or cannot be read
├── UnsupportedError        understood, but not (yet) something fabless can do; named, with what is known
│   └── MissingToolError    an optional tool that is not installed, and how to install it
├── InfeasibleError         a chip, plan or study that cannot work: what is missing and what would fit
├── IllegalProgramError     a program that breaks a rule of the ISA
└── SourceError             a table of facts without source, range or unit
"""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


class FablessError(Exception):
    """Say what went wrong in one message that names place, rule, value and remedy."""

    exit_code = 2


class InputError(FablessError):
    """Report a file, key, value or unit that the reader gave and that is wrong."""


class UnitError(InputError):
    """Report a quantity whose unit cannot be read or has the wrong dimension."""


class UnsupportedError(FablessError):
    """Report something understood but outside what fabless does, by name."""


class MissingToolError(UnsupportedError):
    """Report an optional tool that is not installed, what needs it and how to install it."""


class InfeasibleError(FablessError):
    """Report a chip, plan or study that cannot work, how much is missing and what would fit."""


class IllegalProgramError(FablessError):
    """Report the instruction and the rule of the ISA that it breaks."""


class SourceError(FablessError):
    """Report a row of a fact table that lacks a source, a range or a unit."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return `"; did you mean 'x'?"` for the closest known name, or an empty string."""
    by_lower = {k.lower(): k for k in known}
    match = get_close_matches(name.lower(), list(by_lower), n=1, cutoff=0.5)
    return f"; did you mean '{by_lower[match[0]]}'?" if match else ""
