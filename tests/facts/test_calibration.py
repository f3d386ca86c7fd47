"""Calibration: sourced, physical, and as accurate on measured kernels as its notes say."""

from __future__ import annotations

import csv
from itertools import chain
from pathlib import Path

import numpy as np
import pytest

from fabless.chip.catalogue import load_chip
from fabless.core.sources import table
from fabless.sim.calibration import IDEAL, PARAMETERS, calibration_for
from fabless.sim.kernels import predict_attention, predict_gemm

MEASURED = Path(__file__).parents[2] / "../shared/data/silicon/kernels"
CHIPS = ("a100_sxm", "h100_sxm", "h200_sxm", "b200_sxm", "rtx_pro_6000_server")
NAMES = dict(zip(CHIPS, ("a100", "h100", "h200", "b200", "nvidia_rtx_pro_6000_se"), strict=True))
needs_tables = pytest.mark.skipif(not MEASURED.exists(), reason="measured kernel tables are not part of the repository")


def rows(pattern):
    for short in CHIPS:
        for path in sorted(MEASURED.glob(f"{short}_{pattern}_*.csv")):
            with path.open() as lines:
                yield from ((short, row) for row in csv.DictReader(lines))


def test_a_family_has_at_most_six_parameters_and_efficiencies_are_shares():
    assert len(PARAMETERS) <= 6
    families = {fact.attributes["family"] for fact in table("calibration") if "family" in fact.attributes}
    for family in families:
        c = calibration_for(family)
        assert 0 < c.matrix_efficiency <= 1
        assert 0 < c.memory_efficiency <= 1
        assert 0 < c.link_efficiency <= 1
        assert c.launch_overhead_s >= 0
        assert c.error_ratio is not None
        assert 0 < c.error_ratio < 1


def test_an_unmeasured_family_gets_the_transfer_row_with_a_wider_band():
    unknown = calibration_for("nobody_measured_this")
    assert unknown.matrix_efficiency == table("calibration").fact("transfer.matrix_efficiency").known
    assert unknown.error_ratio >= calibration_for("nvidia_hopper").error_ratio


def test_our_own_chip_is_derived_not_fitted():
    assert calibration_for("fabless") is IDEAL


@needs_tables
def test_gemm_tables_are_met_within_eight_percent():
    groups = {}
    for short, r in rows("gemm"):
        groups.setdefault((short, r["gemm_dtype"]), []).append([float(r[c]) for c in ("m", "n", "k", "latency_ms")])
    errors = []
    for (short, dtype), values in groups.items():
        m, n, k, ms = np.array(values).T
        errors.append(np.abs(predict_gemm(load_chip(NAMES[short]), dtype, m, n, k) / (ms * 1e-3) - 1))
    assert np.median(np.concatenate(errors)) <= 0.08


@needs_tables
def test_attention_tables_are_met_within_ten_percent():
    groups = {}
    columns = ("batch_size", "isl", "step", "num_heads", "num_key_value_heads", "latency_ms")
    for short, r in chain(rows("context_attention"), rows("generation_attention")):
        groups.setdefault((short, r["attn_dtype"], r["kv_cache_dtype"]), []).append([float(r[c]) for c in columns])
    errors = []
    for (short, dtype, kv), values in groups.items():
        b, q, step, h, hk, ms = np.array(values).T
        predicted = predict_attention(load_chip(NAMES[short]), b, q, step, n_heads=h, n_kv_heads=hk, dtype=dtype, kv_dtype=kv)
        errors.append(np.abs(predicted / (ms * 1e-3) - 1))
    assert np.median(np.concatenate(errors)) <= 0.10
