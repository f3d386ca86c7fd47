"""Laws of hardening that hold for any chip."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fabless.chip.chip import Chip, Core, Dram, Link, Mesh, Mxu, Sram, TensorCore
from fabless.core.errors import InfeasibleError
from fabless.silicon.harden import harden
from fabless.silicon.process import process_named

FORMATS = ("int8", "int4", "fp8_e4m3", "fp4_e2m1", "bf16")
TSMC = ("28nm", "16nm", "7nm", "5nm", "3nm", "2nm")

rates = st.dictionaries(st.sampled_from(FORMATS), st.sampled_from([0.5, 1.0, 2.0, 4.0]), min_size=1).map(lambda d: tuple(d.items()))
sizes = st.sampled_from([4, 16, 64, 128])
matrices = st.one_of(
    st.builds(Mxu, sizes, sizes, rates),
    st.builds(Mesh, sizes, sizes, rates),
    st.builds(TensorCore, rates),
)
srams = st.builds(Sram, st.sampled_from([2.0**k for k in range(14, 22)]), sizes, sizes)
drams = st.one_of(
    st.just(Dram("none", 0, 0.0, 0.0)),
    st.builds(
        Dram,
        st.sampled_from(["hbm2e", "hbm3e", "gddr7", "lpddr5x", "ddr5"]),
        st.integers(1, 8),
        st.just(64e9),
        st.sampled_from([1e11, 1e12, 4e12]),
    ),
)
chips = st.builds(
    Chip,
    name=st.just("c"),
    family=st.sampled_from(["fabless", "nvidia_hopper", "amd_cdna3"]),
    process=st.sampled_from(TSMC),
    clock_hz=st.sampled_from([0.5e9, 1e9, 1.4e9]),
    n_cores=st.integers(1, 32),
    core=st.builds(Core, matrices, sizes, srams, st.none() | srams, st.integers(1, 4)),
    dram=drams,
    link=st.builds(Link, st.just("ring"), st.integers(0, 4), st.sampled_from([0.0, 1e11]), st.just(1e-6), st.just(4)),
    shared=st.none() | srams,
    n_dies=st.integers(1, 4),
)


def hardened(chip):
    try:
        return harden(chip)
    except InfeasibleError:
        return None


@given(chips)
def test_blocks_add_up_and_power_is_ordered(chip):
    silicon = hardened(chip)
    if silicon is None:
        return
    assert sum(b.area_mm2 for b in silicon.blocks) == pytest.approx(silicon.die_area_mm2 * chip.n_dies)
    assert silicon.die_width_mm <= 26
    assert silicon.die_height_mm <= 33
    assert 0 < silicon.leakage_w <= silicon.idle_w <= silicon.tdp_w <= silicon.peak_w
    for joules in [j for _, j in silicon.energy.mac_j] + [
        silicon.energy.vector_op_j,
        silicon.energy.scratchpad_byte_j,
        silicon.energy.link_byte_j,
    ]:
        assert 0 < joules.low <= joules.mid <= joules.high


@given(chips, st.sampled_from(["n_cores", "spare_cores", "scratchpad", "vector_lanes", "n_matrix", "shared", "link"]))
def test_more_of_anything_is_more_area_and_power(chip, what):
    core = chip.core
    more = {
        "n_cores": lambda: replace(chip, n_cores=chip.n_cores + 1),
        "spare_cores": lambda: replace(chip, spare_cores=chip.spare_cores + 1),
        "scratchpad": lambda: replace(
            chip, core=replace(core, scratchpad=replace(core.scratchpad, capacity_bytes=2 * core.scratchpad.capacity_bytes))
        ),
        "vector_lanes": lambda: replace(chip, core=replace(core, vector_lanes=core.vector_lanes + 1)),
        "n_matrix": lambda: replace(chip, core=replace(core, n_matrix=core.n_matrix + 1)),
        "shared": lambda: replace(
            chip,
            shared=Sram(
                (chip.shared.capacity_bytes if chip.shared else 0.0) + 2**20,
                *((chip.shared.banks, chip.shared.width_bytes) if chip.shared else (1, 64)),
            ),
        ),
        "link": lambda: replace(chip, link=replace(chip.link, bandwidth_bytes_per_s=chip.link.bandwidth_bytes_per_s + 1e11)),
    }[what]()
    before, after = hardened(chip), hardened(more)
    if before is None:
        assert after is None
    elif after is not None:
        assert after.die_area_mm2 > before.die_area_mm2
        assert after.leakage_w > before.leakage_w


@given(chips, st.integers(0, len(TSMC) - 2))
def test_a_smaller_process_takes_less_area_and_energy(chip, step):
    older, newer = (hardened(replace(chip, process=TSMC[k])) for k in (step, step + 1))
    if older is None:
        return
    assert newer is not None
    assert newer.die_area_mm2 < older.die_area_mm2
    for (name, old_j), (same, new_j) in zip(older.energy.mac_j, newer.energy.mac_j, strict=True):
        assert name == same
        assert new_j.mid < old_j.mid


@given(chips)
def test_spare_cores_cost_area_and_no_work(chip):
    plain, spared = hardened(replace(chip, n_dies=4)), hardened(replace(chip, n_dies=4, spare_cores=1))
    if plain is not None and spared is not None:
        assert spared.die_area_mm2 > plain.die_area_mm2
        assert dict(spared.energy.mac_j) == dict(plain.energy.mac_j)


@given(chips)
def test_hardening_is_a_function(chip):
    assert hardened(chip) == hardened(chip)


def test_the_reference_process_scales_nothing():
    p = process_named("7nm")
    assert (p.logic_ratio, p.phy_ratio, p.energy_ratio.mid) == (1.0, 1.0, 1.0)
