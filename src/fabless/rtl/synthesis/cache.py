"""Results of synthesis kept on disk by the digest of all that they are made from: an interrupted run goes on, a repeated one is free."""

from __future__ import annotations

import gzip
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fabless.rtl.bench.build import cache_directory

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class Cache:
    """Hold texts by key as compressed files of one folder; a file appears whole or not at all."""

    directory: Path

    def get(self, key: str) -> str | None:
        """Return a kept text, or None; one that cannot be read counts as missing."""
        try:
            return gzip.decompress((self.directory / f"{key}.gz").read_bytes()).decode()
        except (OSError, EOFError, UnicodeDecodeError):
            return None

    def put(self, key: str, text: str) -> None:
        """Keep a text."""
        self.directory.mkdir(parents=True, exist_ok=True)
        unfinished = self.directory / f"{key}.{os.getpid()}"
        unfinished.write_bytes(gzip.compress(text.encode(), 1, mtime=0))
        unfinished.rename(self.directory / f"{key}.gz")


def user_cache() -> Cache:
    """Return the cache in the user's cache folder."""
    return Cache(cache_directory().with_name("synthesis"))
