"""Emit the MLP: gates and what they gate, column by column; experts row by row, chosen by the vector unit and read by the sequencer.

Experts: the first maximum of the router's logits is chosen and excluded, as often as the model routes; `read` brings its index to a register, and
the address of its weights follows. No branch: every row takes as many experts as every other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fabless.compiler.partition import BLOCK

if TYPE_CHECKING:
    from fabless.compiler.step import Step

Operands = dict[str, "int | str"]


def dense(step: Step, loaded: int) -> None:
    """Emit the MLP of all rows, its residual included; `loaded` columns of its first matrix are under way."""
    from fabless.compiler.step import gather_activations, project, residual

    e, layout, d = step.e, step.layout, step.layout.decoder
    e.set("ho")
    e.label("gate_up")
    project(
        step,
        "gate_up",
        "normed",
        step.shape.rows,
        loaded=loaded,
        epilogue=lambda c, n: _gated(step, c, n, rows=step.shape.rows, base="layer"),
    )
    e.release("ho")
    ready = "a_ready"
    e.label("down")
    if layout.share.n_tiles == 1:
        e.signal("vpu", "a_ready")
    else:
        ready = gather_activations(step, "hidden", layout.matrices["down"].blocks)
    post = "mlp_post_norm" if d.post_norms else ""
    residual(step, "down", "hidden", bias="down_bias" if d.mlp_bias else "", post_norm=post, ready=ready)


def _gated(step: Step, c: Operands, n: int, *, rows: int, base: str) -> None:
    """Activate one column: the first half of its outputs are gates, the second what they gate; the product goes to A "hidden" in int8."""
    from fabless.compiler.step import fed, feed, tensor_scale, used

    e, layout, d, v = step.e, step.layout, step.layout.decoder, step.places.v
    half = n // 2
    if layout.matrices["gate_up"].split:
        feed(step, "post_scales" if base == "layer" else "expert_scales", register=base)
        for tensor, at in (("gate", 0), ("up", half)):
            e("vec", pre="mul", rows=rows, len=half, dst=v["gates"] + at, dst_stride=n // BLOCK, **(c | {"a": int(c.get("a", 0)) + at}),
              **tensor_scale(step, tensor))  # fmt: skip
        used(step)
        c = {"a": v["gates"], "a_stride": n // BLOCK}
    if d.mlp_bias:
        e.set("t1", (layout.vectors | layout.expert_vectors)["gate_up_bias"][0], of="ho", times=4 * n // (half // BLOCK), plus=base)
        feed(step, "gate_up_bias", length=n, register="t1", offset=0)
        e("vec", pre="add", rows=rows, len=n, dst=v["gates"], dst_stride=n // BLOCK, **c, **fed(step))
        used(step)
        c = {"a": v["gates"], "a_stride": n // BLOCK}
    gate: Operands = {**c, "rows": rows, "len": half}
    up: Operands = {**c, "rows": rows, "len": half, "a": int(c.get("a", 0)) + half}
    if d.activation == "swiglu_clamped":
        _clamped(step, gate, up)
    _activated(step, gate, rows, half)
    down, s = layout.matrices["down"], layout.share
    own = 0 if layout.whole_experts else s.index * (down.blocks // s.n_tiles)
    to: Operands = {"dst": step.places.a["hidden"] + own, "dst_reg": e.x("ho"), "dst_stride": down.blocks}
    t: Operands = {"b_kind": "vector", "b": v["hidden"], "b_stride": half // BLOCK}
    if step.fused:
        e("quant", pre="mul", **up, **t, **to)
    else:
        e("vec", pre="mul", **up, **t, dst=v["hidden"], dst_stride=half // BLOCK)
        e("quant", rows=rows, len=half, a=v["hidden"], a_stride=half // BLOCK, **to)
    e.add("ho", half // BLOCK)


def _clamped(step: Step, gate: Operands, up: Operands) -> None:
    """Clamp in place (in V, where the biases were added): gates from above, the others from both sides and plus one."""
    e = step.e
    there, here = ({"dst": x["a"], "dst_stride": x["a_stride"]} for x in (gate, up))
    e("vec", pre="min", **gate, **there, **step.constant("limit"))
    e("vec", pre="max", **up, **here, **step.constant("minus_limit"))
    e("vec", pre="min", **up, **here, **step.constant("limit"))
    e("vec", pre="add", **up, **here, **step.constant("one"))


def _activated(step: Step, gate: Operands, rows: int, half: int) -> None:
    """Write gate * sigmoid(z) to V "hidden": z is the gate (silu), the tanh form's polynomial of it (GELU), or alpha times it (clamped)."""
    e, d, t = step.e, step.layout.decoder, step.places.v["hidden"]
    own: Operands = {"rows": rows, "len": half, "a": t, "a_stride": half // BLOCK}
    to: Operands = {"dst": t, "dst_stride": half // BLOCK}
    times_t: Operands = {"b_kind": "vector", "b": t, "b_stride": half // BLOCK}
    z = own
    if d.activation == "gelu_tanh":
        e("vec", pre="mul", b_kind="self", **gate, **to)
        e("vec", pre="mul", **own, **to, **step.constant("gelu_cubic"))
        e("vec", pre="add", **own, **to, **step.constant("gelu_linear"))
        e("vec", pre="mul", **gate, **to, **times_t)
    elif d.activation == "swiglu_clamped":
        e("vec", pre="mul", **gate, **to, **step.constant("alpha"))
    else:
        z = gate
    e("vec", pre="mul", fn="exp2", **z, **to, **step.constant("minus_log2e"))
    e("vec", pre="add", fn="rcp", **own, **to, **step.constant("one"))
    e("vec", pre="mul", **gate, **to, **times_t)


def experts(step: Step, loaded: int) -> None:
    """Emit router and experts of all rows, and their residual; `loaded` columns of the router are under way."""
    from fabless.compiler.step import gather_vectors

    e, layout, v, s = step.e, step.layout, step.places.v, step.layout.share
    routing = layout.decoder.routing
    assert routing is not None
    e.label("router")
    width = _router(step, loaded)
    e.label("experts")
    first = 0 if layout.whole_experts else s.index * s.model
    for register in ("ri", "ai", "xi"):
        e.set(register)
    with e.loop(step.shape.rows):
        _choose(step)
        if layout.whole_experts:
            _localised(step)
        e("mask", len=s.width, a=v["x"], dst=v["routed"], fill="zero")
        e.signal("vpu", "route")
        e.wait("ctrl", "route")
        e.set("choice")
        with e.loop(routing.n_routed):
            _expert(step)
            e.add("choice", 1)
        if layout.whole_experts:
            _summed(step)
        own: Operands = {"len": s.width if layout.whole_experts else s.model, "a": v["routed"] + first}
        x = v["x"] + first
        e("vec", pre="add", b_kind="vector", b=x, b_reg=e.x("xi"), dst=x, dst_reg=e.x("xi"), **own)
        e.add("ri", width)
        e.add("ai", layout.matrices["gate_up"].blocks)
        e.add("xi", s.width)
    e.release("ri", "ai", "xi", "choice", "expert", "ex")
    if s.n_tiles > 1 and not layout.whole_experts:
        gather_vectors(step, v["x"])


def _router(step: Step, loaded: int) -> int:
    """Write the router's logits of all rows to V "router"; returns the elements from row to row."""
    from fabless.compiler.step import fed, feed, project, tensor_scale, used

    e, m, rows = step.e, step.layout.matrices["router"], step.shape.rows
    width = m.n_tiles * m.outputs
    project(step, "router", "normed", rows, whole=True, loaded=loaded)
    c: Operands = {"a_space": "c", "a": step.places.c["projection"] * m.rows, "a_stride": width // BLOCK}
    to: Operands = {"rows": rows, "len": width, "dst": step.places.v["router"], "dst_stride": width // BLOCK}
    if m.split:
        feed(step, "post_scales")
        e("vec", pre="mul", **c, **to, **tensor_scale(step, "router"))
        used(step)
        c = {"a": step.places.v["router"], "a_stride": width // BLOCK}
    if step.layout.decoder.mlp_bias:
        feed(step, "router_bias")
        e("vec", pre="add", **c, **to, **fed(step))
        used(step)
    elif not m.split:
        e("vec", pre="copy", **c, **to)
    return width


def _choose(step: Step) -> None:
    """Write the chosen experts of one row to V "picked" and their gates to V "gate"."""
    e, v, routing = step.e, step.places.v, step.layout.decoder.routing
    assert routing is not None
    logits: Operands = {"a": v["router"], "a_reg": e.x("ri"), "len": routing.n_experts}
    left: Operands = logits
    for i in range(routing.n_routed):
        e("vec", reduce="argmax", dst=v["picked"] + i, **left)
        e("vec", reduce="max", dst=v["values"] + i, **left)
        e("vec", pre="exclude", b_kind="scalar", b=v["picked"] + i, dst=v["left"], **left)
        left = {"a": v["left"], "len": routing.n_experts}
    first: Operands = {"pre": "sub", "b_kind": "scalar", "b": v["values"]}
    for source, to, n in (({"a": v["values"]}, v["gate"], routing.n_routed), (logits, v["left"], routing.n_experts)):
        e("vec", **(source | {"len": n}), dst=to, **first)
        e("vec", pre="mul", fn="exp2", len=n, a=to, dst=to, **step.constant("log2e"))
    among = (v["gate"], routing.n_routed) if routing.normalised else (v["left"], routing.n_experts)
    e("vec", reduce="sum", a=among[0], len=among[1], dst=v["divisor"])
    e("vec", fn="rcp", len=1, a=v["divisor"], dst=v["divisor"])
    e("vec", pre="mul", len=routing.n_routed, a=v["gate"], dst=v["gate"], b_kind="scalar", b=v["divisor"])


def _expert(step: Step) -> None:
    """Run one expert on one row and add its gated output to V "routed"."""
    from fabless.compiler.step import gather_activations, project

    e, layout, v = step.e, step.layout, step.places.v
    if len(layout.part.experts) > 1:
        e("read", x=e.x("expert"), at=v["local" if layout.whole_experts else "picked"], at_reg=e.x("choice"))
    else:
        e.set("expert")
    e.set("ex", layout.experts_at, of="expert", times=layout.expert_bytes, plus="layer")
    e.set("wp", layout.expert_vector_bytes, of="ex", times=1)
    e.set("ho")
    project(step, "gate_up", "normed", 1, ready=None, offset="ai", epilogue=lambda c, n: _gated(step, c, n, rows=1, base="ex"))
    e.release("ho")
    ready = "a_ready"
    if layout.share.n_tiles == 1 or layout.whole_experts:
        e.signal("vpu", "a_ready")
    else:
        ready = gather_activations(step, "hidden", layout.matrices["down"].blocks, rows=1)
    e.set("col")
    project(step, "down", "hidden", 1, ready=ready, epilogue=lambda c, n: _weighed(step, c, n))
    e.release("col")
    if layout.whole_experts:
        _kept(step)


def _localised(step: Step) -> None:
    """Write to V "local" which of this tile's experts to compute for each choice, and to V "foreign" -1 where that is the chosen one, else 0."""
    e, v, routing, own = step.e, step.places.v, step.layout.decoder.routing, step.layout.part.experts
    assert routing is not None
    n = routing.n_routed

    def with_number(pre: str, a: str, number: float, dst: str) -> None:
        e.set("t0", int(np.float32(number).view(np.int32)))
        e("vec", pre=pre, len=n, a=v[a], dst=v[dst], b_kind="register", b_reg=e.x("t0"))

    with_number("sub", "picked", own.start, "foreign")
    with_number("max", "foreign", 0, "local")
    with_number("min", "local", len(own) - 1, "local")
    e("vec", pre="sub", len=n, a=v["foreign"], b=v["local"], dst=v["foreign"])
    e("vec", pre="mul", b_kind="self", len=n, a=v["foreign"], dst=v["foreign"])  # 0 where the expert is this tile's, else 1 or more
    with_number("min", "foreign", 1, "foreign")
    with_number("sub", "foreign", 1, "foreign")


def _kept(step: Step) -> None:
    """Copy an expert's output from V "part" to its choice's place in V "chosen", or +0 where the chosen one is on another tile."""
    e, v, width = step.e, step.places.v, step.layout.share.width
    e("read", x=e.x("t0"), at=v["foreign"], at_reg=e.x("choice"))
    e.set("t0", of="t0", times=-width)
    e.set("t1", of="choice", times=width)
    e("mask", len=width, a=v["part"], dst=v["chosen"], dst_reg=e.x("t1"), fill="zero", high_reg=e.x("t0"))


def _summed(step: Step) -> None:
    """Bring every choice's output from the tile that has it, then weigh and add them in order of choice."""
    from fabless.compiler.step import sum_vectors

    e, v, routing, width = step.e, step.places.v, step.layout.decoder.routing, step.layout.share.width
    assert routing is not None
    sum_vectors(step, v["chosen"], routing.n_routed * width)
    for i in range(routing.n_routed):
        e("vec", pre="mul", b_kind="scalar", b=v["gate"] + i, len=width, a=v["chosen"] + i * width, dst=v["part"])
        e("vec", pre="add", len=width, a=v["routed"], b=v["part"], dst=v["routed"])


def _weighed(step: Step, c: Operands, n: int) -> None:
    from fabless.compiler.step import fed, feed, tensor_scale, used

    e, layout, v = step.e, step.layout, step.places.v
    whole = layout.whole_experts  # then V "part" takes the whole output, and choices are weighed when all are there
    part: Operands = {"a": v["part"], "a_reg": e.x("col") if whole else 0}
    to: Operands = {"len": n, "dst": v["part"], "dst_reg": e.x("col") if whole else 0}
    if layout.matrices["down"].split:
        feed(step, "expert_scales", register="ex")
        e("vec", pre="mul", **c, **to, **tensor_scale(step, "down"))
        used(step)
        c = part
    if layout.decoder.mlp_bias:
        e.set("t1", layout.expert_vectors["down_bias"][0], of="col", times=4, plus="ex")
        feed(step, "down_bias", length=n, register="t1", offset=0)
        e("vec", pre="add", **c, **to, **fed(step))
        used(step)
        c = part
    if not whole:
        e("vec", pre="mul", b_kind="scalar", b=v["gate"], b_reg=e.x("choice"), **c, **to)
        y = v["routed"] + layout.share.index * layout.share.model
        e("vec", pre="add", b_kind="vector", b=y, b_reg=e.x("col"), dst=y, dst_reg=e.x("col"), len=n, a=v["part"])
    elif c is not part:
        e("vec", **c, **to)
    e.add("col", n)
