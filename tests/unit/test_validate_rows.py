"""A table of measurements is read strictly: every wrong cell is named by file, line and column."""

import pytest

from fabless.core.errors import InputError
from fabless.validate.rows import SERVING_COLUMNS, read_rows
from fabless.validate.validation import validate

GOOD = {
    "id": "a1", "chip": "NVIDIA H100 SXM", "chips": "8", "model": "llama2-70b", "precision": "fp16", "phase": "prefill", "input_len": "512",
    "output_len": "128", "concurrency": "1", "metric": "ttft", "value": "92.5", "unit": "ms",
    "software": "Splitwise measurement set (vLLM 2023)",
}  # fmt: skip


def write(path, *rows, columns=SERVING_COLUMNS):
    lines = [",".join(columns)]
    lines += [",".join(f'"{row.get(c, "")}"' for c in columns) for row in rows]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_a_row_is_read_in_si_units(tmp_path):
    row = read_rows(write(tmp_path / "t.csv", GOOD)).rows[0]
    assert (row.value, row.unit, row.chips, row.input_tokens, row.concurrency, row.line) == (0.0925, "s", 8, 512.0, 1, 2)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"unit": "furlongs"}, "line 2, column 'unit': unknown unit 'furlongs'"),
        ({"value": "fast"}, "line 2, column 'value': 'fast' is not a number"),
        ({"value": "nan"}, "line 2, column 'value': 'nan' is not a number"),
        ({"value": "0"}, "line 2, column 'value': ttft of 0 ms is not above zero"),
        ({"value": "-3"}, "line 2, column 'value': ttft of -3 ms is not above zero"),
        ({"chips": "many"}, "line 2, column 'chips': 'many' is not a number"),
        ({"chips": "2.5"}, "line 2, column 'chips': '2.5' is not a whole number of chips"),
        ({"input_len": "long"}, "line 2, column 'input_len': 'long' is not a number"),
        ({"input_len": "-1"}, "line 2, column 'input_len': '-1' tokens is not above zero"),
        ({"concurrency": "-4"}, "line 2, column 'concurrency': '-4' is not a whole number of concurrency"),
        ({"id": ""}, "line 2, column 'id': empty"),
    ],
)
def test_a_wrong_cell_names_file_line_and_column(tmp_path, change, says):
    path = write(tmp_path / "t.csv", GOOD | change)
    with pytest.raises(InputError) as error:
        read_rows(path)
    assert str(error.value).startswith(f"{path}: {says}")
    lenient = read_rows(path, lenient=True)
    assert lenient.rows == ()
    assert sum(lenient.refused.values()) == 1


def test_an_id_may_not_repeat(tmp_path):
    path = write(tmp_path / "t.csv", GOOD, GOOD)
    with pytest.raises(InputError, match="line 3, column 'id': 'a1' is already the id of line 2; make ids unique"):
        read_rows(path)
    assert len(read_rows(path, lenient=True).rows) == 1


def test_a_missing_column_is_named_with_the_nearest(tmp_path):
    columns = tuple("units" if c == "unit" else c for c in SERVING_COLUMNS)
    with pytest.raises(InputError, match=r"line 1: no column 'unit'; did you mean 'units'\?"):
        read_rows(write(tmp_path / "t.csv", GOOD, columns=columns))


def test_a_line_with_the_wrong_number_of_cells_is_named(tmp_path):
    path = write(tmp_path / "t.csv", GOOD)
    path.write_text(path.read_text() + "b,c\n")
    with pytest.raises(InputError, match="line 3: 2 cells where the header names 13 columns"):
        read_rows(path)


@pytest.mark.parametrize("content", ["", "\n"])
def test_an_empty_file_is_refused(tmp_path, content):
    path = tmp_path / "t.csv"
    path.write_text(content)
    with pytest.raises(InputError):
        validate(path)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(InputError, match="cannot read"):
        validate(tmp_path / "none.csv")


def test_unknown_names_are_skipped_with_their_reason(tmp_path):
    rows = [
        GOOD | {"id": "a", "chip": "Quantum 9000"},
        GOOD | {"id": "b", "model": "no-such-model-7b"},
        GOOD | {"id": "c", "metric": "smell"},
    ]
    result = validate(write(tmp_path / "t.csv", *rows))
    assert result.overall.n == 0
    assert dict(result.skipped) == {
        "unknown chip: Quantum 9000": 1,
        "unknown model: no-such-model-7b": 1,
        "no model for metric 'smell'": 1,
    }
    assert result.as_dict()["median_ape"] is None


@pytest.mark.parametrize("chip", ["NVIDIA H100 SXM", "h100_sxm", "H100-SXM-80GB"])
@pytest.mark.parametrize("model", ["llama2-70b", "meta-llama/Llama-2-70b-chat-hf", "llama2-70b-99.9"])
def test_names_are_found_however_they_are_written(tmp_path, chip, model):
    result = validate(write(tmp_path / "t.csv", GOOD | {"chip": chip, "model": model}))
    assert result.overall.n == 1, result.skipped


def test_a_gemm_table_of_either_form_is_predicted(tmp_path):
    portable = tmp_path / "gemm.csv"
    portable.write_text("chip,dtype,m,n,k,latency_s\nh100_sxm,bfloat16,4096,4096,4096,2.1e-4\nH100 SXM,fp8,4096,4096,4096,1.2e-4\n")
    native = tmp_path / "h100_sxm_gemm_test.csv"
    native.write_text("gemm_dtype,m,n,k,latency_ms\nbfloat16,4096,4096,4096,0.21\n")
    one, two = validate(portable), validate(native)
    assert (one.overall.n, two.overall.n) == (2, 1)
    assert one.rows[0].predicted == two.rows[0].predicted
    assert one.as_dict()["families"][0]["family"] == "nvidia_hopper"


@pytest.mark.parametrize("text", ["0", "-1", "soon"])
def test_a_kernel_table_is_read_as_strictly(tmp_path, text):
    path = tmp_path / "gemm.csv"
    path.write_text(f"chip,dtype,m,n,k,latency_s\nh100_sxm,bfloat16,1,1,1,{text}\n")
    with pytest.raises(InputError, match="line 2, column 'latency_s'"):
        validate(path)
    assert validate(path, lenient=True).overall.n == 0


def test_a_gemm_table_without_its_chip_column_names_it(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("dtype,m,n,k,latency_s\nbfloat16,1,1,1,1\n")
    with pytest.raises(InputError, match="no column 'chip'"):
        validate(path)


def test_leave_out_knows_chip_and_model(tmp_path):
    with pytest.raises(InputError, match="leave_out must be 'chip' or 'model', not 'row'"):
        validate(write(tmp_path / "t.csv", GOOD), leave_out="row")
