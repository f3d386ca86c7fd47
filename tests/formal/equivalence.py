"""Whether a mutant of a netlist can be told from the netlist at all: proven by SAT, or left undecided.

Both netlists become and-inverter graphs of one graph, in which equal logic is one node, so that only what the mutant touches is left to compare.
Registers of a feed-forward pipeline are looked through (a value in cycle t is its input in t - 1); registers that depend on themselves are cut: their
output is free, their input must be equal. Memories are cut likewise: what is read is free, what is written and asked for must be equal. A mutant under
which no observed bit can differ, whatever the free values are, is equivalent, by induction over cycles.
It speaks of a pipeline that has filled: what registers hold at power-up is not looked at. What is free may take values that it never takes in the
chip; `Contract` narrows it, so that "differs" often means "differs where nobody goes": such a mutant is not called equivalent.
"""

from __future__ import annotations

import json
import multiprocessing
import re
import subprocess
import sys
import tempfile
from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

#: How far (in gates) logic that both netlists share is looked at behind the part that differs; behind that its values are free. None: all of it.
DEPTHS = (12, None)


@contextmanager
def deep():
    """Let Python's own recursion go as deep as logic does, and no longer than that: elsewhere the limit is what keeps it from running off its stack."""
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(100_000)
    try:
        yield
    finally:
        sys.setrecursionlimit(limit)


@dataclass(frozen=True)
class Contract:
    """What holds of a block's inputs and memories. A source is an input, or "MEMORY.RD0": what a memory's port reads.

    `assumed`: source to (width, rule); a rule is a function of graph and bits to the literal that says that they are legal. `kept`: source to (memory
    port that writes, width, rule), proven of what is written before it is assumed of what is read (all memories begin with zeros, which every rule
    allows). `when`: a memory's port to the input that is 1 in all cycles in which anybody looks at what the port reads.
    """

    assumed: dict = field(default_factory=dict)
    kept: dict = field(default_factory=dict)
    when: dict = field(default_factory=dict)


def canonical(graph: Graph, bits: list[int]) -> int:
    """Say that these are the upper bits of a canonical binary32 code: no subnormal, no -0, one NaN."""
    fraction, exponent, sign = bits[:-9], bits[-9:-1], bits[-1]
    zero = graph.some(exponent) ^ 1
    nan = graph.both(graph.every(exponent), graph.some(fraction))
    only_top = graph.every([fraction[-1], sign ^ 1, *(f ^ 1 for f in fraction[:-1])])
    return graph.both(graph.either(zero ^ 1, graph.some(bits) ^ 1), graph.either(nan ^ 1, only_top))


class Graph:
    """And-inverter graph: a literal is twice a node, plus one if inverted; node 0 is false. Equal logic gets equal literals."""

    def __init__(self):
        self.fanin, self.depth, self._known, self.sources = [(0, 0)], [0], {}, {}

    def source(self, key):
        if key not in self.sources:
            self.sources[key] = 2 * len(self.fanin)
            self.fanin.append(None)
            self.depth.append(0)
        return self.sources[key]

    def both(self, a: int, b: int) -> int:
        if a > b:
            a, b = b, a
        if a == 0 or a == b ^ 1:
            return 0
        if a in (1, b):
            return b
        key = a, b
        if key not in self._known:
            self._known[key] = 2 * len(self.fanin)
            self.fanin.append(key)
            self.depth.append(1 + max(self.depth[a >> 1], self.depth[b >> 1]))
        return self._known[key]

    def either(self, a: int, b: int) -> int:
        return self.both(a ^ 1, b ^ 1) ^ 1

    def differ(self, a: int, b: int) -> int:
        return self.either(self.both(a, b ^ 1), self.both(a ^ 1, b))

    def choose(self, s: int, one: int, zero: int) -> int:
        return self.either(self.both(s, one), self.both(s ^ 1, zero))

    def every(self, literals) -> int:
        out = 1
        for literal in literals:
            out = self.both(out, literal)
        return out

    def some(self, literals) -> int:
        return self.every(literal ^ 1 for literal in literals) ^ 1

    def below(self, *roots: int) -> set[int]:
        """Return the nodes in the cones of literals."""
        seen, todo = set(), [root >> 1 for root in roots]
        while todo:
            node = todo.pop()
            if node not in seen:
                seen.add(node)
                todo += [f >> 1 for f in self.fanin[node] or ()]
        return seen


class Undecided(Exception):  # noqa: N818 (it is a verdict, not an error)
    """The mutant is of a kind that is not looked into: a clock, or a loop of logic."""


class Netlist:
    """One module of gates, registers and memories, as Yosys writes it in JSON, and its values in a graph."""

    def __init__(self, path: Path, top: str):
        module = json.loads(path.read_text())["modules"][top]
        self.cells = {n: c for n, c in module["cells"].items() if c["type"] != "$scopeinfo"}
        self.outputs = {n: p["bits"] for n, p in module["ports"].items() if p["direction"] == "output"}
        self.driver, self.values = {}, {}
        for name, port in module["ports"].items():
            if port["direction"] == "input":
                self.driver |= {bit: ("source", name, i) for i, bit in enumerate(port["bits"])}
        clock = module["ports"]["clk"]["bits"][0] if "clk" in module["ports"] else None
        for name, cell in self.cells.items():
            wires, kind = cell["connections"], cell["type"]
            if any(bit != clock for p in ("CLK", "RD_CLK", "WR_CLK") for bit in wires.get(p, ()) if bit != "x"):
                raise Undecided("a clock")
            if kind == "$mem_v2":
                width = int(cell["parameters"]["WIDTH"], 2)
                self.driver |= {bit: ("source", f"{name}.RD{i // width}", i % width) for i, bit in enumerate(wires["RD_DATA"])}
            elif kind == "$dff":
                self.driver |= {bit: ("register", name, i) for i, bit in enumerate(wires["Q"])}
            else:
                assert kind in _GATES, f"no rule for {kind}"
                self.driver[wires["Y"][0]] = ("gate", name, 0)

    def before(self, bit) -> list:
        """Return the bits that a bit is computed from, a register's in the cycle before."""
        kind, name, index = self.driver.get(bit, ("source", "", 0))
        if kind == "source":
            return []
        wires = self.cells[name]["connections"]
        bits = [wires["D"][index]] if kind == "register" else [wires[p][0] for p in _GATES[self.cells[name]["type"]][0]]
        return [b for b in bits if not isinstance(b, str)]

    def cuts(self) -> set[tuple[str, int]]:
        """Return the registers (cell, bit) that depend on themselves, or stand between two that do."""
        before = {bit: set(self.before(bit)) for bit in self.driver}
        for _ in range(2):  # forwards, then backwards: what a walk from the ends never reaches lies on loops or between them
            after: dict = {}
            for bit, sources in before.items():
                for source in sources:
                    after.setdefault(source, set()).add(bit)
            waiting = {bit: len(sources & before.keys()) for bit, sources in before.items()}
            ready = [bit for bit, n in waiting.items() if n == 0]
            while ready:
                bit = ready.pop()
                del waiting[bit]
                for later in after.get(bit, ()):
                    waiting[later] -= 1
                    if waiting[later] == 0:
                        ready.append(later)
            before = {bit: after.get(bit, set()) & waiting.keys() for bit in waiting}
        return {self.driver[bit][1:] for bit in before if self.driver[bit][0] == "register"}

    def value(self, graph: Graph, bit, t: int, cuts: set[tuple[str, int]]) -> int:
        """Return the literal of a bit in cycle t: 0 is when it is observed, -1 the cycle before."""
        if isinstance(bit, str):
            return int(bit == "1")  # an x is taken as 0 in both netlists
        key = bit, t
        if key in self.values:
            if self.values[key] is None:
                raise Undecided("a loop of logic")
            return self.values[key]
        if bit not in self.driver:
            raise Undecided("a wire that nothing drives")
        kind, name, index = self.driver[bit]
        self.values[key] = None
        if kind == "gate":
            inputs, rule = _GATES[self.cells[name]["type"]]
            found = rule(graph, *(self.value(graph, self.cells[name]["connections"][p][0], t, cuts) for p in inputs))
        elif kind == "register" and (name, index) not in cuts:
            if t < -100:
                raise Undecided("a loop of registers that the block does not have")
            found = self.value(graph, self.cells[name]["connections"]["D"][index], t - 1, cuts)
        else:
            found = graph.source((name, index, t))
        self.values[key] = found
        return found

    def observed(self, cuts: set[tuple[str, int]]):
        """Yield (port, number, bits, enable) of what must be equal where `enable` is 1: outputs, inputs of cut registers, ports of memories."""
        for name, bits in self.outputs.items():
            yield name, 0, bits, "1"
        for name, cell in self.cells.items():
            wires = cell["connections"]
            if cell["type"] == "$dff":
                yield name, 0, [bit for i, bit in enumerate(wires["D"]) if (name, i) in cuts], "1"
            if cell["type"] == "$mem_v2":
                width, address = (int(cell["parameters"][p], 2) for p in ("WIDTH", "ABITS"))
                for i, enable in enumerate(wires["RD_EN"]):
                    yield f"{name}.RD{i}", 0, [enable], "1"
                    yield f"{name}.RD{i}", 1, wires["RD_ADDR"][i * address : (i + 1) * address], enable
                for i in range(int(cell["parameters"]["WR_PORTS"], 2)):
                    part = slice(i * width, (i + 1) * width)
                    for j, (data, enable) in enumerate(zip(wires["WR_DATA"][part], wires["WR_EN"][part], strict=True)):
                        yield f"{name}.WR{i}", j, [data], enable
                        yield f"{name}.WR{i} enable", j, [enable], "1"
                        yield f"{name}.WR{i} address", j, wires["WR_ADDR"][i * address : (i + 1) * address], enable


_GATES = {
    "$_AND_": ("AB", Graph.both),
    "$_OR_": ("AB", Graph.either),
    "$_XOR_": ("AB", Graph.differ),
    "$_XNOR_": ("AB", lambda g, a, b: g.differ(a, b) ^ 1),
    "$_NOT_": ("A", lambda g, a: a ^ 1),
    "$_MUX_": ("SBA", Graph.choose),
}


def satisfiable(graph: Graph, root: int, shared: set[int], depth: int | None, seconds: float) -> bool | None:
    """Return whether a literal can be 1, None if not known; nodes of `shared` are free where they stand `depth` gates below others."""
    if root < 2:
        return bool(root)
    clauses, seen = [[root]], set()
    todo = deque([(root >> 1, 0)])  # nearest first: distance below what is not shared
    while todo:
        node, distance = todo.popleft()
        if node in seen or not graph.fanin[node] or distance == depth:
            continue  # a source, or free
        seen.add(node)
        a, b = graph.fanin[node]
        clauses += [[2 * node ^ 1, a], [2 * node ^ 1, b], [2 * node, a ^ 1, b ^ 1]]
        for below in (a >> 1, b >> 1):
            if below in shared:
                todo.append((below, distance + 1))
            else:
                todo.appendleft((below, distance))
    return solved([[-(literal >> 1) if literal & 1 else literal >> 1 for literal in clause] for clause in clauses], seconds)


def solved(clauses: list[list[int]], seconds: float) -> bool | None:
    """Return whether clauses can all be true, None if that is not known after so many seconds: the solver is a process of its own, ended then."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_solve, args=(clauses, sender))
    child.start()
    answer = receiver.recv() if receiver.poll(seconds) else None
    child.kill()
    child.join()
    return answer


def _solve(clauses: list[list[int]], sender) -> None:
    from pysat.solvers import Solver

    with Solver("cadical195", bootstrap_with=clauses) as solver:
        sender.send(solver.solve())


class Prover:
    """Decide mutants of one netlist: `base` is the RTLIL that the mutants were drawn from, `top` its module."""

    @deep()
    def __init__(self, base: Path, top: str, contract: Contract):
        self.base, self.top, self.contract = base, top, contract
        self.gold = self._netlist("")
        self.cuts = self.gold.cuts()
        self.graph = Graph()
        self.proven: set[str] = set()
        for name, (written, _, _) in contract.kept.items():
            self._keep(name, written)

    def _rules(self) -> dict:
        return self.contract.assumed | {name: self.contract.kept[name][1:] for name in self.proven}

    def _assuming(self, root: int) -> int:
        """Return the literal "and every source in the cone is legal"."""
        rules = self._rules()
        nodes = self.graph.below(root)
        met = {(key[0], key[2]) for key, literal in self.graph.sources.items() if literal >> 1 in nodes and key[0] in rules}
        for name, t in sorted(met):
            width, rule = rules[name]
            root = self.graph.both(root, rule(self.graph, [self.graph.source((name, i, t)) for i in range(width)]))
        return root

    def _keep(self, name: str, written: str) -> None:
        """Prove by induction that what a memory holds is legal."""
        self.proven.add(name)
        width, rule = self._rules()[name]
        ports = [(bits[0], enable) for port, _, bits, enable in self.gold.observed(self.cuts) if port == written]
        data, enables = zip(*((self._gold(bit), self._gold(enable)) for bit, enable in ports), strict=True)
        assert (len(data), len(set(enables))) == (width, 1), f"{written}: one enable and {width} bits expected"
        wrong = self._assuming(self.graph.both(enables[0], rule(self.graph, list(data)) ^ 1))
        assert satisfiable(self.graph, wrong, set(), None, 600) is False, f"{name} can hold what {rule.__name__} forbids"

    def _gold(self, bit) -> int:
        return self.gold.value(self.graph, bit, 0, self.cuts)

    def _miter(self, mutant: Netlist) -> tuple[int, set[int]]:
        """Return the literal "an observed bit differs and all that is assumed holds", and the nodes that both netlists share."""
        graph, terms, pairs = self.graph, [], []
        their_bits = {(name, i): bits for name, i, bits, _ in mutant.observed(self.cuts)}
        for name, i, bits, enable in self.gold.observed(self.cuts):
            theirs = their_bits.get((name, i), ())  # a register that nothing in the mutant reads is not there
            on = self._gold(enable)
            if name in self.contract.when:
                on = graph.both(on, graph.source((self.contract.when[name], 0, 0)))
            for bit, their in zip(bits, theirs, strict=False):
                pair = self._gold(bit), mutant.value(graph, their, 0, self.cuts)
                if pair[0] != pair[1]:
                    terms.append(graph.both(on, graph.differ(*pair)))
                    pairs.append(pair)
        ours, theirs = (graph.below(*side) for side in (zip(*pairs, strict=True) if pairs else ((), ())))
        return self._assuming(graph.some(terms)), ours & theirs

    def _netlist(self, mutate: str) -> Netlist:
        with tempfile.TemporaryDirectory(prefix="fabless-mutant-") as name:
            out = Path(name) / "gates.json"
            others = "t:$dff %n"  # registers keep their names; a pass adds cells that the next maps
            mapped = f"{f'techmap {others}; ' * 3}simplemap {others}"
            script = f"read_rtlil {self.base}; setattr -unset init w:*; {mutate}; opt_clean; dffunmap; {mapped}; opt_clean -purge; write_json {out}"
            code = "import sys; from pyosys import libyosys as y; d = y.Design(); [y.run_pass(p, d) for p in sys.argv[1].split('; ') if p]"
            done = subprocess.run([sys.executable, "-c", code, script], capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-1000:]
            return Netlist(out, self.top)

    @deep()
    def equivalent(self, line: str, seconds: float = 60) -> str:
        """Return "" where the mutant of a line of Yosys's `mutate -list` is proven equivalent, else why it is not."""
        mutate = re.sub(r"-ctrl \S+ \d+ \d+ ", "", line.strip())
        try:
            root, shared = self._miter(self._netlist(mutate))
        except Undecided as why:
            return str(why)
        for depth in DEPTHS:
            found = satisfiable(self.graph, root, shared, depth, seconds)
            if found is False:
                return ""
        return "differs" if found else "not known in time"
