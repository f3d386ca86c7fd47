"""Keys of the price tables: which row prices a process, a memory or a package that a chip names."""

from __future__ import annotations

import re

from fabless.core.errors import UnsupportedError, nearest

PROCESSES = ("28nm", "22nm", "16nm", "10nm", "7nm", "5nm", "4nm", "3nm", "2nm")
PACKAGES = ("organic", "interposer", "fanout")
#: Half steps are bought at the price of the process that they share a line with.
_SHARES = {"12nm": "16nm", "14nm": "16nm", "8nm": "10nm", "6nm": "7nm", "20nm": "22nm", "18a": "2nm", "16a": "2nm"}
_FOUNDRY = re.compile(
    r"(?<![a-z0-9])(?:n|sf)(\d+)[a-z]*(?![a-z0-9])|(?<![a-z0-9])(\d+)\s?(?:nm|n|np|lpp|ff)(?![a-z0-9])|(?<![a-z0-9])a?(1[68])a?(?![a-z0-9])"
)


def process_key(process: str) -> str:
    """Return the price row of a process name ("TSMC 4N", "N3E", "7nm", "5 nm"); the first process named prices a mixed package.

    Raises `UnsupportedError` for a process without prices.
    """
    for found in _FOUNDRY.finditer(process.lower()):
        digits = found.group(1) or found.group(2)
        key = f"{digits}nm" if digits else f"{found.group(3)}a"
        key = _SHARES.get(key, key)
        if key in PROCESSES:
            return key
    raise UnsupportedError(f"no wafer price for process '{process}'{nearest(process, PROCESSES)}; known: {', '.join(PROCESSES)}")


def package_key(package: str, memory: str) -> str:
    """Return the kind of package that is priced: stacked memory needs a carrier under it, so organic becomes interposer then."""
    if package not in PACKAGES:
        raise UnsupportedError(f"no price for package '{package}'{nearest(package, PACKAGES)}; known: {', '.join(PACKAGES)}")
    return "interposer" if package == "organic" and memory.startswith("hbm") else package
