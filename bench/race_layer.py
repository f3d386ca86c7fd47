"""Race fabless against ZigZag, GenZ and SCALE-Sim on one Llama-3-8B layer.

    python bench/race_layer.py

One 128 x 128 array at 1 GHz, 16 MB on chip, 128 B per cycle of DRAM, bf16; prefill of 512 tokens, decode of 8 sequences at context 512. Each
tool runs in its own virtual environment under .bench/ (made on the first run, with the pinned versions below) and gets `LIMIT_S` seconds.

What differs: ZigZag and SCALE-Sim know matrix products only, so attention is their Q.K and P.V products, full (not causal), and
softmax, norms and rotary cost nothing. ZigZag prices each product alone, waiting for its first tile. GenZ prices whole models by
roofline: 32 layers divided by 32, its language head and embedding included. SCALE-Sim simulates every address, so it runs one 256-column,
512-deep corner of the key projection (8 of 256 weight tiles); its compute cycles, without memory stalls, are set against ours of that
corner, and every tile of its fills and drains anew. fabless prices softmax, norms and the rest as well.
"""

from __future__ import annotations

import json
import subprocess
import sys
import venv
from pathlib import Path
from time import perf_counter

ROOT = Path(__file__).parents[1]
LIMIT_S = 240
TOOLS = {
    "zigzag": ["zigzag-dse==3.9.1", "six"],
    "genz": ["genz-llm==0.0.16"],
    "scalesim": ["scalesim==3.0.0", "numpy==1.26.4"],
}
#: (name, repeats, m, n, k) of the layer's products; 8 KV heads, 4 query heads each (config.json of meta-llama/Meta-Llama-3-8B).
PREFILL = [
    ("qkv", 1, 512, 6144, 4096), ("qk", 8, 2048, 512, 128), ("pv", 8, 2048, 128, 512), ("o", 1, 512, 4096, 4096),
    ("gate_up", 1, 512, 28672, 4096), ("down", 1, 512, 4096, 14336),
]  # fmt: skip
DECODE = [
    ("qkv", 1, 8, 6144, 4096), ("qk", 64, 4, 512, 128), ("pv", 64, 4, 128, 512), ("o", 1, 8, 4096, 4096),
    ("gate_up", 1, 8, 28672, 4096), ("down", 1, 8, 4096, 14336),
]  # fmt: skip
LAYER_WEIGHTS = 218_103_808
FLOORS = {
    "prefill": (512 * LAYER_WEIGHTS + 2 * 512 * 512 * 4096) / 128**2,  # multiply-accumulates over the array
    "decode": (2 * LAYER_WEIGHTS + 8 * 512 * 2 * 1024 * 2) / 128,  # bytes over the bandwidth
}

ZIGZAG = """
import json, sys, tempfile, time, logging
from pathlib import Path
logging.disable(logging.CRITICAL)
import yaml
from zigzag.api import get_hardware_performance_zigzag
def port(name, kind, bits, allocation):
    return {"name": name, "type": kind, "bandwidth_min": bits, "bandwidth_max": bits, "allocation": allocation}
def memory(size_bits, operands, ports, served):
    return {"size": size_bits, "r_cost": 1, "w_cost": 1, "area": 0, "latency": 1, "operands": operands, "ports": ports, "served_dimensions": served}
accelerator = {
    "name": "array128",
    "memories": {
        "rf_w": memory(32, ["I2"], [port("r_port_1", "read", 16, ["I2, tl"]), port("w_port_1", "write", 16, ["I2, fh"])], []),
        "rf_o": memory(64, ["O"], [port("r_port_1", "read", 32, ["O, tl"]), port("r_port_2", "read", 32, ["O, th"]),
                                   port("w_port_1", "write", 32, ["O, fh"]), port("w_port_2", "write", 32, ["O, fl"])], []),
        "sram": memory(16_000_000 * 8, ["I1", "I2", "O"], [
            port("r_port_1", "read", 128 * 128, ["I1, tl", "I2, tl", "O, tl", "O, th"]),
            port("w_port_1", "write", 128 * 128, ["I1, fh", "I2, fh", "O, fh", "O, fl"])], ["D1", "D2"]),
        "dram": memory(10**13, ["I1", "I2", "O"], [
            port("rw_port_1", "read_write", 1024, ["I1, fh", "I1, tl", "I2, fh", "I2, tl", "O, fh", "O, tl", "O, fl", "O, th"])], ["D1", "D2"]),
    },
    "operational_array": {"unit_energy": 0.04, "unit_area": 1, "dimensions": ["D1", "D2"], "sizes": [128, 128]},
}
mapping = [{"name": "default", "spatial_mapping": {"D1": ["K, 128"], "D2": ["C, 128"]},
            "memory_operand_links": {"O": "O", "W": "I2", "I": "I1"}}]
folder = Path(tempfile.mkdtemp())
(folder / "a.yaml").write_text(yaml.safe_dump(accelerator, sort_keys=False)); (folder / "m.yaml").write_text(yaml.safe_dump(mapping, sort_keys=False))
out = {}
for phase, products in json.loads(sys.argv[1]).items():
    start = time.perf_counter(); cycles = 0.0
    for name, repeats, m, n, k in products:
        layer = [{"id": 0, "name": name, "operator_type": "Gemm", "equation": "O[b][k]+=W[k][c]*I[b][c]", "loop_dims": ["B", "K", "C"],
                  "loop_sizes": [m, n, k], "operand_precision": {"W": 16, "I": 16, "O": 32, "O_final": 16}, "operand_source": {"I": 0, "W": 0}}]
        found = get_hardware_performance_zigzag(layer, str(folder / "a.yaml"), str(folder / "m.yaml"), opt="latency",
            dump_folder=str(folder / name), pickle_filename=str(folder / "x.pickle"), loma_show_progress_bar=False)
        cycles += repeats * float(found[1])
    out[phase] = {"cycles": cycles, "seconds": time.perf_counter() - start}
print("RESULT" + json.dumps(out))
"""

GENZ = """
import json, sys, time, warnings
warnings.filterwarnings("ignore")
from GenZ import System, Unit, prefill_moddeling, decode_moddeling
def chip():
    return System(Unit(), frequency=1000, flops=128 * 128 * 2 / 1000, off_chip_mem_size=80 * 1024, on_chip_mem_size=16, offchip_mem_bw=128,
                  bits="bf16", num_nodes=1)
out = {}
for phase, call in (
    ("prefill", lambda: prefill_moddeling(model="meta-llama/Llama-3.1-8B", batch_size=1, input_tokens=512, system_name=chip(), bits="bf16")),
    ("decode", lambda: decode_moddeling(model="meta-llama/Llama-3.1-8B", batch_size=8, input_tokens=512, output_tokens=1, system_name=chip(), bits="bf16")),
):
    start = time.perf_counter(); found = call()
    latency = found["Latency"] if isinstance(found, dict) else found.Latency
    out[phase] = {"cycles": float(latency) / 32 * 1e6, "seconds": time.perf_counter() - start}
print("RESULT" + json.dumps(out))
"""

SCALESIM = '''
import json, os, sys, tempfile, time
from scalesim.scale_sim import scalesim
folder = tempfile.mkdtemp(); os.chdir(folder)
open("c.cfg", "w").write("""[general]
run_name = race
[architecture_presets]
ArrayHeight : 128
ArrayWidth : 128
IfmapSramSzkB : 5000
FilterSramSzkB : 5000
OfmapSramSzkB : 5000
IfmapOffset : 0
FilterOffset : 100000000
OfmapOffset : 200000000
Bandwidth : 64
Dataflow : ws
MemoryBanks : 1
ReadRequestBuffer : 64
WriteRequestBuffer : 64
[layout]
IfmapCustomLayout : False
IfmapSRAMBankBandwidth : 64
IfmapSRAMBankNum : 10
IfmapSRAMBankPort : 2
FilterCustomLayout : False
FilterSRAMBankBandwidth : 64
FilterSRAMBankNum : 10
FilterSRAMBankPort : 2
[sparsity]
SparsitySupport : false
SparseRep : ellpack_block
OptimizedMapping : false
BlockSize : 8
RandomNumberGeneratorSeed : 40
[run_presets]
InterfaceBandwidth : CALC
UseRamulatorTrace : False
""")
out = {}
for phase, m in (("prefill", 512), ("decode", 8)):
    open("t.csv", "w").write(f"Layer,M,N,K,Sparsity\\nkey,{m},256,512,1:1,\\n")
    open("l.csv", "w").write("Layer,a,b,c,d,e,f,g,h,i,j,k,l\\nkey,1,1,1,1,1,1,1,1,1,1,1,1,\\n")
    start = time.perf_counter()
    run = scalesim(save_disk_space=True, verbose=False, config="c.cfg", topology="t.csv", layout="l.csv", input_type_gemm=True)
    run.run_scale(top_path=folder)
    layer = run.runner.single_layer_sim_object_list[0]
    out[phase] = {"cycles": float(layer.get_compute_report_items()[1] - layer.get_compute_report_items()[2]), "seconds": time.perf_counter() - start}
print("RESULT" + json.dumps(out))
'''
PROGRAMS = {"zigzag": ZIGZAG, "genz": GENZ, "scalesim": SCALESIM}


def environment(name):
    """Return the interpreter of a tool's environment, made if absent."""
    folder = ROOT / ".bench" / name
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "-q", *TOOLS[name]], check=True)
    return python


def race(name):
    """Run a tool; return its result per phase, or the last line of what went wrong."""
    try:
        argument = json.dumps({"prefill": PREFILL, "decode": DECODE})
        done = subprocess.run(
            [environment(name), "-c", PROGRAMS[name], argument], capture_output=True, text=True, timeout=LIMIT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return f"no answer within {LIMIT_S} s"
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT")]
    return json.loads(lines[-1][6:]) if lines else (done.stderr.strip().splitlines() or ["no output"])[-1]


def fabless_layer():
    """Return cycles and seconds of our estimate, and the compute cycles of the key projection alone."""
    from fabless.chip.chip import Chip, Core, Dram, Link, Mesh, Sram
    from fabless.model.graph import Attention, Gemm, Graph, Span, Vector
    from fabless.model.step import Recipe, Step
    from fabless.sim.roofline import estimate

    chip = Chip(
        "array128", "fabless", "7nm", 1e9, 1, Core(Mesh(128, 128, (("bf16", 1.0),)), 128, Sram(16e6)), Dram("hbm2e", 1, 80e9, 128e9),
        Link("none", 0, 0.0, 0.0, 1),
    )  # fmt: skip
    out = {}
    for phase, step, rows, span in (
        ("prefill", Step.prefill(1, 512), 512, Span(1, 512, 512, 512 * 512)),
        ("decode", Step.decode(8, 512), 8, Span(8, 1, 512, 512)),
    ):
        ops = (
            Vector("norm", 2, rows * 4096, 4), Gemm("qkv", 1, rows, 6144, 4096), Vector("rotary", 1, rows * 5120, 6),
            Attention("attention", 1, 32, 8, 128, 128, (span,), 128, 128), Gemm("o", 1, rows, 4096, 4096),
            Gemm("gate_up", 1, rows, 28672, 4096), Vector("activation", 1, rows * 14336, 5), Gemm("down", 1, rows, 4096, 14336),
            Vector("residual", 2, rows * 4096, 1),
        )  # fmt: skip
        graph = Graph("layer", Recipe(), step, ops, 2.0 * LAYER_WEIGHTS, 0.0, 0.0, 1, 4096, n_kv_heads=8)
        start = perf_counter()
        trace = estimate(graph, chip)
        seconds = perf_counter() - start
        key = estimate(Graph("key", Recipe(), step, (Gemm("key", 1, rows, 256, 512),), 8e6, 0.0, 0.0, 1, 4096), chip)
        out[phase] = {"cycles": trace.cycles, "seconds": seconds, "key_cycles": key.events[0].compute_cycles}
    return out


def main():
    ours = fabless_layer()
    results = {name: race(name) for name in TOOLS}
    print("one Llama-3-8B layer, 128 x 128 at 1 GHz, 16 MB, 128 B/cycle, bf16")
    for phase, floor in FLOORS.items():
        print(f"\n{phase}: floor {floor:,.0f} cycles")
        mine = ours[phase]
        print(
            f"  {'fabless':10s} {mine['cycles']:14,.0f} cycles  {mine['cycles'] / floor:5.2f} of the floor  {mine['seconds'] * 1e3:10.2f} ms"
        )
        for name, result in results.items():
            if isinstance(result, str):
                print(f"  {name:10s} {result}")
                continue
            r = result[phase]
            base, what = (mine["key_cycles"], "of fabless on that corner") if name == "scalesim" else (floor, "of the floor")
            slower = f"{r['seconds'] / mine['seconds']:,.0f} x our time"
            print(f"  {name:10s} {r['cycles']:14,.0f} cycles  {r['cycles'] / base:5.2f} {what}  {r['seconds'] * 1e3:10.0f} ms  ({slower})")
    print(__doc__.split("What differs: ")[1])


if __name__ == "__main__":
    sys.exit(main())
