"""The ISA's reference page, written from the table: `python -m fabless.program.document docs/isa.md`."""

from __future__ import annotations

import sys
from pathlib import Path

from fabless.program import isa

_ATTENTION = """\
## How a transformer is written with it

- **Weights** `[N, K]` are stored block-major in chunks of `n * R` rows: `[K/32][n][R][32]` bytes, scales `[K/32][n][R]`; one `load w`, one `load ws`,
  one `gemm` a chunk. K and N are padded with zeros to 32 and R. The embedding row of a token, from the same bytes: `load v int8` with 32-byte rows
  `n * R * 32` apart, its scales as scalars, then `vec mul` with `b_kind=scalar`, rows of 32.
- **RMS norm**: `vec mul self, reduce=sum`; `vec mul register(1/d)`; `vec add register(eps), fn=rsqrt`; `vec mul scalar`; `quant mul vector(weight)`.
- **Rotary**: rows of query and key weights are permuted so that pairs are neighbours; the table's row holds cos, sin in turn; `rotate`, `b_stride=0`.
- **Keys** are stored as weights: a page of P tokens of one head is `[d_head/32][P][32]` bytes, scales `[d_head/32][P]` bf16; a new token's blocks are
  `store a`, 32-byte rows `P * 32` apart. **Values** are stored transposed: `[P/32][d_head][32]` bytes, a new token's bytes scattered by `store ab` 32
  bytes apart, its one scale (`quant scope=row`) by `store as`. P is a multiple of 64 and of R. Page numbers are parameters: `param`, `madd`.
- **Attention**: scores of all keys of a row are kept in V (or computed twice): QK (the query scaled by log2(e)/sqrt(d_head) before it is quantised),
  `mask` with `lowest`, `vec reduce=max`, `vec sub scalar, fn=exp2`, sums by spans, `quant mul vector(v_scale)`, PV (`unit=1`), `mul rcp(l)`. The order of
  every step is that of docs/decisions/integer-forward-pass.md; masked keys weigh exactly 0, so that bounds, chunks and batch change no bit.
- **Activation**: sigmoid(x) is two instructions: `vec mul register(-log2 e), fn=exp2`, `vec add register(1), fn=rcp`.
- **Routing**: `vec reduce=argmax`, then `vec pre=exclude` with the index, k times; `read` brings each index to a register, `madd` to an address.
- **More tiles** split N, never K (each output is whole on one tile, and activations are gathered by `send`/`recv` around the ring), or layers (the
  residual stream is sent on), or experts (`recv add` sums outputs of which all but one are +0). So results do not depend on the number of tiles.
- **NVFP4**: `load w e2m1_split`, a row a half block; `gemm split`; products times the tensor's scale by `vec mul` with `b_kind=scalar`.
"""


def page() -> str:
    """Return the reference page as Markdown."""
    out = [
        "# Instruction set",
        "",
        "Written from `fabless.program.isa.ISA` by `python -m fabless.program.document docs/isa.md`; do not edit.",
        "",
    ]
    out += [(isa.__doc__ or "").split("\n\n", 1)[1].strip(), ""]
    out += ["| opcode | instruction | queue | bits used | busy for (cycles) |", "| --- | --- | --- | --- | --- |"]
    for spec in isa.ISA:
        used = max((f.lsb + f.bits for f in spec.fields), default=isa.OPCODE_BITS)
        out.append(f"| {spec.code} | `{spec.mnemonic}` | {spec.queue.name.lower()} | {used} | `{spec.cycles}` |")
    out += ["", "Constants of the timing column, in cycles:", "", "| name | cycles |", "| --- | --- |"]
    out += [f"| {name} | {value} |" for name, value in isa.LATENCY.items()]
    out += [
        "",
        "`transfer(address, row_bytes, stride, rows, units)` is the sum over rows of max(beats, units): beats are the aligned pieces of B bytes that the",
        "row touches, units the words of the row, or ceil(count, L) for vector elements. Memory is taken as always ready; waiting for it adds to that.",
        "",
    ]
    for spec in isa.ISA:
        out += [f"## {spec.mnemonic}", "", spec.semantics, ""]
        if spec.reads or spec.writes:
            out += [f"Reads {spec.reads or 'nothing'}; writes {spec.writes or 'nothing'}.", ""]
        if spec.fields:
            out += ["| bits | field | kind | meaning |", "| --- | --- | --- | --- |"]
            for f in spec.fields:
                choices = f" ({', '.join(f'{i} {c}' for i, c in enumerate(f.choices))})" if f.choices else ""
                out.append(f"| {f.lsb + f.bits - 1}..{f.lsb} | {f.name} | {f.kind} | {f.text}{choices} |")
            out.append("")
    out += ["## Formats", "", "| `load` target | formats |", "| --- | --- |"]
    out += [f"| {t} | {', '.join(formats)} |" for t, formats in isa.LOAD_FORMATS.items()]
    out += ["", "| `store` target | formats |", "| --- | --- |"]
    out += [f"| {t} | {', '.join(formats)} |" for t, formats in isa.STORE_FORMATS.items()]
    return "\n".join([*out, "", _ATTENTION])


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(page(), "utf-8")
