"""Commands that look things up: models, chips, one of either with its sources, the study file's schema."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from fabless.cli.say import plain, say, say_json, say_pairs, say_table
from fabless.core.errors import InputError, nearest
from fabless.core.units import si

if TYPE_CHECKING:
    from fabless.model.model import Model

Json = Annotated[bool, Parameter(name="--json", negative="")]


def models(*, json: Json = False) -> None:
    """List the built-in models with parameters, active parameters and cache per token.

    Args:
        json: print JSON instead of a table.
    """
    from fabless.model.load import load, model_names

    found = [load(name) for name in model_names()]
    if json:
        say_json([_model_row(m) for m in found])
        return
    rows = [
        (
            m.name,
            si(m.n_params, ""),
            si(m.active_params, ""),
            str(m.n_layers),
            str(m.d_model),
            si(_kv_bytes_per_token(m), "B"),
            f"{m.context_tokens:,}",
        )
        for m in found
    ]
    say_table(("model", "parameters", "active", "layers", "d_model", "cache/token bf16", "context"), rows, right=(1, 2, 3, 4, 5, 6))


def _kv_bytes_per_token(model: Model) -> float:
    from fabless.model.step import Recipe

    return model.kv_bytes_per_token(Recipe())


def _model_row(model: Model) -> dict[str, str | float]:
    return {
        "name": model.name,
        "architecture": model.architecture,
        "n_params": model.n_params,
        "active_params": model.active_params,
        "n_layers": model.n_layers,
        "d_model": model.d_model,
        "n_vocab": model.n_vocab,
        "context_tokens": model.context_tokens,
        "kv_bytes_per_token_bf16": _kv_bytes_per_token(model),
    }


def chips(*, json: Json = False) -> None:
    """List the chips of the catalogue; a dash is what nobody has published.

    Args:
        json: print JSON instead of a table.
    """
    from fabless.chip.catalogue import chip_names, load_chip
    from fabless.chip.chip import matrix_rates

    found = [load_chip(name) for name in chip_names()]
    if json:
        say_json(found)
        return
    rows = []
    for chip in found:
        peaks = dict(matrix_rates(chip.core.matrix))
        scale = 2 * chip.core.n_matrix * chip.n_cores * chip.clock_hz
        best = max(peaks, key=lambda name: peaks[name])
        dense16 = peaks.get("bf16", peaks.get("fp16", 0.0))
        rows.append((
            chip.name, chip.vendor, str(chip.year or "-"), si(dense16 * scale, "op/s") if dense16 else "-", f"{si(peaks[best] * scale, 'op/s')} {best}",
            si(chip.memory_capacity_bytes, "B"), si(chip.dram.bandwidth_bytes_per_s, "B/s") if chip.dram.standard != "none" else "SRAM", f"{chip.tdp_w:.0f} W" if chip.tdp_w else "-", f"{len(chip.assumptions) or ''}",
        ))  # fmt: skip
    say_table(("chip", "vendor", "year", "16-bit", "best", "memory", "bandwidth", "power", "assumed"), rows, right=(3, 5, 6, 7, 8))


def show(name: str, *, json: Json = False) -> None:
    """Show one model or chip in full, every figure with its source and grade.

    Args:
        name: a model or chip of the catalogue, or a file: chip.toml, config.json, *.safetensors, *.gguf, or a directory with a model.
        json: print JSON instead of text.
    """
    from fabless.chip.catalogue import find_chip, spellings
    from fabless.model.load import find_name, load, model_names

    path = Path(name)
    is_chip_file = path.suffix == ".toml" and path.is_file()
    if is_chip_file or (not path.exists() and find_chip(name) and not find_name(name)):
        _show_chip(name, json=json)
        return
    if path.exists() or find_name(name):
        model = load(name)
        if json:
            say_json(_model_row(model) | {"model": model})
        else:
            say_pairs(
                (key.replace("_", " "), str(value) if isinstance(value, str) else f"{value:,.0f}")
                for key, value in _model_row(model).items()
            )
        return
    raise InputError(
        f"no model, chip or file is called '{name}'{nearest(name, [*model_names(), *spellings()])}; see 'fabless models' and 'fabless chips'"
    )


def _show_chip(name: str, *, json: bool) -> None:
    from fabless.chip.catalogue import chip_facts, load_chip
    from fabless.report.tables import chip_rows
    from fabless.silicon.harden import harden

    chip = load_chip(name)
    facts = chip_facts(name) if not name.endswith(".toml") else ()
    silicon = harden(chip)
    if json:
        cells = [plain(f) | {"text": f.text, "grade": f.grade} for f in facts]
        say_json({"chip": chip, "facts": cells, "silicon": silicon})
        return
    say(chip.name)
    say_pairs(chip_rows(chip))
    say()
    say(
        f"Hardened from the description: {silicon.n_dies} × {silicon.die_area_mm2:.0f} mm² (± {silicon.area_error_ratio:.0%}), {silicon.tdp_w:.0f} W"
    )
    say_table(("block", "count", "mm²"), [(b.name, str(b.count), f"{b.area_mm2:.2f}") for b in silicon.blocks], right=(1, 2))
    if facts:
        say()
        say_table(
            ("cell", "value", "grade", "source"),
            [(f.id, f.text, f.grade, f.source.title) for f in facts],
            right=(1,),
        )
    for assumption in chip.assumptions:
        say(f"assumed: {assumption}")


def schema() -> None:
    """Print the JSON Schema of a study file, for editors that complete and check TOML."""
    from fabless.explore.study import study_schema

    say_json(study_schema())
