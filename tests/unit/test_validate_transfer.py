"""Cross-validation and error bands: a left-out chip is predicted without its own rows, and every family has a band."""

from dataclasses import replace

import pytest

from fabless.core.errors import InputError
from fabless.fleet.error_band import KINDS, error_band
from fabless.fleet.experiment import software_named, software_parameters
from fabless.validate.meaning import case_of
from fabless.validate.rows import Row
from fabless.validate.transfer import without

ROW = Row(
    id="x", line=2, chip="NVIDIA B200 SXM", chips=8, model="meta-llama/Llama-3.1-70B", precision="fp8", phase="serving", input_tokens=1024.0,
    output_tokens=1024.0, concurrency=16, load="", metric="tpot", value=0.01, unit="s", software="vllm", notes="tp=8 pp=1",
)  # fmt: skip


@pytest.mark.parametrize("left_out", ["chip", "model"])
def test_a_left_out_row_uses_parameters_fitted_without_it(left_out):
    case = case_of(ROW)
    other = without(case, left_out).deployment.software
    own = case.deployment.software
    assert any(getattr(other, name) != getattr(own, name) for name in software_parameters())
    limits = ("memory_ratio", "step_tokens", "max_sequences", "mixes", "reserves_output")
    assert all(getattr(other, name) == getattr(own, name) for name in limits)


def test_software_measured_on_one_chip_alone_falls_back_to_transfer():
    case = case_of(replace(ROW, software="vLLM", chip="NVIDIA H200 SXM"))
    assert case.deployment.software.name == "vllm_default"
    other, general = without(case, "chip").deployment.software, software_named("transfer")
    assert all(getattr(other, name) == getattr(general, name) for name in software_parameters())


@pytest.mark.parametrize("family", ["nvidia_hopper", "aws_neuron", "microsoft_maia", "fabless"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_family_has_a_band_for_every_kind(family, kind):
    assert 0 < error_band(family, kind) < 10


def test_a_family_without_measurements_gets_the_transfer_band():
    assert error_band("microsoft_maia") == error_band("fabless") >= 0.1


def test_an_unknown_kind_is_refused():
    with pytest.raises(InputError, match="no error band for 'smell'; known: tpot"):
        error_band("nvidia_hopper", "smell")
