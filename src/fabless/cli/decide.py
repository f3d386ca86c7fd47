"""Commands that decide: design a chip for a study, compare chips, estimate one step."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from fabless.cli.say import say, say_json, say_pairs, say_table
from fabless.core.errors import InputError
from fabless.core.units import si

if TYPE_CHECKING:
    from fabless.explore.answer import Answer, Option

Json = Annotated[bool, Parameter(name="--json", negative="")]
Flag = Annotated[bool, Parameter(negative="")]


def estimate(
    model: str,
    *,
    chip: str = "h100",
    batch: int = 1,
    context: int = 1024,
    prompt: int | None = None,
    tp: int = 1,
    pp: int = 1,
    ep: int = 1,
    dp: int = 1,
    recipe: str = "bf16",
    ops: Flag = False,
    json: Json = False,
) -> None:
    """Estimate one decode step and the prefill of one prompt of a model on a chip.

    Args:
        model: a model of the catalogue, or a config.json, safetensors or GGUF file, or a directory with one.
        chip: a chip of the catalogue, or a chip.toml.
        batch: sequences that decode together.
        context: tokens behind each sequence.
        prompt: tokens of the prompt that is prefilled; the context when not given.
        tp: tensor parallelism.
        pp: pipeline parallelism.
        ep: expert parallelism.
        dp: data-parallel attention.
        recipe: number formats: bf16, fp16, fp8, int8, int4/bf16 (weights/activations), mxfp4, nvfp4, ...
        ops: list every op.
        json: print JSON instead of text.
    """
    from fabless.chip.catalogue import load_chip
    from fabless.mapping.plan import Plan
    from fabless.model.load import load
    from fabless.model.lower import lower
    from fabless.model.step import Recipe, Step
    from fabless.sim.roofline import estimate as run

    for option, value in (
        ("--batch", batch),
        ("--context", context),
        ("--prompt", prompt),
        ("--tp", tp),
        ("--pp", pp),
        ("--ep", ep),
        ("--dp", dp),
    ):
        if value is not None and value < 1:
            raise InputError(f"{option} must be at least 1, not {value}")
    what, where, formats, plan = load(model), load_chip(chip), Recipe.named(recipe), Plan(tp, pp, ep, dp)
    steps = {"decode": Step.decode(batch, context), "prefill": Step.prefill(1, prompt or context)}
    traces = {name: run(lower(what, formats, step), where, plan) for name, step in steps.items()}
    if json:
        say_json({
            "model": what.name, "chip": where.name, "plan": str(plan), "recipe": recipe, "batch": batch, "context_tokens": context,
            "assumptions": where.assumptions,
            **{name: {"latency_s": t.latency_s, "tokens_per_s": t.tokens_per_s, "memory_bytes": t.memory_bytes, "error_ratio": t.error_ratio, "fidelity": t.fidelity,
                      "dram_bytes": t.counters.dram_bytes, "macs": t.counters.total_macs, "link_bytes": t.counters.link_bytes, **({"ops": t.events} if ops else {})} for name, t in traces.items()},
        })  # fmt: skip
        return
    decode, prefill = traces["decode"], traces["prefill"]
    say(f"{what.name} in {recipe} on {plan.n_chips} × {where.name} ({plan}), {decode.fidelity} fidelity")
    say_pairs([
        ("decode", f"{si(decode.latency_s, 's')} a step: {1 / decode.latency_s:.4g} tokens/s for each of {batch}, {decode.tokens_per_s:.5g} tokens/s in all{_band(decode.error_ratio)}"),
        ("prefill", f"{si(prefill.latency_s, 's')} for {prompt or context} tokens: {(prompt or context) / prefill.latency_s:.5g} tokens/s{_band(prefill.error_ratio)}"),
        ("memory", f"{si(decode.memory_bytes, 'B')} of {si(where.memory_capacity_bytes, 'B')} a chip at batch {batch}"),
        ("decode time goes to", ", ".join(f"{kind} {share:.0%}" for kind, share in _bounds(decode.events, decode.cycles))),
    ])  # fmt: skip
    if ops:
        for name, trace in traces.items():
            say()
            rows = [
                (e.name, str(e.count), si(e.cycles / trace.clock_hz, "s"), f"{e.cycles / trace.cycles:.1%}", e.bound, e.tile)
                for e in trace.events
            ]
            say_table((name, "count", "time", "share", "bound", "tile"), rows, right=(1, 2, 3))
    for assumption in where.assumptions:
        say(f"assumed: {assumption}")


def _band(error_ratio: float | None) -> str:
    return "" if error_ratio is None else f" (± {error_ratio:.0%})"


def _bounds(events: tuple, cycles: float) -> list[tuple[str, float]]:  # type: ignore[type-arg]
    total: dict[str, float] = {}
    for event in events:
        total[event.bound] = total.get(event.bound, 0.0) + event.cycles
    return sorted(((k, v / cycles) for k, v in total.items()), key=lambda item: -item[1])


def design(
    study: Path, *, out: Path | None = None, processes: int | None = None, dask: str | None = None, json: Json = False, quiet: Flag = False
) -> None:
    """Answer a study: which chip to build, how many, what tokens cost on it and on today's chips, and how sure all that is.

    Writes report.html, frontier.parquet, chip.toml, bill.csv and study.lock. Finished work is kept: a run that was stopped goes on where it was.

    Args:
        study: the study file (TOML); 'fabless schema' prints what it may hold.
        out: where to write; out/<study's name> when not given.
        processes: worker processes on this machine; one per core when not given.
        dask: address of a Dask scheduler whose workers do the search instead.
        json: print JSON instead of text.
        quiet: no progress bar.
    """
    from fabless.cli.work import answered

    result, directory = answered(study, out=out, processes=processes, dask=dask, quiet=quiet or json)
    if json:
        say_json(_answer_json(result, directory))
        return
    _say_answer(result)
    say()
    say(f"Written to {directory}/: report.html, frontier.parquet, chip.toml, bill.csv, study.lock")


def compare(study: Path, *, out: Path | None = None, json: Json = False, quiet: Flag = False) -> None:
    """Compare the chip designed for a study with every chip that can be rented or bought, on the same service.

    Args:
        study: the study file (TOML).
        out: where the search keeps its work; out/<study's name> when not given.
        json: print JSON instead of text.
        quiet: no progress bar.
    """
    from fabless.cli.work import answered

    result, _ = answered(study, out=out, processes=None, dask=None, quiet=quiet or json)
    if json:
        say_json([_option_json(o) for o in (result.own, *result.comparison)])
        return
    _say_comparison(result)


def _say_comparison(result: Answer) -> None:
    from fabless.report.figures import count, usd_range

    rows = []
    for o in sorted(
        (o for o in (result.own, *result.comparison) if o.serves and o.usd_per_mtok),
        key=lambda o: o.usd_per_mtok.mid if o.usd_per_mtok else 0.0,
    ):
        s = o.services[0]
        mark = "this design" if o is result.own else o.chip.name
        rows.append(
            (
                mark,
                o.how,
                count(o.n_chips),
                usd_range(o.usd_per_mtok) if o.usd_per_mtok else "-",
                f"{o.j_per_token.mid:.3g}" if o.j_per_token else "-",
                f"{s.tokens_per_s_per_user:.3g}",
                f"{s.plan}, batch {s.batch}",
                _band(o.error_ratio).strip() or "-",
            )
        )
    say_table(("chip", "how", "chips", "$ per Mtok (low to high)", "J/token", "tok/s/user", "plan", "timing"), rows, right=(2, 4, 5))
    for o in result.comparison:
        if not o.serves:
            say(f"not {o.chip.name} ({o.how}): {o.reason}")


def _say_answer(result: Answer) -> None:
    from fabless.report.tables import chip_sheet, service_rows

    say(result.headline)
    say()
    say_pairs(chip_sheet(result))
    say()
    say_table(
        ("model", "formats", "plan", "batch", "replicas", "tok/s/user", "first token", "per token", "prefill", "memory/chip"),
        service_rows(result.own),
        right=(3, 4, 5, 6, 7, 8, 9),
    )
    say()
    _say_comparison(result)
    for binding in result.binding:
        if binding.gain_ratio > 0:
            say(f"binds: {binding.description}")


def _option_json(o: Option) -> dict[str, object]:
    return {
        "chip": o.chip.name, "how": o.how, "reason": o.reason, "n_chips": o.n_chips, "usd_per_mtok": o.usd_per_mtok, "usd_per_year": o.usd_per_year, "j_per_token": o.j_per_token,
        "power_w": o.power_w, "error_ratio": o.error_ratio,
        "services": [
            {"model": s.model, "recipe": s.recipe, "plan": str(s.plan), "batch": s.batch, "tokens_per_s_per_user": s.tokens_per_s_per_user, "ttft_s": s.ttft_s, "tpot_s": s.tpot_s, "n_replicas": s.n_replicas} for s in o.services
        ],
    }  # fmt: skip


def _answer_json(a: Answer, directory: Path) -> dict[str, object]:
    return {
        "headline": a.headline, "chip": a.chip, "silicon": a.silicon, "own": _option_json(a.own), "comparison": [_option_json(o) for o in a.comparison], "bill": a.bill,
        "break_even": a.break_even, "cheaper_ratio": a.cheaper_ratio, "tornado": a.tornado, "binding": a.binding, "runners_up": a.runners_up, "error_ratio": a.error_ratio, "fidelity": a.fidelity, "yield_ratio": a.yield_ratio,
        "package_usd": a.package_usd, "nre_usd": a.nre_usd, "counts": a.frontier.counts, "assumptions": a.assumptions, "directory": str(directory),
    }  # fmt: skip
