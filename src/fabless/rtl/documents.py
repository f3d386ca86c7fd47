"""What goes with the Verilog of a tile: C header, register map, block diagram."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fabless.program.isa import ISA, Queue
from fabless.program.timing import LINK_QUEUE_BEATS
from fabless.rtl.emit import tile_verilog

if TYPE_CHECKING:
    from pathlib import Path

    from fabless.program.tile import Tile

#: (port, bits or a formula's text, direction, meaning) of the host's ports of `fl_tile`.
HOST_PORTS = (
    ("start", "1", "in", "begin at instruction 0; one cycle, while done or after reset"),
    ("done", "1", "out", "the program has halted"),
    ("cycles", "48", "out", "cycles from the first instruction to halt"),
    ("counter_address", "5", "in", "which counter: 8 for each event (busy, semaphore, full) + queue (ctrl, load, store, mxu, vpu, net)"),
    (
        "counter_data",
        "48",
        "out",
        "cycles of the launch in which a queue's unit worked, its head waited for a semaphore, or ctrl found it full; a cycle later",
    ),
    ("popped", "6", "out", "one bit a queue: an instruction starts (ctrl: ends) in this cycle"),
    ("host_program", "1", "in", "write host_data to program word host_address"),
    ("host_parameter", "1", "in", "write host_data[31:0] to parameter word host_address"),
    ("host_address", "32", "in", "word to write"),
    ("host_data", "128", "in", "what to write"),
)
MEMORY_PORTS = (
    ("read_valid, read_ready, read_address", "1, 1, 40", "out, in, out", "ask for a beat; taken when both are high"),
    ("answer_valid, answer_data", "1, 8 B", "in", "answers, in the order asked, a cycle after the request or later; never refused"),
    ("write_valid, write_ready", "1, 1", "out, in", "write a beat; in memory when both are high"),
    ("write_address, write_data, write_strobe", "40, 8 B, B", "out", "byte address (a multiple of B), data, one bit a byte"),
)
LINK_PORTS = (
    ("link_valid, link_data", "1, 8 N", "out", "a beat for the next tile of the ring; never refused, a credit each"),
    ("credit", "1", "in", "the next tile has room for one more"),
    ("arrive_valid, arrive_data", "1, 8 N", "in", "a beat of the tile before, as many cycles later as the wires take, at least one"),
    ("credit_out", "1", "out", "room for one more, to the tile before"),
)


def write_documents(tile: Tile, directory: Path, name: str) -> tuple[Path, ...]:
    """Write tile.v, tile.h, registers.md and tile.svg; the same bytes for the same tile. Returns their paths."""
    directory.mkdir(parents=True, exist_ok=True)
    texts = {"tile.v": tile_verilog(tile), "tile.h": header(tile), "registers.md": registers(tile, name), "tile.svg": diagram(tile, name)}
    for file, text in texts.items():
        (directory / file).write_text(text)
    return tuple(directory / file for file in texts)


def header(tile: Tile) -> str:
    """Return a C header: the tile's sizes, and opcode and place of every field of every instruction."""
    from dataclasses import fields

    lines = ["#ifndef FABLESS_TILE_H", "#define FABLESS_TILE_H", "", f'#define FL_TILE_DIGEST "{tile.digest}"']
    lines += [f"#define FL_{f.name.upper()} {getattr(tile, f.name)}ull" for f in fields(tile)]
    for spec in ISA:
        prefix = f"FL_{spec.mnemonic.upper()}"
        lines += ["", f"#define {prefix} {spec.code}"]
        lines += [f"#define {prefix}_{f.name.upper()}_LSB {f.lsb}\n#define {prefix}_{f.name.upper()}_BITS {f.bits}" for f in spec.fields]
    return "\n".join([*lines, "", "#endif", ""])


def registers(tile: Tile, name: str) -> str:
    """Return the ports and the host's view as a Markdown page."""
    b = tile.memory_bytes_per_cycle
    rows = ["| port | bits | direction | meaning |", "| --- | --- | --- | --- |"]
    host = [f"| {' | '.join(port)} |" for port in HOST_PORTS]
    memory = [f"| {' | '.join(port).replace('8 B', str(8 * b)).replace(', B', f', {b}')} |" for port in MEMORY_PORTS]
    n = tile.link_port_bytes
    link = [f"| {' | '.join(port).replace('8 N', str(8 * n))} |" for port in LINK_PORTS]
    spaces = [
        ("program", tile.instruction_words, "128-bit instructions"), ("parameters", tile.parameter_words, "signed 32-bit words"),
        ("memory", tile.memory_bytes, "bytes"),
    ]  # fmt: skip
    return "\n".join([
        f"# Tile of {name}", "", f"{tile.rows} rows, {tile.vector_lanes} vector lanes, memory port of {b} bytes, links of {n}; digest {tile.digest}.",
        "", "## Host", "", *rows, *host, "", "## Memory", "", *rows, *memory, "", "## Links", "",
        f"A tile holds {LINK_QUEUE_BEATS} credits at reset: so many beats find room at its neighbour.", "", *rows, *link, "",
        "## Sizes", "", "| space | size | of |", "| --- | --- | --- |",
        *(f"| {space} | {size} | {of} |" for space, size, of in spaces), "",
    ])  # fmt: skip


def diagram(tile: Tile, name: str) -> str:
    """Return a block diagram as SVG: queues, units, buffers and ports with their sizes."""
    boxes: list[tuple[int, int, int, int, str, str]] = [
        (20, 60, 150, 60, "sequencer", f"{tile.instruction_words} instructions"), (20, 140, 150, 50, "parameters", f"{tile.parameter_words} words"),
        (210, 60, 110, 400, "queues", f"5 x {tile.queue_depth} deep"), (360, 60, 150, 60, "load", f"{tile.memory_bytes_per_cycle} B a cycle"),
        (360, 140, 150, 60, "store", f"{tile.memory_bytes_per_cycle} B a cycle"), (360, 220, 150, 70, "matrix unit", f"{tile.rows} rows x 32 lanes"),
        (360, 310, 150, 70, "vector unit", f"{tile.vector_lanes} lanes"),
        (360, 400, 150, 60, "net", f"{tile.link_bytes_per_cycle} B a cycle each way" if tile.has_link else "none"),
        (560, 60, 170, 60, "weights", f"{tile.weight_words} x {tile.rows} x 32 B"),
        (560, 140, 170, 60, "activations", f"{tile.activation_words} x 34 B"),
        (560, 220, 170, 70, "accumulators", f"{tile.accumulator_words} x {tile.rows} fp32"),
        (560, 310, 170, 70, "vectors", f"{tile.vector_elements} fp32"),
    ]  # fmt: skip
    lines = [(170, 90, 210, 90), (95, 120, 95, 140)]
    lines += [(320, y, 360, y) for y in (90, 170, 255, 345)] + [(510, y, 560, y) for y in (90, 170, 255, 345)]
    lines += [
        (320, 430, 360, 430),
        (510, 420, 560, 365),
        (510, 410, 560, 195),
        (510, 240, 560, 180),
        (510, 240, 560, 105),
        (510, 330, 560, 270),
        (510, 330, 560, 190),
        (510, 100, 560, 325),
        (510, 185, 560, 335),
    ]
    parts = [
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 750 480" font-family="sans-serif" font-size="13">',
        f'<text x="20" y="30" font-size="17">Tile of {_escaped(name)}: {len(Queue)} queues, {tile.rows} rows, {tile.vector_lanes} lanes</text>',
        *(f'<line x1="{a}" y1="{b}" x2="{c}" y2="{d}" stroke="#888"/>' for a, b, c, d in lines),
    ]
    for x, y, w, h, title, size in boxes:
        parts.append(f'<rect x="{x}" y="{y}" width="{w}" height="{h}" fill="#eef3f8" stroke="#345"/>')
        parts.append(f'<text x="{x + w // 2}" y="{y + h // 2 - 3}" text-anchor="middle">{title}</text>')
        parts.append(f'<text x="{x + w // 2}" y="{y + h // 2 + 14}" text-anchor="middle" font-size="11" fill="#456">{size}</text>')
    return "\n".join([*parts, "</svg>", ""])


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;")
