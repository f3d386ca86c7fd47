"""A study file: what it becomes, and what each mistake in it is answered with."""

import json
import tomllib
from pathlib import Path

import numpy as np
import pytest

from fabless.core.errors import InputError, UnitError
from fabless.explore.study import read_study, study_schema
from fabless.explore.study_file import parse
from fabless.explore.traffic import named_lengths, quantile_lengths

ROOT = Path(__file__).parents[2]
CHAT = tomllib.loads((ROOT / "examples/chat.toml").read_text("utf-8"))


def changed(**paths):
    content = json.loads(json.dumps(CHAT))
    for path, value in paths.items():
        *parents, last = path.split("__")
        place = content
        for parent in parents:
            place = place[parent]
        if value is None:
            del place[last]
        else:
            place[last] = value
    return content


def refused(content, error=InputError):
    with pytest.raises(error) as caught:
        parse(content, "s.toml")
    return str(caught.value)


@pytest.mark.parametrize("name", ["chat", "edge", "frontier"])
def test_examples_are_read(name):
    study = read_study(ROOT / f"examples/{name}.toml")
    assert study.name == name
    assert sum(w.share for w in study.workloads) == pytest.approx(1.0)
    assert all((p.tensor * p.data) % p.expert == 0 for p in study.plans)
    assert study.digest == read_study(ROOT / f"examples/{name}.toml").digest


def test_the_default_study_has_a_million_points():
    assert read_study(ROOT / "examples/chat.toml").n_points >= 1_000_000


def test_units_are_converted_and_a_single_value_is_a_list():
    study = parse(changed(space__clock_hz="1.2 GHz", limits__chip_w="1.1 kW", space__scratchpad_bytes="1 MB"), "s.toml")
    assert study.space.clock_hz == (1.2e9,)
    assert study.limits.chip_w == 1100
    assert study.space.scratchpad_bytes == (1e6,)
    assert parse(changed(slo__ttft_s=0.5), "s.toml").slo.ttft_s == 0.5


def test_a_typo_in_a_key_names_the_nearest():
    assert "s.toml: [traffic] has no key 'requets_per_s'; did you mean 'requests_per_s'?" in refused(changed(traffic__requets_per_s=3))
    assert "s.toml: the file has no key 'modles'; did you mean 'models'?" in refused(changed(modles=[]))
    assert "[space.memory[0]] has no key 'stack'; did you mean 'stacks'?" in refused(
        changed(space__memory=[{"standard": "hbm3", "stack": 4}, {"standard": "hbm3", "stacks": 4}])
    )


def test_a_unit_of_the_wrong_dimension_is_named():
    message = refused(changed(slo__ttft_s="3 W"), UnitError)
    assert message.startswith("s.toml: slo.ttft_s: '3 W' has dimension")
    assert "second" in message
    assert "s.toml: space.clock_hz" in refused(changed(space__clock_hz=["1 GHz", "2 m"]), UnitError)


def test_values_out_of_range_and_missing_ones_name_their_place():
    assert refused(changed(slo__quantile=1.5)) == "s.toml: slo.quantile: input should be less than 1, not 1.5"
    assert refused(changed(study__name=None)) == "s.toml: study.name: field required"
    assert "study.name" in refused(changed(study__name="../up"))
    assert "[traffic] needs requests_per_s or tokens_per_day, and not both" in refused(changed(traffic__requests_per_s=1e3))


def test_unknown_names_are_answered_with_the_nearest():
    assert "no trace is called 'azure_2023_conversatoin'; did you mean 'azure_2023_conversation'?" in refused(
        changed(traffic__lengths="azure_2023_conversatoin")
    )
    assert "'w8a9' is neither a [recipes.w8a9] of this file nor a number format; did you mean 'w8a8'?" in refused(
        changed(models=[{"name": "llama-3.1-70b", "recipes": ["w8a9"]}])
    )
    assert "costs.waffer_usd: no such cost input; did you mean 'wafer_usd'?" in refused(changed(costs={"waffer_usd": 3}))


def test_cost_overrides_are_numbers_ranges_and_quantities():
    study = parse(changed(costs={"electricity_usd_per_kwh": [0.05, 0.07, 0.1], "host_usd": "2 kusd", "pue": 1.2}), "s.toml")
    costs = dict(study.costs)
    assert (costs["electricity_usd_per_kwh"].low, costs["electricity_usd_per_kwh"].high) == (0.05, 0.1)
    assert costs["host_usd"].mid == 2000
    assert "rising order" in refused(changed(costs={"pue": [1.3, 1.2, 1.4]}))


def test_plans_that_cannot_be_are_left_out_and_none_is_an_error():
    study = parse(changed(plans={"tensor": [1, 2], "expert": [2], "batch": [8]}), "s.toml")
    assert [str(p) for p in study.plans] == ["tp2-ep2"]
    assert "[plans] has no legal combination" in refused(changed(plans={"tensor": [3], "expert": [2], "batch": [8]}))
    assert "plans.batch must be at least 1" in refused(changed(plans={"batch": [0, 4]}))


def test_no_process_left_is_an_error():
    assert "has none of limits.processes (2nm)" in refused(changed(limits__processes=["2nm"]))


def test_not_a_file_and_not_toml(tmp_path):
    with pytest.raises(InputError, match="cannot read the study"):
        read_study(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("a = = 1")
    with pytest.raises(InputError, match="not a TOML file"):
        read_study(tmp_path / "bad.toml")


def test_schema_describes_units_and_closed_sections():
    schema = study_schema()
    assert schema["additionalProperties"] is False
    slo = schema["$defs"]["SloSection"]["properties"]["ttft_s"]["anyOf"]
    assert {"number", "string"} == {option["type"] for option in slo}
    rows = schema["$defs"]["SpaceSection"]["properties"]["rows"]["anyOf"]
    assert {option["type"] for option in rows} == {"array", "integer"}


def test_lengths_of_a_trace_are_those_of_its_file():
    trace = ROOT / "../shared/data/traces/azure_llm_2023_conv.csv"
    if not trace.exists():
        pytest.skip("the trace lies beside the repository and is not part of it")
    prompt, answer = np.loadtxt(trace, delimiter=",", skiprows=1, usecols=(1, 2)).T
    lengths = named_lengths("azure_2023_conversation", 0.9)
    assert lengths.input_mean == pytest.approx(prompt.mean(), abs=1e-4)
    assert lengths.output_mean == pytest.approx(answer.mean(), abs=1e-4)
    assert lengths.input_quantile == pytest.approx(np.quantile(prompt, 0.9), abs=1e-3)
    # Walk the definition: every decode step of every request, each with its own context.
    contexts = np.concatenate([p + np.arange(a) + 0.5 for p, a in zip(prompt, answer, strict=True)])
    assert lengths.in_flight_mean == pytest.approx(contexts.mean(), rel=1e-6)
    # Within a step the position is uniform, which adds a variance of 1/12 token to the midpoints counted here.
    assert lengths.in_flight_deviation == pytest.approx(np.sqrt(contexts.var() + 1 / 12), rel=1e-6)


def test_lengths_from_quantiles_pass_through_them_and_keep_a_stated_mean():
    s = np.log(3) / 1.2815515655
    lengths = quantile_lengths((100, 300, 100 * np.exp(2.3263478740 * s), None), (50, 50, 50, 80), 0.9, where="t")
    assert lengths.input_quantile == pytest.approx(300)
    assert lengths.output_mean == pytest.approx(80)
    # These three quantiles are a log-normal's, of mean exp(mu + s^2/2). The grid's last bin, one in 2,000, holds P(Z > 3.29 - s) = 0.8% of
    # the mean, and taking it by its midpoint errs by less than that.
    assert lengths.input_mean == pytest.approx(100 * np.exp(s * s / 2), rel=0.008)
    with pytest.raises(InputError, match=r"t\.input: quantiles must rise"):
        quantile_lengths((100, 30, 900, None), (50, 50, 50, None), 0.9, where="t")
