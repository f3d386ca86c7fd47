"""Directed-random vectors of the row: what enters in each cycle, and what the Python model of the block dot product says of its output.

Half of the steps are random. The others aim at what random sums reach rarely: sums that cancel, all but, or by less than a last place; operands whose
exponents lie 22 to 30 apart; products at the edges of underflow and overflow, those that round up to 2^-126 among them; ties; exact zeros; scales of
zero, infinity and NaN against zero and each other.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fabless.number.dot import BLOCK
from fabless.number.round import fp32_add, fp32_bits, fp32_mul
from fabless.program.tile import TINY
from fabless.rtl.row import Row

SMALL = replace(TINY, weight_words=16, accumulator_words=16)
ONE = 0x3F800000
N = 16  # words of each memory
READ, WRITE = Row.READ_AT, Row.WRITE_AT
CONTROLS = ("step", "acc_read", "acc_write", "load_enable", "load_scale_enable", "vector_read")
#: Weights under which 32 elements sum to any integer up to 31 * 127 * 127.
BASIS = [127] * 31 + [1]


def scale_code(rng, bits: int) -> int:
    """Return the upper `bits` of a canonical binary32 code: mostly of middling size, now and then extreme, zero, infinite or NaN."""
    kind = rng.integers(40)
    if kind < 4:
        return (0, 0x7F800000, 0xFF800000, 0x7FC00000)[kind] >> 32 - bits
    exponent = int(rng.integers(1, 255) if kind < 14 else rng.integers(118, 136))
    fraction = int(rng.integers(1 << bits - 9)) if kind % 4 else 0
    return int(rng.integers(2)) << bits - 1 | exponent << bits - 9 | fraction


def all_ones() -> list[tuple[int, int, int]]:
    """Return (isum, weight significand, activation significand) whose product has 24 leading ones: at exponent 0 it rounds up to 2^-126."""
    w, a = (g.reshape(-1).astype(object) for g in np.meshgrid(np.arange(1024, 2048), np.arange(128, 256)))
    s, found = (w * a).astype(np.int64), []
    for k in range(24, 38):
        isum = ((1 << k) - 1) // s
        at = np.flatnonzero((isum * s >= (1 << k) - (1 << k - 24)) & (isum <= 31 * 127 * 127))
        found += [(int(isum[i]), int(w[i]), int(a[i])) for i in at]
    return found


def reaching(isum: int) -> list[int]:
    """Return 32 elements whose dot product with `BASIS` is `isum`, at most 31 * 127 * 127 in magnitude."""
    whole = round(isum / 127)
    share, more = divmod(abs(whole), 31)
    sign = -1 if whole < 0 else 1
    return [sign * (share + (i < more)) for i in range(31)] + [isum - 127 * whole]


class Vectors:
    """Draw the vectors of one run, keeping what the row's memories hold."""

    def __init__(self, cycles: int, seed: int):
        self.rng, self.cycles = np.random.default_rng(seed), cycles
        total = cycles + 2 * WRITE + 2
        rng = self.rng
        self.inputs = {
            "step": 1, "weight_address": 4, "activation": 256, "activation_scale": 16, "unit": 1, "clear": 1, "acc_read": 1, "acc_address": 4,
            "acc_write": 1, "acc_write_address": 4, "load_enable": 2, "load_address": 4, "load_data": 256, "load_scale_enable": 1, "load_scale": 19,
            "vector_read": 1, "vector_address": 4,
        }  # fmt: skip
        # Inputs that nobody looks at are random.
        self.rows = {n: [int.from_bytes(rng.bytes(32)) & (1 << w) - 1 for _ in range(total)] for n, w in self.inputs.items()}
        for name in CONTROLS:
            self.rows[name] = [0] * total
        self.words, self.scales, self.accumulators = [[0] * BLOCK for _ in range(N)], [0] * N, [0] * N
        self.read: dict[int, int] = {}  # cycle of a read: what it reads
        self.ones = all_ones()
        for t in range(cycles):
            if t > 40:
                self.draw(t)
            self.load(t)

    def draw(self, t: int) -> None:
        """Draw the step that enters in cycle t, if one does, and what the vector unit reads behind it."""
        rng, rows = self.rng, self.rows
        address = t % N
        if rng.random() < 0.9:
            at, unit, elements, a_scale, clear = self.step(address)
            clear = clear or (self.accumulators[address] >> 23 & 255 == 255 and rng.random() < 0.6)  # or it would stay infinite or NaN
            rows["step"][t], rows["weight_address"][t] = 1, at
            rows["activation"][t + 1] = int.from_bytes(np.array(elements).astype(np.int8).tobytes(), "little")
            rows["activation_scale"][t + 1], rows["unit"][t + 1] = a_scale, int(unit)
            rows["acc_read"][t + READ], rows["acc_address"][t + READ], rows["clear"][t + READ + 1] = 1, address, int(clear)
            rows["acc_write"][t + WRITE], rows["acc_write_address"][t + WRITE] = 1, address
            isum = int(np.dot(self.words[at], elements))
            term = fp32_mul(fp32_bits(isum), fp32_mul(ONE if unit else self.scales[at] << 13, a_scale << 16))
            self.accumulators[address] = fp32_add(0 if clear else self.accumulators[address], term)
        elif rng.random() < 0.5:
            address = int(rng.integers(N))
        else:
            return  # what was read last stays
        rows["vector_read"][t + WRITE + 1], rows["vector_address"][t + WRITE + 1] = 1, address
        self.read[t + WRITE + 1] = self.accumulators[address]

    def step(self, address: int) -> tuple[int, bool, list[int], int, bool]:
        """Return weight address, unit, elements, activation scale and clear of a step that adds to an accumulator."""
        rng = self.rng
        at, unit = int(rng.integers(N)), bool(rng.random() < 0.2)
        basis = [i for i in range(N) if self.words[i] == BASIS]
        aims = (self.cancelling, self.apart, self.edge, self.edge, self.rounding)
        if rng.random() < 0.5 and basis:
            at = int(rng.choice(basis))
            aimed = aims[rng.integers(len(aims))](at, unit, self.accumulators[address])
            if aimed:
                isum, a_scale, clear = aimed
                return at, unit, reaching(isum), a_scale, clear
        choices = ([-128, 127, 0, 1], [0], [-128], range(-128, 128))
        elements = rng.choice(np.array(choices[min(3, rng.integers(12))]), BLOCK).tolist()
        return at, unit, elements, scale_code(rng, 16), bool(rng.random() < 0.2)

    def scaled_to(self, at: int, unit: bool, exponent: int, fraction: int | None = None) -> int | None:
        """Return the code of an activation scale whose product with the weight scale has this biased exponent or one more; None if there is none."""
        own = 127 if unit else self.scales[at] >> 10 & 255
        needed = exponent + 127 - own
        if own in {0, 255} or not 0 < needed < 255:
            return None
        fraction = int(self.rng.choice([0, 0, 127, 1, int(self.rng.integers(128))])) if fraction is None else fraction
        return int(self.rng.integers(2)) << 15 | needed << 7 | fraction

    def isum(self) -> int:
        """Return a sum of products: of any magnitude, or one bit off a power of two."""
        bits = int(self.rng.integers(0, 19))
        size = int(self.rng.choice([1 << bits, (1 << bits) - 1, (1 << bits) + 1, int(self.rng.integers(1 << bits, 2 << bits))]))
        return min(size, 31 * 127 * 127) * int(self.rng.choice([-1, 1]))

    def cancelling(self, at: int, unit: bool, acc: int):
        """Aim at minus the accumulator, or a last place beside it."""
        exponent = acc >> 23 & 255
        a_scale = self.scaled_to(at, unit, exponent - int(self.rng.integers(10, 19)))
        if exponent in {0, 255} or a_scale is None:
            return None
        scale = _value(ONE if unit else self.scales[at] << 13) * _value(a_scale << 16)
        isum = round(-_value(acc) / scale) + int(self.rng.integers(-1, 2)) * int(self.rng.random() < 0.3)
        return (isum, a_scale, False) if abs(isum) <= 31 * 127 * 127 else None

    def apart(self, at: int, unit: bool, acc: int):
        """Aim at a term whose exponent lies up to 30 above or below the accumulator's."""
        isum = self.isum()
        distance = int(self.rng.integers(22, 31) if self.rng.random() < 0.7 else self.rng.integers(0, 22)) * int(self.rng.choice([-1, 1]))
        a_scale = self.scaled_to(at, unit, (acc >> 23 & 255) + distance - abs(isum).bit_length() + 1)
        return None if a_scale is None else (isum, a_scale, False)

    def edge(self, at: int, unit: bool, acc: int):
        """Aim at products, or scales, of exponent about 0 or about 255."""
        rng = self.rng
        isum = 0 if rng.random() < 0.05 else self.isum()
        significand = 1024 + (0 if unit else self.scales[at] & 1023)
        fraction = None
        fits = [t for t in self.ones if t[1] == significand]
        if fits and rng.random() < 0.7:
            isum, _, a = fits[rng.integers(len(fits))]
            fraction = a - 128
            isum *= int(rng.choice([-1, 1]))
        edge = int(rng.choice([0, 255])) + int(rng.integers(-3, 3))
        size = 0 if rng.random() < 0.3 else abs(isum).bit_length() - 1
        a_scale = self.scaled_to(at, unit, edge - size, fraction)
        return None if a_scale is None else (isum, a_scale, bool(rng.random() < 0.5))

    def rounding(self, at: int, unit: bool, acc: int):
        """Aim at terms of few bits at about the accumulator's last places: ties, and rounding that carries."""
        isum = self.isum() if self.rng.random() < 0.5 else int(self.rng.choice([-3, -1, 1, 3]))
        a_scale = self.scaled_to(at, unit, (acc >> 23 & 255) - abs(isum).bit_length() + 1 - int(self.rng.integers(0, 28)), 0)
        return None if a_scale is None else (isum, a_scale, False)

    def load(self, t: int) -> None:
        """Draw what the loader writes in cycle t, visible in the next; at first every word is filled."""
        rng, rows = self.rng, self.rows
        enable = int(rng.integers(4)) if t >= N else 3
        rows["load_enable"][t], rows["load_scale_enable"][t] = enable, int(rng.random() < 0.3) if t >= N else 1
        if t < N:
            rows["load_address"][t] = t
        address = rows["load_address"][t]
        if rng.random() < 0.6:
            rows["load_data"][t] = int.from_bytes(np.array(BASIS, np.int8).tobytes(), "little")
        code = scale_code(rng, 19)
        if rng.random() < 0.5:  # significands that have a product of leading ones
            code = code & ~1023 | self.ones[rng.integers(len(self.ones))][1] - 1024
            code = code if code >> 10 & 255 not in {0, 255} else 0
        rows["load_scale"][t] = code
        values = np.frombuffer(rows["load_data"][t].to_bytes(32, "little"), np.int8).astype(int)
        for half in range(2):
            if enable >> half & 1:
                self.words[address][16 * half : 16 * half + 16] = values[16 * half : 16 * half + 16].tolist()
        if rows["load_scale_enable"][t]:
            self.scales[address] = code

    def expected(self) -> list[int | None]:
        """Return what `vector_data` shows in each cycle: what was read last, from the cycle after."""
        shown, out = None, []
        for t in range(self.cycles + 2 * WRITE + 2):
            out.append(shown)
            shown = self.read.get(t, shown)
        return out


def _value(code: int) -> float:
    return float(np.uint32(code).view(np.float32))
