"""The command that puts a block of a chip on an FPGA."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from fabless.cli.say import say, say_json, say_pairs
from fabless.core.units import si

Json = Annotated[bool, Parameter(name="--json", negative="")]


def fpga(
    chip: str = "tiny",
    *,
    block: Literal["row", "mxu", "tile"] = "mxu",
    out: Path | None = None,
    fabric_lanes: int | None = None,
    target_mhz: float = 50.0,
    seed: int = 1,
    check: Annotated[bool, Parameter(negative="")] = False,
    json: Json = False,
) -> None:
    """Place and route a block of a chip for a Lattice ECP5-85 (LFE5U-85F, CABGA381) and write its bit file; minutes of work.

    The block stands behind a scan chain of seven pins, through which a host runs it cycle by cycle.

    Args:
        chip: a chip.toml whose matrix unit is dot-product rows, 'tiny', the core of four rows, or 'ecp5', the same with memories that fit the part.
        block: row: one row; mxu: the matrix unit; tile: all of it.
        out: the bit file; <chip>-<block>.bit when not given.
        fabric_lanes: lanes of each row whose multipliers are made of LUTs; 8 for the whole tile of 'ecp5', else 0, when not given.
        target_mhz: the frequency that placement aims at; what is reached is reported.
        seed: of the placement.
        check: before that, simulate the mapped cells of a whole tile with a token of the embedded model: memory as the machine's, cycles as the simulator's.
        json: print JSON instead of text.
    """
    from fabless.core.errors import InputError
    from fabless.fleet.on_fpga import Run, run_mapped
    from fabless.program.tile import ECP5, TINY, Tile
    from fabless.rtl.fpga import ECP5_FABRIC_LANES, check_tools, place

    check_tools()
    if target_mhz <= 0:
        raise InputError(f"--target-mhz must be above 0, not {target_mhz:g}")
    if chip in {"tiny", "ecp5"}:
        name, tile = chip, TINY if chip == "tiny" else ECP5
    else:
        from fabless.chip.catalogue import load_chip

        described = load_chip(chip)
        name, tile = described.name, Tile.of(described)
    if fabric_lanes is None:
        fabric_lanes = ECP5_FABRIC_LANES if (chip, block) == ("ecp5", "tile") else 0
    placed = place(tile, block, fabric_lanes=fabric_lanes, target_hz=target_mhz * 1e6, seed=seed, check=run_mapped if check else None)
    run = placed.run if isinstance(placed.run, Run) else None
    path = out or Path(f"{name}-{block}.bit")
    path.write_bytes(placed.bitstream)
    if json:
        say_json({
            "chip": name, "block": block, "fabric_lanes": fabric_lanes, "part": placed.part, "package": placed.package, "used": placed.used, "available": placed.available,
            "clock_hz": placed.clock_hz, "logic_s": placed.logic_s, "routing_s": placed.routing_s, "bitstream": str(path), "tools": placed.tools,
            "checked_cycles": run and run.cycles,
        })  # fmt: skip
        return
    say(f"{block} of {name} on {placed.part}, {placed.package}, placed and routed")
    say_pairs([
        *((kind, f"{n:,} of {placed.available[kind]:,} ({n / placed.available[kind]:.0%})") for kind, n in placed.used.items()),
        ("clock", f"{si(placed.clock_hz, 'Hz')} (slowest path: {si(placed.logic_s, 's')} of logic, {si(placed.routing_s, 's')} of wires)"),
        *([("checked", f"mapped cells ran {len(run.cycles)} launches of the embedded model: machine's memory, simulator's {sum(run.cycles):,} cycles")]
          if run else []),
        ("bit file", f"{path} ({si(len(placed.bitstream), 'B')})"),
        ("tools", ", ".join(f"{tool} {version}" for tool, version in placed.tools.items())),
    ])  # fmt: skip
