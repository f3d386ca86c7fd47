"""Write the reference pages that follow from the code: study.md, cli.md, python.md, models.md, chips.md.

`python docs/generate.py` writes them beside this file; a test holds that what is checked in is what this writes.
"""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fabless

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

HERE = Path(__file__).parent
MADE = "<!-- Made by docs/generate.py: change the code that it reads, then run it. -->\n\n"


def pages() -> dict[str, str]:
    """Return the text of every generated page by its file name."""
    made = {"study.md": study, "cli.md": cli, "python.md": python, "models.md": models, "chips.md": chips}
    return {name: MADE + page() for name, page in made.items()}


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def paragraph(text: str | None) -> str:
    """Return the prose of a docstring with its line breaks undone, and what looks like markup outside code made plain."""
    words = " ".join((inspect.cleandoc(text) if text else "").split())
    return "`".join(part.replace("<", "\\<") if i % 2 == 0 else part for i, part in enumerate(words.split("`")))


# The study file, from its JSON Schema


def study() -> str:
    """Return the reference of the study file, section by section."""
    from fabless.explore.study import study_schema

    schema = study_schema()
    sections = schema["$defs"]
    text = (
        "# The study file\n\n"
        "A study is one TOML file. `fabless design FILE` answers it; `fabless schema` prints its JSON Schema, with which editors complete and check "
        "(Even Better TOML: put `#:schema study.schema.json` in the first line). Unknown keys are refused and the nearest known one is named. "
        'Where a unit is given, a plain number is in that unit and text is converted: `1400`, `"1.4 kW"`. MB and MiB differ. '
        "Where several values are allowed, one may stand alone.\n\n"
    )
    for key, part in schema["properties"].items():
        name, how = _reference(part)
        if name:
            text += f"## `{how.format(key)}`\n\n{_section(sections[name], sections, key)}\n"
        else:
            text += f"## `[{key}]`\n\n{part['description']}\n\n"
    return text


def _section(section: dict[str, Any], sections: dict[str, Any], place: str) -> str:
    needed = section.get("required", [])
    rows, deeper = [], ""
    for key, part in section["properties"].items():
        name, how = _reference(part)
        kind = f"table, see `{how.format(place + '.' + key)}`" if name else _kind(part)
        default = "needed" if key in needed else _default(part, nested=bool(name))
        rows.append((f"`{key}`", kind, default, paragraph(part.get("description"))))
        if name and f"`{how.format(place + '.' + key)}`" not in deeper:
            deeper += f"\n### `{how.format(place + '.' + key)}`\n\n{_section(sections[name], sections, place + '.' + key)}"
    return f"{paragraph(section['description'])}\n\n{table(('key', 'value', 'default', 'meaning'), rows)}{deeper}"


def _reference(part: dict[str, Any]) -> tuple[str, str]:
    """Return the section that a key holds and how its header is written, or nothing."""
    options = [part, *part.get("anyOf", ())]
    for option in options:
        for holder, how in ((option, "[{}]"), (option.get("items", {}), "[[{}]]"), (option.get("additionalProperties", {}), "[{}.<name>]")):
            if isinstance(holder, dict) and "$ref" in holder:
                return holder["$ref"].rpartition("/")[2], how
    return "", ""


def _kind(part: dict[str, Any]) -> str:
    options = [o for o in part.get("anyOf", [part]) if o.get("type") != "null"]
    unit = next((m[1] for o in options if (m := re.search(r"converted to ([^,]+),", o.get("description", "")))), None)
    several = any(o.get("type") == "array" for o in options)
    first = next((o for o in options if "array" not in o.get("type", "")), options[0])
    if "items" in options[0] and not unit:
        inner = options[0]["items"]
        first = inner if inner.get("type") != "array" else inner["items"]
    if "enum" in first or "const" in first:
        word = ", ".join(f'"{x}"' for x in first.get("enum", [first.get("const")]))
    elif unit:
        word = f"number in {unit.replace(' / ', '/')}s or text" if "/" not in unit else f"number in {unit.replace(' / ', 's/')} or text"
        word = word.replace("hertzs", "hertz").replace("usds", "US dollars")
    else:
        word = {"number": "number", "integer": "whole number", "string": "text"}[first["type"]]
    bounds = [
        f"{sign} {first[key]:g}" for key, sign in (("minimum", "≥"), ("exclusiveMinimum", ">"), ("exclusiveMaximum", "<")) if key in first
    ]
    nested = several and options[0].get("items", {}).get("type") == "array"
    shape = ", lists of several" if nested else ", or several" if several else ""
    return word + (", " + " and ".join(bounds) if bounds else "") + shape


def _default(part: dict[str, Any], *, nested: bool) -> str:
    value = part.get("default")
    if nested or value is None or value in ("", [], {}):
        return "none"
    return f"`{str(value).replace(chr(39), chr(34))}`"


# The command line, from its functions


def cli() -> str:
    """Return the reference of the commands."""
    from fabless.cli import app

    text = (
        "# The command line\n\n`fabless COMMAND --help` says the same. Results go to standard output, progress and errors to "
        "standard error. "
        "`--json` prints numbers in SI units under names that carry the unit. Exit code 0: done; 2: something in the input must change, and one "
        "message says what; "
        "130: interrupted, with finished work kept. `fabless --install-completion` installs completion for the shell.\n"
    )
    for name in ("design", "compare", "estimate", "train", "models", "chips", "show", "validate", "schema"):
        command = app[name]
        text += _command(name, command.default_command)
    return text


def _command(name: str, function: Callable[..., Any]) -> str:
    import cyclopts  # noqa: F401  # the annotations below are its own

    doc = inspect.cleandoc(function.__doc__ or "")
    prose, _, arguments = doc.partition("Args:\n")
    meanings = dict(re.findall(r"^ {4}(\w+): (.*)$", arguments, re.M))
    rows, usage = [], [f"fabless {name}"]
    signature = inspect.signature(function, eval_str=True, globals=vars(inspect.getmodule(function)) | {"Path": Path})
    for parameter in signature.parameters.values():
        word = parameter.name.upper() if parameter.kind is not parameter.KEYWORD_ONLY else f"--{parameter.name.replace('_', '-')}"
        rows.append((f"`{word}`", re.sub(r"(?<!\.)\.$", "", paragraph(meanings[parameter.name])), _shown(parameter)))
        if parameter.kind is not parameter.KEYWORD_ONLY:
            usage.append(word)
    options = " [OPTIONS]" if any("--" in row[0] for row in rows) else ""
    body = table(("option", "meaning", "default"), rows) if rows else ""
    return f"\n## {name}\n\n```sh\n{' '.join(usage)}{options}\n```\n\n{paragraph(prose)}\n\n{body}"


def _shown(parameter: inspect.Parameter) -> str:
    if parameter.default is parameter.empty:
        return "needed"
    return "" if parameter.default in (None, False) else f"`{parameter.default}`"


# The public names, from the package


def python() -> str:
    """Return the public names with signatures, fields and contracts."""
    text = (
        "# Python\n\n`import fabless` hands out these names; everything else is reached through its module. "
        "Nouns are frozen dataclasses, verbs pure functions; "
        "quantities are plain numbers in SI units, and the name says which: `_s`, `_hz`, `_bytes`, `_bytes_per_s`, `_j`, `_w`, `_mm2`, `_usd`. "
        "Errors are of `fabless.core.errors`; each message names place, rule, value and remedy.\n\n"
        "```python\n"
        "from fabless import Plan, Recipe, Step, estimate, load_chip, load_model, lower\n\n"
        'graph = lower(load_model("llama-3.1-8b"), Recipe.named("bf16"), Step.decode(batch=32, context_tokens=1024))\n'
        'print(estimate(graph, load_chip("h100"), Plan(tensor=1)).tokens_per_s)\n'
        "```\n\nThe scripts in `examples/` show each in use.\n\n## Verbs\n"
    )
    for name in sorted(n for n in fabless.__all__ if n[0].islower()):
        function = getattr(fabless, name)
        text += f"\n### {name}{_signature(function)}\n\n{_doc(function)}\n\n`{function.__module__}.{function.__name__}`\n"
    text += "\n## Nouns\n"
    for name in sorted(n for n in fabless.__all__ if n[0].isupper()):
        noun = getattr(fabless, name)
        text += f"\n### {name}\n\n{_doc(noun)}\n\n"
        text += table(("field", "type"), [(f"`{f}`", f"`{t}`") for f, t in inspect.get_annotations(noun).items() if not f.startswith("_")])
        made = [
            f"- `{name}.{k}{_signature(getattr(noun, k), bound=True)}`: {_first(v.__func__.__doc__)}"
            for k, v in vars(noun).items()
            if isinstance(v, classmethod)
        ]
        seen = [f"- `.{k}`: {_first(v.__doc__)}" for k, v in vars(noun).items() if isinstance(v, property)]
        does = [
            f"- `.{k}{_signature(v, bound=True)}`: {_first(v.__doc__)}"
            for k, v in vars(noun).items()
            if inspect.isfunction(v) and not k.startswith("_")
        ]
        if made or seen or does:
            text += "\n" + "\n".join([*made, *seen, *does]) + "\n"
        text += f"\n`{noun.__module__}.{noun.__name__}`\n"
    return text


def _doc(thing: Any) -> str:
    return "\n\n".join(paragraph(block) for block in inspect.cleandoc(thing.__doc__).split("\n\n"))


def _first(text: str | None) -> str:
    return paragraph((text or "").split("\n\n")[0])


def _signature(function: Any, *, bound: bool = False) -> str:
    parts, starred = [], False
    parameters = [p for p in inspect.signature(function).parameters.values() if not (bound and p.name in ("self", "cls"))]
    for p in parameters:
        if p.kind is p.KEYWORD_ONLY and not starred:
            parts.append("*")
            starred = True
        name = f"*{p.name}" if p.kind is p.VAR_POSITIONAL else p.name
        parts.append(name if p.default is p.empty else f"{name}={p.default!r}")
    return f"({', '.join(parts)})"


# Models and chips, from the catalogues


def models() -> str:
    """Return the table of built-in models."""
    from fabless.core.units import si
    from fabless.model.load import load, model_names
    from fabless.model.step import Recipe

    rows = []
    for name in model_names():
        m = load(name)
        cache = si(m.kv_bytes_per_token(Recipe()), "B")
        rows.append(
            (
                f"`{m.name}`",
                m.architecture,
                f"{m.n_params:,}",
                f"{m.active_params:,}",
                str(m.n_layers),
                f"{m.d_model:,}",
                cache,
                f"{m.context_tokens:,}",
            )
        )
    head = ("model", "architecture", "parameters", "active per token", "layers", "d_model", "cache per token, bf16", "context")
    return (
        "# Models\n\nBuilt in, from the makers' own `config.json` or paper; `fabless show NAME` tells the rest. Any other is read from its files: "
        "a `config.json`, safetensors headers (no weights are read) or GGUF metadata.\n\n" + table(head, rows)
    )


def chips() -> str:
    """Return the table of the catalogue's chips."""
    from fabless.chip.catalogue import chip_names, load_chip
    from fabless.chip.chip import matrix_rates
    from fabless.core.units import si

    rows = []
    for id in chip_names():
        c = load_chip(id)
        scale = 2 * c.core.n_matrix * c.n_cores * c.clock_hz
        rates = {name: rate * scale for name, rate in matrix_rates(c.core.matrix)}
        wide = rates.get("bf16", rates.get("fp16"))
        eight = rates.get("fp8_e4m3", rates.get("int8"))
        memory = "SRAM" if c.dram.standard == "none" else f"{si(c.dram.bandwidth_bytes_per_s, 'B/s')} {c.dram.standard.upper()}"
        rows.append((
            c.name, f"`{id}`", str(c.year or "unknown"), c.process, si(wide, "op/s") if wide else "-", si(eight, "op/s") if eight else "-",
            si(c.memory_capacity_bytes, "B"), memory, f"{c.tdp_w:.0f} W" if c.tdp_w else "unknown", str(len(c.assumptions) or ""),
        ))  # fmt: skip
    head = ("chip", "id", "year", "process", "16-bit", "8-bit", "memory", "bandwidth", "power", "cells assumed")
    return (
        "# Chips\n\nDense rates. `fabless show ID` prints every cell with its source and grade; a chip with assumed cells lists them whenever it is used. "
        "How a sheet becomes a chip and a chip becomes silicon: [Chips and silicon](chips-and-silicon.md).\n\n" + table(head, rows)
    )


if __name__ == "__main__":
    for file, content in pages().items():
        (HERE / file).write_text(content, "utf-8")
