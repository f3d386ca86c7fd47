"""One row of the matrix unit: 32 integer products, their exact sum, scale, and one binary32 accumulation a cycle."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from amaranth.hdl import C, Cat, Module, Mux, Signal, Value, signed

from fabless.number.dot import BLOCK
from fabless.rtl.block import Block, Shared
from fabless.rtl.floating import FloatAdd, normalised, packed, rounding, state
from fabless.rtl.memory import Ram, index_bits

WEIGHT_SCALE_BITS = 19
"""Sign, 8 exponent bits, 10 fraction bits: the upper bits of a binary32 code."""
ACTIVATION_SCALE_BITS = 16


class Row(Block):
    """Hold one row's banks of weights, weight scales and accumulators, and its dot product.

    A step enters with its weight address in cycle 0 and its activation block in cycle 1 (both memories read in cycle 0), its accumulator address in
    cycle `READ_AT`, and is added to the accumulator at the end of cycle `WRITE_AT`; one step a cycle; the same accumulator again after ACC = 4.
    Ports: `step`, `weight_address` (cycle 0); `activation`, `activation_scale`, `unit` (cycle 1); `acc_read`, `acc_address`, `clear` (cycle READ_AT,
    clear a cycle later); `acc_write`, `acc_write_address` (cycle WRITE_AT). Loader: `load_*`. Vector unit: `vector_read`, `vector_address` in,
    `vector_data` one cycle later.
    """

    module = "fl_row"
    READ_AT = 8
    WRITE_AT = 11

    def __init__(self, shared: Shared) -> None:
        super().__init__(shared)
        w, c = index_bits(shared.tile.weight_words), index_bits(shared.tile.accumulator_words)
        self.step, self.weight_address = self.input("step", 1), self.input("weight_address", w)
        self.activation, self.activation_scale = self.input("activation", 8 * BLOCK), self.input("activation_scale", ACTIVATION_SCALE_BITS)
        self.unit, self.clear = self.input("unit", 1), self.input("clear", 1)
        self.acc_read, self.acc_address = self.input("acc_read", 1), self.input("acc_address", c)
        self.acc_write, self.acc_write_address = self.input("acc_write", 1), self.input("acc_write_address", c)
        self.load_enable, self.load_address = self.input("load_enable", 2), self.input("load_address", w)
        self.load_data = self.input("load_data", 8 * BLOCK)
        self.load_scale_enable, self.load_scale = self.input("load_scale_enable", 1), self.input("load_scale", WEIGHT_SCALE_BITS)
        self.vector_read, self.vector_address = self.input("vector_read", 1), self.input("vector_address", c)
        self.vector_data = self.output("vector_data", 32)

    def elaborate(self, platform: Any) -> Module:
        """Build what the class describes."""
        m = Module()
        weights = Ram(width=8 * BLOCK, depth=self.shared.tile.weight_words, grain=4 * BLOCK, name="weights")
        scales = Ram(width=WEIGHT_SCALE_BITS, depth=self.shared.tile.weight_words, name="weight_scales")
        accumulators = Ram(width=32, depth=self.shared.tile.accumulator_words, reads=2, name="accumulators")
        for ram in (weights, scales, accumulators):
            ram.place(m)
        m.d.comb += [
            weights.write[0].enable.eq(self.load_enable), weights.write[0].address.eq(self.load_address), weights.write[0].data.eq(self.load_data),
            scales.write[0].enable.eq(self.load_scale_enable), scales.write[0].address.eq(self.load_address),
            scales.write[0].data.eq(self.load_scale),
            weights.read[0].enable.eq(self.step), weights.read[0].address.eq(self.weight_address),
            scales.read[0].enable.eq(self.step), scales.read[0].address.eq(self.weight_address),
        ]  # fmt: skip

        weight, activation = state(8 * BLOCK, "weight"), state(8 * BLOCK, "activation_in")
        weight_scale, activation_scale = state(WEIGHT_SCALE_BITS, "weight_scale"), state(ACTIVATION_SCALE_BITS, "activation_scale_in")
        one = C(0x3F800000 >> 32 - WEIGHT_SCALE_BITS, WEIGHT_SCALE_BITS)
        m.d.sync += [
            weight.eq(weights.read[0].data), activation.eq(self.activation), weight_scale.eq(Mux(self.unit, one, scales.read[0].data)),
            activation_scale.eq(self.activation_scale),
        ]  # fmt: skip
        term = self.scaled(m, self.dot(m, weight, activation), *self.scale(m, weight_scale, activation_scale))

        m.d.comb += [
            accumulators.read[0].enable.eq(self.acc_read), accumulators.read[0].address.eq(self.acc_address),
            accumulators.read[1].enable.eq(self.vector_read), accumulators.read[1].address.eq(self.vector_address),
            self.vector_data.eq(accumulators.read[1].data),
        ]  # fmt: skip
        adder = self.shared.place(m, FloatAdd, "adder", a=Mux(self.clear, 0, accumulators.read[0].data), b=term)
        m.d.comb += [
            accumulators.write[0].enable.eq(self.acc_write), accumulators.write[0].address.eq(self.acc_write_address),
            accumulators.write[0].data.eq(adder["y"]),
        ]  # fmt: skip
        return m

    @staticmethod
    def dot(m: Module, weight: Value, activation: Value) -> Signal:
        """Return the register of the exact sum of 32 products, three cycles behind the operands."""
        products = [state(64, f"products{i}") for i in range(BLOCK // 4)]
        for i in range(BLOCK):
            lane = slice(8 * i, 8 * i + 8)
            m.d.sync += products[i // 4][16 * (i % 4) : 16 * (i % 4) + 16].eq(weight[lane].as_signed() * activation[lane].as_signed())
        quarters = [Signal(signed(18), name=f"quarter{i}", reset_less=True) for i in range(BLOCK // 4)]
        for quarter, four in zip(quarters, products, strict=True):
            p = [four[16 * i : 16 * i + 16].as_signed() for i in range(4)]
            m.d.sync += quarter.eq((p[0] + p[1]) + (p[2] + p[3]))
        isum = Signal(signed(21), name="isum", reset_less=True)
        q = quarters
        m.d.sync += isum.eq(((q[0] + q[1]) + (q[2] + q[3])) + ((q[4] + q[5]) + (q[6] + q[7])))
        return isum

    @staticmethod
    def scale(m: Module, weight_scale: Value, activation_scale: Value) -> tuple[Value, Value]:
        """Return significand (19 bits) and flags of the product of the scales, when the magnitude of isum is in its register.

        Flags: signed biased exponent (11 bits), sign, zero, infinite, nan. The significand is exact: 11 by 8 bits.
        """
        w_exponent, a_exponent = weight_scale[10:18], activation_scale[7:15]
        w_top, a_top, w_zero, a_zero = w_exponent == 255, a_exponent == 255, w_exponent == 0, a_exponent == 0
        product = state(19, "scale_product")
        exponent = Signal(signed(11), name="scale_exponent", reset_less=True)
        sign, zero, infinite, nan = (state(1, f"scale_{n}") for n in ("sign", "zero", "infinite", "nan"))
        w_nan, a_nan = w_top & (weight_scale[0:10] != 0), a_top & (activation_scale[0:7] != 0)
        m.d.sync += [
            product.eq(Cat(weight_scale[0:10], C(1, 1)) * Cat(activation_scale[0:7], C(1, 1))), exponent.eq(w_exponent + a_exponent - 127),
            sign.eq(weight_scale[18] ^ activation_scale[15]), infinite.eq(w_top | a_top), zero.eq((w_zero | a_zero) & ~(w_top | a_top)),
            nan.eq(w_nan | a_nan | (w_top & a_zero) | (a_top & w_zero)),
        ]  # fmt: skip
        carry = product[18]
        significand = Mux(carry, product, product << 1)[0:19]
        adjusted = Signal(signed(11))
        m.d.comb += adjusted.eq(exponent + carry)
        overflow, underflow = adjusted >= 255, adjusted <= 0
        flags = Cat(adjusted, sign, (zero | underflow) & ~infinite, infinite | (overflow & ~zero), nan)
        significands, all_flags = [state(19, f"significand{i}") for i in range(3)], [state(15, f"flags{i}") for i in range(3)]
        m.d.sync += [significands[0].eq(significand), all_flags[0].eq(flags)]
        for regs in (significands, all_flags):
            m.d.sync += [b.eq(a) for a, b in pairwise(regs)]
        return significands[2], all_flags[2]

    @staticmethod
    def scaled(m: Module, isum: Signal, significand: Value, flags: Value) -> Signal:
        """Return the register of fp32(isum * scale), four cycles behind isum."""
        magnitude, negative = state(20, "magnitude"), state(1, "negative")
        m.d.sync += [magnitude.eq(Mux(isum < 0, -isum, isum)), negative.eq(isum < 0)]
        product, later = state(39, "product"), state(15, "product_flags")
        sign = flags[11] ^ negative
        nothing = magnitude == 0
        infinite, nan = flags[13] & ~flags[14], flags[14]
        m.d.sync += [
            product.eq(magnitude * significand),
            later.eq(Cat(flags[0:11], sign, (flags[12] | nothing) & ~infinite, infinite, nan | (infinite & nothing))),
        ]  # fmt: skip
        norm, count = normalised(m, product, "product")
        fraction, exponent = rounding(m, norm, later[0:11].as_signed() + 20 - count)
        last = state(4, "last_flags")
        m.d.sync += last.eq(later[11:15])
        term = state(32, "term")
        m.d.sync += term.eq(packed(sign=last[0], exponent=exponent, fraction=fraction, zero=last[1], infinite=last[2], nan=last[3]))
        return term
