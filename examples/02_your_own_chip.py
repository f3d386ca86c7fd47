"""Describe a chip of one's own in a dozen lines, harden it into silicon, and write its chip.toml."""

from fabless import Chip, harden
from fabless.chip.check import parse_chip, write_chip
from fabless.chip.chip import Core, Dram, Link, Mxu, Sram

core = Core(
    Mxu(rows=128, lanes=32, rates=(("int8", 1.0), ("bf16", 0.125))), vector_lanes=64, scratchpad=Sram(2**20, banks=16, width_bytes=32)
)
chip = Chip(
    name="mine",
    family="fabless",
    process="5nm",
    clock_hz=1.2e9,
    n_cores=64,
    core=core,
    dram=Dram("hbm3e", stacks=4, capacity_bytes=4 * 36e9, bandwidth_bytes_per_s=4 * 1.2e12),
    link=Link("switch", ports=8, bandwidth_bytes_per_s=400e9, latency_s=5e-7, domain_chips=8),
    package="interposer",
)
silicon = harden(chip)
print(f"{silicon.die_area_mm2:.0f} mm² (± {silicon.area_error_ratio:.0%}) in {silicon.process}, {silicon.tdp_w:.0f} W to cool for")
for block in sorted(silicon.blocks, key=lambda b: -b.area_mm2):
    print(f"   {block.count:>4} × {block.name:<18} {block.area_mm2:7.1f} mm²")
assert parse_chip(write_chip(chip)) == chip  # what chip.toml holds is the whole chip
