"""The shapes in safetensors headers, of one file or of all shards of an index, without reading a weight."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fabless.core.errors import InputError
from fabless.model.containers import read_json, read_safetensors

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from fabless.model.containers import Entry


@dataclass(frozen=True, slots=True)
class Headers:
    """Hold the tensors of a checkpoint by name: type, shape and place, from headers alone."""

    path: Path
    tensors: Mapping[str, Entry]

    @property
    def n_params(self) -> int:
        """Return the stored values, as the file types them (packed 4-bit formats count their bytes)."""
        return sum(math.prod(t.shape) for t in self.tensors.values())

    @property
    def n_bytes(self) -> int:
        """Return the bytes of all tensors."""
        return sum(t.n_bytes for t in self.tensors.values())


def read_headers(path: Path) -> Headers:
    """Read the header of a .safetensors file, or of every shard that a model.safetensors.index.json names.

    Raises `InputError` naming file, tensor and rule for headers that are truncated, claim more bytes than the file has, overlap, or repeat;
    for shards that are missing or lie outside the index's directory; and for tensors that are not in the shard the index names.
    """
    if path.name.endswith(".json"):
        return Headers(path, _sharded(path))
    return Headers(path, read_safetensors(path).entries)


def _sharded(index: Path) -> dict[str, Entry]:
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(shard, str) for shard in places.values()):
        raise InputError(f"{index}: lacks 'weight_map', the table from tensor to file; it is no safetensors index")
    tensors: dict[str, Entry] = {}
    for shard in dict.fromkeys(places.values()):
        if "/" in shard or "\\" in shard or shard in {"", ".", ".."}:
            raise InputError(f"{index}: shard '{shard[:80]}' is not a plain file name; an index may only name files beside it")
        path = index.parent / shard
        if not path.is_file():
            raise InputError(f"{index}: names the shard '{shard}', which is not there; download it or remove it from the index")
        for name, entry in read_safetensors(path).entries.items():
            if places.get(name) != shard:
                raise InputError(f"{path}: holds tensor '{name[:80]}', which the index places in {places.get(name, 'no shard')}")
            tensors[name] = entry
    missing = next((name for name in places if name not in tensors), None)
    if missing is not None:
        raise InputError(f"{index}: places tensor '{missing[:80]}' in {places[missing]}, which does not hold it")
    return tensors
