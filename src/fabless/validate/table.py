"""Checked rows as a CSV table."""

from __future__ import annotations

import csv
from dataclasses import fields
from io import StringIO
from typing import TYPE_CHECKING

from fabless.validate.checked import Checked

if TYPE_CHECKING:
    from fabless.validate.validation import Validation


def rows_csv(validation: Validation) -> str:
    """Return every checked row, its fields and its error (predicted / measured - 1), as CSV text."""
    text = StringIO()
    names = [f.name for f in fields(Checked)]
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*names, "error"])
    for row in validation.rows:
        writer.writerow([*(getattr(row, name) for name in names), f"{row.error:.6g}"])
    return text.getvalue()
