"""Write programs to files and read them back: assembly text, or the words themselves with the text's directives beside them."""

from __future__ import annotations

import io
import zipfile
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from fabless.core.errors import InputError
from fabless.core.files import write_bytes, write_text
from fabless.program.assembler import assemble, disassemble

if TYPE_CHECKING:
    from pathlib import Path

    from fabless.program.program import Program

#: Suffixes of assembly text; any other holds words.
TEXT = (".s", ".asm", ".txt")


def write_program(path: Path, program: Program) -> None:
    """Write a program atomically: as assembly where the suffix is one of `TEXT`, else as words."""
    if path.suffix in TEXT:
        write_text(path, disassemble(program))
        return
    bare = replace(program, words=np.zeros((0, 2), np.uint64), labels={})
    labels = "".join(f"{index} {name}\n" for name, index in program.labels.items())
    buffer = io.BytesIO()
    directives, names = (np.frombuffer(text.encode(), np.uint8) for text in (disassemble(bare), labels))
    np.savez_compressed(buffer, words=program.words, directives=directives, labels=names)
    write_bytes(path, buffer.getvalue())


def read_program(path: Path) -> Program:
    """Read what `write_program` wrote; raises `InputError` naming file and rule."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise InputError(
            f"{path}: cannot read the program ({error.strerror or error}); give a file that 'fabless compile --out' wrote"
        ) from None
    if path.suffix in TEXT:
        try:
            return assemble(raw.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise InputError(f"{path}: not UTF-8 text (byte {error.start}); assembly is text") from None
    try:
        with np.load(io.BytesIO(raw), allow_pickle=False) as held:
            words, directives, labels = held["words"], held["directives"].tobytes().decode(), held["labels"].tobytes().decode()
            numbered = [line.split(" ", 1) for line in labels.splitlines()]
            return replace(assemble(directives), words=words, labels={name: int(index) for index, name in numbered})
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(
            f"{path}: not a program ({error}); give a file that 'fabless compile --out' wrote, or assembly with suffix .s"
        ) from None
