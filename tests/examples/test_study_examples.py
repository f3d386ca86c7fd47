"""The three example studies, each in a few hundred points: the answer hangs together and is written whole."""

import csv
import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fabless.chip.check import read_chip
from fabless.core.errors import InputError
from fabless.explore.answer import answer
from fabless.explore.outputs import write_outputs
from fabless.explore.search import design
from fabless.explore.study import read_study

ROOT = Path(__file__).parents[2]
REDUCED = {
    "chat": (
        {
            "process": ("7nm", "5nm"),
            "clock_hz": (1e9,),
            "cores": (256, 384),
            "rows": (64, 128),
            "scratchpad_bytes": (2.0**18,),
            "vector_lanes": (32,),
        },
        (1, 2),
        (32, 64, 128),
        ("nvidia_h100_sxm", "amd_mi300x", "google_tpu_v7", "microsoft_maia_200", "groq_lpu_v1"),
    ),
    "edge": (
        {
            "process": ("16nm", "7nm"),
            "clock_hz": (6e8,),
            "cores": (4, 8),
            "rows": (64, 128),
            "scratchpad_bytes": (2.0**17,),
            "vector_lanes": (16,),
        },
        (1,),
        (1, 4, 16),
        ("nvidia_l4", "nvidia_t4"),
    ),
    "frontier": (
        {
            "process": ("5nm",),
            "clock_hz": (1e9,),
            "cores": (256,),
            "rows": (64, 128),
            "scratchpad_bytes": (2.0**19,),
            "vector_lanes": (64,),
        },
        (16, 64),
        (64, 256, 1024),
        ("nvidia_gb200", "nvidia_h200_sxm"),
    ),
}


@pytest.fixture(scope="module", params=sorted(REDUCED))
def concluded(request):
    space, chips, batches, compare = REDUCED[request.param]
    study = read_study(ROOT / f"examples/{request.param}.toml")
    space = replace(study.space, **space)
    plans = tuple(p for p in study.plans if p.n_chips in chips)
    study = replace(study, space=replace(space, memory=space.memory[:4]), plans=plans, batches=batches, compare=compare)
    return answer(design(study))


def test_the_answer_is_the_frontiers_best_row_priced_exactly(concluded):
    a = concluded
    row = a.frontier.row(a.frontier.best)
    assert row["on_front"]
    assert a.own.usd_per_mtok.mid == pytest.approx(row["usd_per_mtok"], rel=1e-11)
    assert a.own.usd_per_mtok.low == pytest.approx(row["usd_per_mtok_low"], rel=1e-11)
    assert a.own.usd_per_mtok.high == pytest.approx(row["usd_per_mtok_high"], rel=1e-11)
    assert a.own.n_chips == row["n_chips"]
    assert a.own.power_w == pytest.approx(row["power_w"], rel=1e-11)
    assert a.own.services[0].tpot_s == pytest.approx(row["tpot_s"], rel=1e-12)
    assert a.package_usd.mid == pytest.approx(row["package_usd"], rel=1e-11)
    assert a.own.services[0].tpot_s <= a.frontier.study.slo.tpot_s
    assert a.own.services[0].memory_bytes <= a.chip.memory_capacity_bytes
    assert np.exp(a.frontier.columns["score"] - row["score"]).min() == 1.0


def test_headline_tells_chip_count_price_and_verdict(concluded):
    a = concluded
    assert f"{a.own.n_chips:,} of them serve {a.frontier.study.title}" in a.headline
    assert f"${a.own.usd_per_mtok.mid:.3g}" in a.headline
    assert a.headline.endswith(".")
    assert any(verdict in a.headline for verdict in ("uild it", "Too close to call")) == (a.rival is not None)
    assert (a.cheaper_ratio is None) == (a.rival is None)
    assert ("Too close" in a.headline) == (a.cheaper_ratio is not None and 0.25 < a.cheaper_ratio < 0.75)


def test_every_chip_compared_serves_or_says_why(concluded):
    study = concluded.frontier.study
    assert len({o.chip.name for o in concluded.comparison}) == len(study.compare)
    for option in concluded.comparison:
        if option.serves:
            assert option.usd_per_mtok.low <= option.usd_per_mtok.mid <= option.usd_per_mtok.high
            assert all(s.ttft_s <= study.slo.ttft_s and s.tpot_s <= study.slo.tpot_s for s in option.services)
            assert option.n_chips == sum(s.n_chips for s in option.services)
        else:
            assert option.reason
    serving = [o.usd_per_mtok.mid for o in concluded.comparison if o.serves]
    assert serving == sorted(serving)


def test_breakdowns_sum_to_one_and_money_to_the_bill(concluded):
    for group in ("time", "energy", "money"):
        shares = [s for s in concluded.breakdown if s.group == group]
        assert sum(s.ratio for s in shares) == pytest.approx(1.0)
    money = sum(s.value for s in concluded.breakdown if s.group == "money")
    assert money == pytest.approx(concluded.bill.usd_per_year.mid)
    energy = sum(s.value for s in concluded.breakdown if s.group == "energy")
    # The one approximation: the search takes mean prompts for prefill energy, as the breakdown does, so that both count the same watts.
    assert energy == pytest.approx(concluded.own.average_w * concluded.own.n_chips)


def test_tornado_has_ten_inputs_widest_first_around_the_answer(concluded):
    widths = [s.width for s in concluded.tornado]
    assert len(widths) == 10
    assert widths == sorted(widths, reverse=True)
    middle = concluded.own.usd_per_mtok.mid
    assert all(min(s.usd_per_mtok_at_low, s.usd_per_mtok_at_high) <= middle * (1 + 1e-9) for s in concluded.tornado)
    assert all(max(s.usd_per_mtok_at_low, s.usd_per_mtok_at_high) >= middle * (1 - 1e-9) for s in concluded.tornado)


def test_break_even_is_where_the_curves_cross(concluded):
    curve = concluded.break_even
    if curve is None or curve.tokens_per_year is None:
        assert concluded.rival is None or concluded.own.usd_per_mtok.mid > concluded.rival.usd_per_mtok.mid
        return
    built = np.interp(np.log(curve.tokens_per_year), np.log(curve.volumes_tokens_per_year), curve.build_mid)
    # Linear interpolation between the curve's 60 points per some decades, on a hyperbola: within the square of a step over 8.
    step = np.log(curve.volumes_tokens_per_year[1] / curve.volumes_tokens_per_year[0])
    assert built == pytest.approx(curve.rival_usd_per_mtok[0], rel=step**2 / 8 + 1e-6)
    at_study = np.interp(np.log(curve.study_tokens_per_year), np.log(curve.volumes_tokens_per_year), curve.build_mid)
    assert at_study == pytest.approx(concluded.own.usd_per_mtok.mid, rel=step**2 / 8 + 1e-6)


def test_reasons_bindings_and_assumptions_are_told(concluded):
    assert concluded.runners_up
    assert all(r.differs and r.reason for r in concluded.runners_up)
    assert all(0 <= b.gain_ratio < 1 for b in concluded.binding)
    assert list(concluded.binding) == sorted(concluded.binding, key=lambda b: -b.gain_ratio)
    assert any("of its roofline" in text for text in concluded.assumptions)
    assert len(concluded.sources) == len({(s.title, s.url) for s in concluded.sources})
    assert concluded.error_ratio > 0


def test_outputs_are_whole_and_read_back(concluded, tmp_path):
    import pyarrow.parquet as pq

    paths = write_outputs(concluded, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bill.csv", "chip.toml", "frontier.parquet", "study.lock"]
    table = pq.read_table(paths[0])
    assert table.num_rows == concluded.frontier.n_rows
    assert table.column("usd_per_mtok").to_pylist() == concluded.frontier.columns["usd_per_mtok"].tolist()
    assert read_chip(paths[1]).core == concluded.chip.core
    rows = list(csv.DictReader(paths[2].read_text().splitlines()))
    assert sum(float(r["usd_per_year_mid"]) for r in rows) == pytest.approx(concluded.bill.usd_per_year.mid, abs=0.01 * len(rows))
    lock = tomllib.loads(paths[3].read_text())
    assert lock["study_digest"] == concluded.frontier.study.digest
    assert "wafer" in lock["tables"]
    before = [p.read_bytes() for p in paths]
    write_outputs(concluded, tmp_path)
    assert [p.read_bytes() for p in paths] == before


def test_no_permission_is_one_message_and_nothing_half_written(concluded, tmp_path):
    (tmp_path / "out").write_text("a file where a directory should be")
    with pytest.raises(InputError, match="cannot write"):
        write_outputs(concluded, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_two_models_share_a_chip_and_their_sums_add_up():
    space, _, _, _ = REDUCED["chat"]
    study = read_study(ROOT / "examples/chat.toml")
    (first,) = study.workloads
    small = replace(first, model="llama-3.1-8b", share=0.75)
    both = replace(
        study,
        workloads=(replace(first, share=0.25), small),
        space=replace(study.space, **space, memory=study.space.memory[:2], formats=(("int8",),)),
        plans=study.plans[:2],
        batches=(16, 64),
        compare=("nvidia_h200_sxm",),
    )
    a = answer(design(both))
    assert [s.model for s in a.own.services] == ["llama-3.1-70b", "llama-3.1-8b"]
    assert a.own.n_chips == sum(s.n_chips for s in a.own.services)
    row = a.frontier.row(a.frontier.best)
    assert row["tokens_per_s_per_user"] == pytest.approx(min(s.tokens_per_s_per_user for s in a.own.services))
    assert a.own.usd_per_mtok.mid == pytest.approx(row["usd_per_mtok"], rel=1e-11)
