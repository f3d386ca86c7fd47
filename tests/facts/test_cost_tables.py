"""The cost tables: sourced, ranged, complete, and in the right order of size."""

from __future__ import annotations

import tomllib
from importlib.resources import files

import pytest

from fabless.core.errors import InputError, SourceError, UnsupportedError
from fabless.core.ranges import Range
from fabless.core.sources import RANGED_KINDS, table
from fabless.cost.inputs import NAMES, cost_inputs
from fabless.cost.process import PACKAGES, PROCESSES, package_key, process_key
from fabless.cost.rent import TIERS, _ids, priced_chips, rental, rental_row

TABLES = ("wafer", "defects", "packaging", "memory_price", "nre", "datacenter", "electricity", "price_list")
MEMORIES = ("hbm2", "hbm2e", "hbm3", "hbm3e", "hbm4", "gddr6", "gddr7", "lpddr4x", "lpddr5x", "ddr3", "ddr4", "ddr5", "none")


@pytest.mark.parametrize("name", TABLES)
def test_every_row_is_sourced_and_every_soft_row_ranged(name):
    facts = table(name)
    assert len(facts.facts) > 5
    for fact in facts:
        assert fact.source.title
        assert fact.source.publisher
        assert fact.source.url
        if fact.kind in RANGED_KINDS and fact.value is not None:
            assert fact.low is not None
            assert fact.high is not None
    unused = set(facts.sources) - {fact.source.id for fact in facts}
    assert not unused


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("package", PACKAGES)
def test_every_combination_has_every_input(process, package):
    for memory in MEMORIES:
        for place in ("rack", "appliance"):
            inputs = cost_inputs(process, memory, package, place=place)
            for name in NAMES:
                r = getattr(inputs.ranges, name)
                assert 0 <= r.low <= r.mid <= r.high, name
                assert inputs.source(name) or (name == "memory_usd_per_gb" and memory == "none"), name


def test_prices_rise_with_newer_processes():
    for field in ("wafer_usd", "masks_usd", "design_usd", "software_usd"):
        mids = [getattr(cost_inputs(p, "none", "organic").ranges, field).mid for p in PROCESSES]
        assert mids == sorted(mids)


def test_design_and_software_add_up_to_the_published_figure():
    x = cost_inputs("2nm", "none", "organic").ranges
    assert x.design_usd.mid + x.software_usd.mid == pytest.approx(725e6, rel=1e-12)
    assert x.software_usd.mid == pytest.approx(314e6, rel=1e-3)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("TSMC 4N", "4nm"),
        ("TSMC 4NP", "4nm"),
        ("N3E", "3nm"),
        ("TSMC N3P XCD + N6 IOD", "3nm"),
        ("TSMC 5 nm + 6 nm", "5nm"),
        ("TSMC N5, CoWoS-S", "5nm"),
        ("16 nm", "16nm"),
        ("12nm", "16nm"),
        ("TSMC 3 nm (press)", "3nm"),
        ("Samsung SF2", "2nm"),
        ("Intel 18A", "2nm"),
        ("n2", "2nm"),
    ],
)
def test_process_names(name, key):
    assert process_key(name) == key


def test_every_process_of_the_catalogue_is_priced():
    unpriced = {}
    for path in files("fabless.data").joinpath("chips").iterdir():
        name = tomllib.loads(path.read_text("utf-8"))["cells"].get("process", {}).get("value", "unknown")
        try:
            process_key(name)
        except UnsupportedError:
            unpriced[path.name] = name
    assert set(unpriced.values()) <= {"unknown", *UNPRICED}


#: Named in the catalogue, older or other than what the tables price; a study that wants one gives its wafer price.
UNPRICED: set[str] = set()


def test_stacked_memory_needs_a_carrier():
    assert package_key("organic", "hbm3e") == "interposer"
    assert package_key("organic", "lpddr5x") == "organic"
    assert package_key("fanout", "hbm3e") == "fanout"


# ---- the price list


def test_chips_that_the_study_compares_have_a_price_or_are_known_unknowns():
    rentable = [
        "A100",
        "H100",
        "H200",
        "B200",
        "MI300X",
        "TPU v4",
        "TPU v5e",
        "TPU v5p",
        "TPU v6e",
        "Inferentia2",
        "Trainium1",
        "Trainium2",
    ]
    assert all(rental(chip) is not None for chip in rentable)
    assert all(rental(chip, "reserved_3y") is not None for chip in ("B300", "GB200", "GB300", "MI325X", "MI355X"))
    for chip in ("TPU v7", "Trainium3", "Maia 100", "Maia 200", "Jalapeno"):
        assert rental(chip) is None
        row = rental_row(chip, "on_demand")
        assert row is not None
        assert row.value is None


def test_every_priced_chip_is_in_the_catalogue():
    chips = {path.name.removesuffix(".toml") for path in files("fabless.data").joinpath("chips").iterdir()}
    assert set(priced_chips()) <= chips
    assert set(priced_chips()) <= set(_ids().values())


def test_longer_commitments_are_not_dearer():
    order = ("on_demand", "reserved_1y", "reserved_3y")
    for chip in priced_chips():
        if chip == "nvidia_a100_sxm_80gb":
            continue  # its on-demand row is a specialist's, its reservations a hyperscaler's
        if chip in {"nvidia_a100_sxm_40gb", "nvidia_a100_pcie_80gb"}:
            continue  # likewise
        mids = [r.mid for tier in order if (r := rental(chip, tier)) is not None]
        assert mids == sorted(mids, reverse=True), chip


def test_aws_price_cut():
    """R41: p5.48xlarge 98.32 to 55.04 USD/h, 44% less, is the high end of an H100 hour."""
    h100 = rental("H100")
    assert h100 is not None
    assert h100.high == round(55.04 / 8, 2)
    assert round(1 - 55.04 / 98.32, 2) == 0.44


def test_names_of_one_chip_have_one_price():
    assert rental("NVIDIA H100 SXM") == rental("h100") == rental("nvidia_h100_sxm") == Range(2.0, 2.95, 6.88)
    assert rental("something else") is None


# ---- messages


def test_messages_name_the_remedy():
    with pytest.raises(InputError, match=r"no cost input 'wafer_us'; did you mean 'wafer_usd'\?; known: wafer_usd, "):
        cost_inputs("3nm", "hbm3e", "interposer").replace(wafer_us=1.0)
    with pytest.raises(InputError, match=r"cost input 'pue': low 1.4, mid 1.2, high 1.6 are not in order"):
        cost_inputs("3nm", "hbm3e", "interposer").replace(pue=Range(1.4, 1.2, 1.6))
    with pytest.raises(UnsupportedError, match=r"no wafer price for process '130nm'.*known: 28nm, 22nm, "):
        cost_inputs("130nm", "hbm3e", "interposer")
    with pytest.raises(UnsupportedError, match=r"no price for package 'organik'; did you mean 'organic'\?"):
        cost_inputs("3nm", "none", "organik")
    with pytest.raises(InputError, match=r"no place 'rak'; did you mean 'rack'\?; known: rack, appliance"):
        cost_inputs("3nm", "none", "organic", place="rak")
    with pytest.raises(SourceError, match=r"electricity: no row 'texs'; did you mean 'texas'\?"):
        cost_inputs("3nm", "none", "organic", region="texs")
    with pytest.raises(InputError, match=rf"no price tier 'spott'; did you mean 'spot'\?; known: {', '.join(TIERS)}"):
        rental("H100", "spott")
