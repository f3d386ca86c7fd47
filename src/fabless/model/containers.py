"""Read the directory of a tensor file (safetensors, GGUF) without its tensors, and distrust every length and offset in it.

Nothing here allocates more than the file's own size: counts and lengths are compared with the bytes that are left before they are used.
"""

from __future__ import annotations

import json
import math
import mmap
import struct
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from fabless.core.errors import InputError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy as np
    import numpy.typing as npt

#: Bytes per value of the safetensors types that fabless reads. Source: safetensors format description.
SAFETENSORS_TYPES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "I8": 1, "U8": 1, "I32": 4, "I64": 8}
#: GGUF type number -> (name, values per block, bytes per block). Source: ggml.h, `enum ggml_type` and block structures.
GGUF_TYPES = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22), 7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110), 12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210), 30: ("BF16", 1, 2), 39: ("MXFP4", 32, 17),
}  # fmt: skip
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
_MAX_HEADER_BYTES = 100_000_000  # the limit that the safetensors library itself sets


@dataclass(frozen=True, slots=True)
class Entry:
    """Locate one tensor: `shape` is row-major (rows first), `offset` from the start of the file."""

    name: str
    type: str
    shape: tuple[int, ...]
    offset: int
    n_bytes: int


@dataclass(frozen=True, slots=True)
class TensorFile:
    """Hold an open, memory-mapped tensor file: its metadata and where each tensor lies."""

    path: Path
    metadata: Mapping[str, Any]
    entries: Mapping[str, Entry]
    content: mmap.mmap | bytes = field(repr=False, compare=False)

    def bytes_of(self, name: str) -> npt.NDArray[np.uint8]:
        """Return the stored bytes of one tensor without copying them."""
        import numpy as np

        entry = self.entries[name]
        return np.frombuffer(self.content, np.uint8, entry.n_bytes, entry.offset)


def _map(path: Path) -> mmap.mmap:
    try:
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except ValueError:
        raise InputError(f"{path}: the file is empty; download it again") from None
    except OSError as error:
        raise InputError(f"{path}: cannot read ({error.strerror}); check the path and its permissions") from None


def _no_duplicates(where: str) -> Any:
    def build(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        out = dict(pairs)
        if len(out) != len(pairs):
            names = [name for name, _ in pairs]
            raise InputError(f"{where}: key '{next(n for n in names if names.count(n) > 1)}' appears twice; the file is damaged or hostile")
        return out

    return build


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from `path`; raises `InputError` for what is no object, is not UTF-8, or repeats a key."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot read ({error.strerror}); check the path and its permissions") from None
    return parse_json(content, str(path))


def parse_json(content: bytes, where: str) -> dict[str, Any]:
    """Parse a JSON object; raises `InputError` naming `where`."""
    try:
        value = json.loads(content.decode("utf-8"), object_pairs_hook=_no_duplicates(where))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError, ValueError) as error:
        raise InputError(f"{where}: not JSON ({error}); download it again") from None
    if not isinstance(value, dict):
        raise InputError(f"{where}: holds a JSON {type(value).__name__}, not an object; download it again")
    return value


def read_safetensors(path: Path) -> TensorFile:
    """Map a safetensors file and check its header: lengths, types, shapes, offsets, overlaps. Raises `InputError` naming the tensor and rule."""
    content = _map(path)
    if len(content) < 8:
        raise InputError(f"{path}: {len(content)} bytes are too few for a safetensors file; download it again")
    (n_header,) = struct.unpack_from("<Q", content)
    if n_header > min(_MAX_HEADER_BYTES, len(content) - 8):
        raise InputError(
            f"{path}: header claims {n_header} bytes but the file has {len(content) - 8} after it; the file is truncated or hostile"
        )
    header = parse_json(content[8 : 8 + n_header], f"{path}: header")
    metadata = header.pop("__metadata__", {})
    start = 8 + n_header
    entries = {name: _safetensors_entry(path, name, value, start, len(content)) for name, value in header.items()}
    _refuse_overlap(path, entries)
    return TensorFile(path, metadata if isinstance(metadata, dict) else {}, entries, content)


def _safetensors_entry(path: Path, name: str, value: Any, start: int, size: int) -> Entry:
    where = f"{path}: tensor '{name}'"
    if not isinstance(value, dict) or not {"dtype", "shape", "data_offsets"} <= value.keys():
        raise InputError(f"{where}: needs dtype, shape and data_offsets; the file is damaged")
    kind, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(kind, str) or kind not in SAFETENSORS_TYPES:
        raise UnsupportedError(f"{where}: type {kind!r} is not read; known: {', '.join(SAFETENSORS_TYPES)}")
    if not isinstance(shape, list) or len(shape) > 8 or not all(type(n) is int and 0 <= n < 1 << 48 for n in shape):
        raise InputError(f"{where}: shape {str(shape)[:80]} is not a list of at most 8 non-negative integers")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(type(n) is int for n in offsets):
        raise InputError(f"{where}: data_offsets {str(offsets)[:80]} are not two integers")
    begin, end = offsets
    if not 0 <= begin <= end <= size - start:
        raise InputError(
            f"{where}: data_offsets {begin} to {end} lie outside the {size - start} data bytes; the file is truncated or hostile"
        )
    if end - begin != math.prod(shape) * SAFETENSORS_TYPES[kind]:
        raise InputError(f"{where}: {end - begin} bytes do not hold {kind} of shape {shape}; the file is damaged")
    return Entry(name, kind, tuple(shape), start + begin, end - begin)


def _refuse_overlap(path: Path, entries: Mapping[str, Entry]) -> None:
    filled = sorted((e for e in entries.values() if e.n_bytes), key=lambda e: e.offset)
    for a, b in pairwise(filled):
        if a.offset + a.n_bytes > b.offset:
            raise InputError(f"{path}: tensors '{a.name}' and '{b.name}' share bytes; the file is damaged or hostile")


class _Cursor:
    """Walk bytes forward, refusing every read beyond the end."""

    def __init__(self, content: mmap.mmap | bytes, path: Path) -> None:
        self.content, self.path, self.at = content, path, 0

    def need(self, n_bytes: int, what: str) -> int:
        at = self.at
        if n_bytes > len(self.content) - at:
            raise InputError(
                f"{self.path}: {what} needs {n_bytes} bytes at offset {at}, the file has {len(self.content) - at}; it is truncated or hostile"
            )
        self.at = at + n_bytes
        return at

    def scalar(self, code: str, what: str) -> Any:
        at = self.need(struct.calcsize(code), what)
        return struct.unpack_from(code, self.content, at)[0]

    def text(self, what: str) -> str:
        n = self.scalar("<Q", f"length of {what}")
        at = self.need(n, what)
        try:
            return self.content[at : at + n].decode("utf-8")
        except UnicodeDecodeError:
            raise InputError(f"{self.path}: {what} at offset {at} is not UTF-8; the file is damaged") from None


def read_gguf(path: Path) -> TensorFile:
    """Map a GGUF file (version 2 or 3) and check its directory; metadata arrays become lists. Raises `InputError` naming key or tensor and rule.

    Source: the GGUF specification of ggml.
    """
    cursor = _Cursor(_map(path), path)
    if cursor.content[:4] != b"GGUF":
        raise InputError(f"{path}: does not begin with 'GGUF'; give a GGUF file or a Hugging Face directory")
    cursor.at = 4
    version = cursor.scalar("<I", "version")
    if version not in (2, 3):
        raise UnsupportedError(f"{path}: GGUF version {version} (0x{version:x}) is not read; known: 2 and 3, little-endian")
    n_tensors, n_keys = cursor.scalar("<Q", "tensor count"), cursor.scalar("<Q", "key count")
    if n_keys * 13 + n_tensors * 24 > len(cursor.content):  # the least bytes that a key (8 + 4 + 1) and a tensor (8 + 4 + 4 + 8) take
        raise InputError(f"{path}: claims {n_keys} keys and {n_tensors} tensors in {len(cursor.content)} bytes; it is truncated or hostile")
    metadata: dict[str, Any] = {}
    for _ in range(n_keys):
        key = cursor.text("key")
        if key in metadata:
            raise InputError(f"{path}: key '{key[:80]}' appears twice; the file is damaged or hostile")
        metadata[key] = _gguf_value(cursor, cursor.scalar("<I", f"type of '{key[:80]}'"), f"'{key[:80]}'", 0)
    return TensorFile(path, metadata, _gguf_entries(cursor, n_tensors, metadata), cursor.content)


def _gguf_value(cursor: _Cursor, kind: int, what: str, depth: int) -> Any:
    import numpy as np

    if kind == _STRING:
        return cursor.text(what)
    if kind in _SCALARS:
        return cursor.scalar(_SCALARS[kind], what)
    if kind != _ARRAY:
        raise InputError(f"{cursor.path}: {what} has value type {kind}, the format has 0 to 12; the file is damaged")
    if depth == 2:
        raise InputError(f"{cursor.path}: {what} nests arrays more than twice; the file is hostile")
    inner, n = cursor.scalar("<I", f"element type of {what}"), cursor.scalar("<Q", f"length of {what}")
    if inner in _SCALARS:
        dtype = np.dtype(_SCALARS[inner])
        at = cursor.need(n * dtype.itemsize, what)
        return np.frombuffer(cursor.content, dtype, n, at).tolist()
    cursor.need(n * 8, what)  # every string or array begins with 8 bytes or more
    cursor.at -= n * 8
    return [_gguf_value(cursor, inner, what, depth + 1) for _ in range(n)]


def _gguf_entries(cursor: _Cursor, n_tensors: int, metadata: Mapping[str, Any]) -> dict[str, Entry]:
    path, found = cursor.path, []
    for _ in range(n_tensors):
        name = cursor.text("tensor name")
        where = f"tensor '{name[:80]}'"
        n_axes = cursor.scalar("<I", where)
        if n_axes > 4:
            raise InputError(f"{path}: {where} has {n_axes} axes, the format allows 4; the file is damaged")
        shape = tuple(cursor.scalar("<Q", where) for _ in range(n_axes))[::-1]
        found.append((name, shape, cursor.scalar("<I", where), cursor.scalar("<Q", where)))
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or alignment < 8 or alignment & (alignment - 1) or alignment > 1 << 20:
        raise InputError(f"{path}: general.alignment must be a power of two from 8 to 1048576, not {alignment!r}")
    start = -(-cursor.at // alignment) * alignment
    entries: dict[str, Entry] = {}
    for name, shape, kind, offset in found:
        if name in entries:
            raise InputError(f"{path}: tensor '{name[:80]}' appears twice; the file is damaged or hostile")
        entries[name] = _gguf_entry(path, name, shape, kind, offset=start + offset, size=len(cursor.content))
        if offset % alignment:
            raise InputError(f"{path}: tensor '{name[:80]}' starts at {offset}, which is no multiple of {alignment}; the file is damaged")
    _refuse_overlap(path, entries)
    return entries


def _gguf_entry(path: Path, name: str, shape: tuple[int, ...], kind: int, *, offset: int, size: int) -> Entry:
    where = f"{path}: tensor '{name[:80]}'"
    if kind not in GGUF_TYPES:
        known = ", ".join(t for t, _, _ in GGUF_TYPES.values())
        raise UnsupportedError(f"{where}: GGUF type {kind} is not read; known: {known}")
    type_name, block, block_bytes = GGUF_TYPES[kind]
    if shape and shape[-1] % block:
        raise InputError(f"{where}: rows of {shape[-1]} values do not divide into {type_name} blocks of {block}; the file is damaged")
    n_bytes = math.prod(shape) // block * block_bytes
    if offset + n_bytes > size:
        raise InputError(
            f"{where}: {n_bytes} bytes of {type_name} at offset {offset} end beyond the {size} bytes of the file; it is truncated or hostile"
        )
    return Entry(name, type_name, shape, offset, n_bytes)
