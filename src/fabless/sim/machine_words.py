"""What the compiled kernels share: error codes, constants, and how binary32 results are kept (numba)."""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
# ruff: noqa: ANN001, ANN201  numba kernels: types are inferred, each mirrors one of sim.machine
from __future__ import annotations

import numpy as np
from numba import njit

from fabless.program.isa import BY_MNEMONIC
from fabless.program.isa import LOWEST as LOWEST_VALUE

HALTED, WAITING = 0, 1
(BAD_PC, BAD_LOOP, BAD_PARAMETER, BAD_WAIT, BAD_SIGNAL, BAD_MEMORY, BAD_WEIGHTS, BAD_ACTIVATIONS, BAD_ACCUMULATORS, BAD_VECTOR, BAD_MESSAGE,
 BAD_PAIR, BAD_FORMAT) = range(-1, -14, -1)  # fmt: skip

TINY = np.float32(2.0**-126)
LOWEST = np.float32(LOWEST_VALUE)
ZERO = np.float32(0)
NAN = 0x7FC00000
INF = 0x7F800000
_HALF_RANGE = 1 << 39
_RANGE = 1 << 40

#: Inner functions need no way in from Python; leaving those wrappers out shortens compiling.
native = njit(no_cpython_wrapper=True, no_cfunc_wrapper=True, error_model="numpy")  # type: ignore[call-overload]  # not in numba's stubs


def column(mnemonic: str, field: str) -> int:
    """Return where a field's value stands in a row of the decoded table."""
    return 1 + [f.name for f in BY_MNEMONIC[mnemonic].fields].index(field)


@native
def wrap(value):
    """Return a register value modulo 2^40, two's complement."""
    return (value + _HALF_RANGE) % _RANGE - _HALF_RANGE


@native
def kept(x):
    """Flush: magnitudes below 2^-126 become +0; NaN passes."""
    return ZERO if abs(x) < TINY else x


@native
def canonical(codes, first, count):
    """Make binary32 codes canonical in place: +0 below 2^-126, one NaN."""
    part = codes[first : first + count]  # a slice from 0: the compiler sees that no index is negative, and vectorises
    for e in range(count):
        c = part[e]
        magnitude = c & np.int32(0x7FFFFFFF)
        c = np.int32(0) if magnitude < np.int32(0x00800000) else c
        part[e] = np.int32(NAN) if magnitude > np.int32(0x7F800000) else c
