"""A PyTorch module as a graph: what one call computes, by `torch.export` and the table of ATen operators in `torch_ops`."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fabless.core.errors import FablessError, InputError, UnsupportedError
from fabless.model.graph import Graph
from fabless.model.step import Recipe, Step
from fabless.model.torch_ops import CLAIMS, FREE, LOWERINGS, SHAPES, SUPPORTED, VIEWS, Call, Tensor, matrix_operands, weight_format

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from fabless.model.graph import Op

__all__ = ["from_torch"]

_BF16 = Recipe()


def from_torch(module: Any, example_inputs: tuple[Any, ...], recipe: Recipe = _BF16, name: str | None = None) -> Graph:
    """Return the ops of one call of a `torch.nn.Module` on inputs shaped like `example_inputs`, in the formats of `recipe`.

    Values of inputs and weights are never used: a module on the meta device, which has shapes only, gives the same graph. Ops bear the path of
    their module; equal ops of numbered siblings (`blocks.0` to `blocks.11`) are one op with a count, named `blocks.0-11`. Linear layers, matrix
    products and convolutions (as im2col) are `Gemm`, `scaled_dot_product_attention` is `Attention`, lookups are `Gather`, norms, activations and
    arithmetic are `Vector`; views, transposes and joins are free, as is whatever depends on parameters alone: it is computed before the first
    input arrives. Stored matrices take the recipe's format of weights, tables (and matrices tied to one) that of embeddings, all else that of the
    residual; a module has no language head to tell apart.

    The first input's leading dimension is the batch, so a trace's tokens per second are results per second. Tensor parallelism divides every
    stored product by k and adds the parts up, since which products pair up is not known; pipelines are priced with the widest tensor at each cut.

    Raises `InputError` for a module in training mode, `UnsupportedError` naming every operator without a meaning here and its module path, and
    `FablessError` when torch is not installed.

    Limits: one static shape; no control flow that depends on values; no KV cache (keys and values of a call are read and written once); patches of
    a convolution are read once per use; a mask given as a tensor skips no work. The graph can be estimated on every chip; what runs
    instruction by instruction is narrower, see `torch_capture`.
    """
    program = exported(module, example_inputs)
    calls, inputs = _calls(program, recipe)
    live = [c for c in calls if c.op not in FREE]
    ops = [op for c in live for op in LOWERINGS[c.op](c)]
    batch, tokens = _batch(inputs)
    folded, n_layers = _folded(ops)
    return Graph(
        model_name=name or type(module).__name__,
        recipe=recipe,
        step=Step.prefill(batch, tokens),
        ops=folded,
        weight_bytes=_weight_bytes(live, recipe),
        kv_bytes=0.0,
        activation_bytes=_activation_bytes(calls, inputs, recipe),
        n_layers=n_layers,
        d_model=-(-max((c.output.values for c in live), default=1) // (batch * tokens)),
    )


def exported(module: Any, example_inputs: tuple[Any, ...]) -> Any:
    """Return the exported program of one call; raises as `from_torch` does."""
    try:
        import torch
    except ImportError:
        raise FablessError(
            "from_torch needs PyTorch, of which the CPU build suffices; install it with: pip install 'fabless[torch]'"
        ) from None
    if not isinstance(module, torch.nn.Module):
        raise InputError(f"from_torch takes a torch.nn.Module, not {type(module).__name__}")
    if module.training:
        raise InputError(
            f"{type(module).__name__} is in training mode, whose dropout and statistics no inference chip runs; call its eval() first"
        )
    try:
        with torch.no_grad():  # else every no_grad() inside the module becomes a nested program
            return torch.export.export(module, tuple(example_inputs))
    except Exception as error:  # torch.export documents no error type; its first line says what it cannot follow
        first = str(error).strip().partition("\n")[0]
        raise UnsupportedError(
            f"{type(module).__name__}: torch.export cannot follow it ({type(error).__name__}: {first}); "
            "make its control flow independent of values and its inputs a tuple of tensors"
        ) from error


# ---------------------------------------------------------------- reading the program


def _calls(program: Any, recipe: Recipe) -> tuple[list[Call], list[Tensor]]:
    """Return the operators that depend on an input, in order, and the inputs."""
    values: dict[Any, Any] = {}
    inputs: list[Tensor] = []
    given = set(program.graph_signature.user_inputs)
    found: list[tuple[str, str, Any, Mapping[str, Any]]] = []
    refused: dict[tuple[str, str], None] = {}
    tables = _tables(program)
    for node in program.graph.nodes:
        if node.op == "placeholder":
            values[node] = _tensor(node, stored=node.name not in given, table=node.name in tables)
            if node.name in given and isinstance(values[node], Tensor):
                inputs.append(values[node])
        elif node.op == "call_function":
            arguments = _arguments(node, values)
            op = operator_name(node.target)
            if op in CLAIMS:
                continue
            output = values[node] = _result(node, op, arguments)
            if _is_stored(output):
                continue
            if op not in LOWERINGS and op not in FREE:
                refused[op, module_path(node)] = None
            else:
                found.append((_visit(node), op, output, arguments))
    if refused:
        named = ", ".join(f"{op} in {path}" for op, path in refused)
        raise UnsupportedError(f"no lowering for {named}; supported operators: {', '.join(SUPPORTED)}")
    named_calls = _named([(visit, op) for visit, op, _, _ in found])
    return [
        Call(name, op, output[0] if isinstance(output, tuple) else output, recipe, arguments)
        for name, (_, op, output, arguments) in zip(named_calls, found, strict=True)
    ], inputs


def _tables(program: Any) -> set[str]:
    """Return the parameters in which rows are looked up; torch.export reads tied parameters through one name."""
    return {node.args[0].name for node in program.graph.nodes if node.op == "call_function" and operator_name(node.target) == "embedding"}


def _tensor(node: Any, *, stored: bool, table: bool) -> Any:
    """Return the description of a node's tensor, or its value when it is none (a number, a flag)."""
    meta = node.meta.get("val")
    if not hasattr(meta, "shape"):
        return meta
    shape = _shape(node, meta)
    described = Tensor(shape, node.name, 0, stored, table, 0 if meta.dtype.is_floating_point else meta.element_size())
    return replace(described, root_values=described.values)


def operator_name(target: Any) -> str:
    """Return an operator's name without namespace, overload and in-place mark: `aten.add_.Tensor` is `add`."""
    schema = getattr(target, "_schema", None)
    if schema is None:
        return str(getattr(target, "__name__", target))
    word = str(schema.name).partition("::")[2]
    return word if word.startswith("_") or not word.endswith("_") else word[:-1]


def _arguments(node: Any, values: Mapping[Any, Any]) -> Mapping[str, Any]:
    """Return a node's arguments by the names of its schema (by position where it has none), its tensors described."""

    def described(value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return type(value)(described(v) for v in value) if type(value) in {list, tuple} else [described(v) for v in value]
        return values.get(value, value) if hasattr(value, "meta") else value

    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return {str(i): described(value) for i, value in enumerate(node.args)}
    bound = {a.name: a.default_value if a.has_default_value() else None for a in schema.arguments}
    bound |= dict(zip(bound, node.args, strict=False)) | node.kwargs
    return {key: described(value) for key, value in bound.items()}


def _result(node: Any, op: str, arguments: Mapping[str, Any]) -> Any:
    """Describe what a node yields: a tensor, or a tuple of them; stored when it depends on no input, in its first tensor's memory when a view."""
    tensors = Call(node.name, op, _NOTHING, _BF16, arguments).tensors
    stored = (all(t.stored for t in tensors) or op in SHAPES) and not _is_random(node.target)
    if op == "getitem":
        whole = arguments["0"]
        return whole[arguments["1"]] if isinstance(whole, tuple) else whole
    meta = node.meta.get("val")
    parts = meta if isinstance(meta, (list, tuple)) else [meta]
    results = tuple(_part(node, i, part, stored=stored) for i, part in enumerate(parts))
    if op in VIEWS and tensors:
        first = tensors[0]
        results = tuple(replace(r, root=first.root, root_values=first.root_values, table=first.table) for r in results)
    return results if isinstance(meta, (list, tuple)) else results[0]


_NOTHING = Tensor((), "", 0)


def _part(node: Any, i: int, meta: Any, *, stored: bool) -> Tensor:
    if not hasattr(meta, "shape"):  # a number read out of a tensor
        return Tensor((), f"{node.name}.{i}", 1, stored, item_bytes=8)
    shape = _shape(node, meta)
    part = Tensor(shape, f"{node.name}.{i}", 0, stored, item_bytes=0 if meta.dtype.is_floating_point else meta.element_size())
    return replace(part, root_values=part.values)


def _shape(node: Any, meta: Any) -> tuple[int, ...]:
    if not all(isinstance(side, int) for side in meta.shape):
        raise UnsupportedError(
            f"{module_path(node)}: {operator_name(node.target)} yields a shape that depends on values {tuple(map(str, meta.shape))}; "
            "a graph has one static shape"
        )
    return tuple(meta.shape)


def _is_stored(output: Any) -> bool:
    return all(t.stored for t in (output if isinstance(output, tuple) else (output,)))


def _is_random(target: Any) -> bool:
    """Tell whether an operator draws random numbers: its result is none that could be stored."""
    return any(str(tag).endswith("nondeterministic_seeded") for tag in getattr(target, "tags", ())) and operator_name(target) != "dropout"


# ---------------------------------------------------------------- names and repeats


def _visit(node: Any) -> str:
    """Return the path of the innermost module that a node belongs to, marked `@1`, `@2` on its later calls; empty for the module itself."""
    stack = list((node.meta.get("nn_module_stack") or {}).items())
    if not stack:
        return ""
    key, (path, _) = stack[-1]
    again = str(key).partition("@")[2]
    return f"{path}@{again}" if again and "@" not in path else str(path)


def module_path(node: Any) -> str:
    """Return the path of the innermost module that a node belongs to, for people."""
    return _visit(node).partition("@")[0] or "the module itself"


def _named(places: Sequence[tuple[str, str]]) -> list[str]:
    """Name each (visit, operator): the path where nothing else is computed on that visit, else with the operator and how many came before."""
    n_computed = Counter(visit for visit, op in places if op not in FREE)
    seen: Counter[tuple[str, str]] = Counter()
    names = []
    for visit, op in places:
        path = visit.partition("@")[0]
        if path and n_computed[visit] == 1 and op not in FREE:
            names.append(path)
            continue
        before = seen[visit, op]
        seen[visit, op] += 1
        names.append(".".join(x for x in (path, f"{op}_{before}" if before else op) if x))
    return names


def _folded(ops: Iterable[Op]) -> tuple[tuple[Op, ...], int]:
    """Return equal ops of numbered siblings as one op each, and the length of the longest outer run of siblings."""
    groups: dict[Op, list[Op]] = {}
    for op in ops:
        pattern = ".".join("*" if part.isdigit() else part for part in op.name.split("."))
        groups.setdefault(replace(op, name=pattern), []).append(op)
    folded: list[Op] = []
    longest = 1
    for members in groups.values():
        columns = list(zip(*(op.name.split(".") for op in members), strict=True))
        varying = [set(column) for column in columns if len(set(column)) > 1]
        longest = max(longest, len(varying[0]) if varying else 1)
        folded.append(replace(members[0], name=".".join(_range(c) for c in columns), count=sum(op.count for op in members)))
    return tuple(folded), longest


def _range(parts: Sequence[str]) -> str:
    numbers = sorted({int(p) for p in parts if p.isdigit()})
    return parts[0] if len(numbers) < 2 else f"{numbers[0]}-{numbers[-1]}"


# ---------------------------------------------------------------- memory


def _batch(inputs: Sequence[Tensor]) -> tuple[int, int]:
    """Return the sequences of the step and the tokens of each: (B, S) for ids `[B, S]` and features `[B, S, D]`, else (B, 1)."""
    if not inputs or not inputs[0].shape:
        return 1, 1
    first = inputs[0]
    in_sequence = (first.item_bytes > 0 and len(first.shape) == 2) or len(first.shape) == 3
    return max(1, first.shape[0]), max(1, first.shape[1]) if in_sequence else 1


def _weight_bytes(calls: Iterable[Call], recipe: Recipe) -> float:
    """Return the bytes of every stored tensor that an op reads, each once, matrices in the format of weights."""
    matrices: dict[str, float] = {}
    others: dict[str, float] = {}
    for call in calls:
        for t in matrix_operands(call):
            matrices[t.root] = t.root_values * weight_format(t, recipe).bytes_per_value
        for t in call.tensors:
            if t.stored:
                others[t.root] = t.root_values * (t.item_bytes or recipe.residual.bytes_per_value)
    return sum(({**others, **matrices}).values())


def _activation_bytes(calls: Sequence[Call], inputs: Sequence[Tensor], recipe: Recipe) -> float:
    """Return the largest sum of live activations: from the op that writes each to the last that reads it, views with what they view."""
    size = {t.root: t.n_bytes(recipe) for t in inputs}
    last: dict[str, int] = {}
    for i, call in enumerate(calls):
        for t in (*call.tensors, call.output):
            if not t.stored:
                last[t.root] = i
    alive: dict[str, float] = dict(size)
    most = sum(alive.values())
    for i, call in enumerate(calls):
        if call.op not in VIEWS:
            alive.setdefault(call.output.root, call.output.n_bytes(recipe))
        most = max(most, sum(alive.values()))
        alive = {root: n for root, n in alive.items() if last.get(root, -1) > i}
    return most
