"""The integer reference against a scalar forward pass written from docs/decisions/integer-forward-pass.md, one binary32 code at a time."""

import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from fabless.model.decoder import decoder_from_config
from fabless.model.float_reference import FloatReference
from fabless.model.integer_reference import IntegerReference, IntegerWeights, rotary_table
from fabless.model.random_weights import RANDOM_CONFIGS, random_arrays, random_config, random_weights
from fabless.model.weights import open_weights, weights_of
from fabless.number.dot import block_dot
from fabless.number.formats import INT4_BLOCK32, INT8_BLOCK32, MXFP4, MXINT8, NVFP4
from fabless.number.functions import exp2, rcp, rsqrt, sigmoid
from fabless.number.quantise import quantise_block
from fabless.number.round import fp32_add, fp32_bits, fp32_max, fp32_min, fp32_mul, fp32_sub, fp32_sum, fp32_value

TINY = {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "vocab_size": 12, "head_dim": 16, "num_attention_heads": 2,
        "num_key_value_heads": 1, "moe_intermediate_size": 40}  # fmt: skip
LOWEST = fp32_bits(-(2.0**100))


def codes(array):
    return np.ascontiguousarray(array, np.float32).view(np.uint32).tolist()


def constant(value):
    return fp32_bits(Fraction(float(np.float32(value))))


class Scalar:
    """One sequence, token by token, in Python integers."""

    def __init__(self, weights):
        self.w, self.d = weights, weights.decoder
        self.keys = [[] for _ in range(self.d.n_layers)]
        self.values = [[] for _ in range(self.d.n_layers)]

    def blocks(self, row):
        row = row + [0] * (-len(row) % 32)
        pairs = [quantise_block(row[i : i + 32]) for i in range(0, len(row), 32)]
        return [q for q, _ in pairs], [s for _, s in pairs]

    def project(self, name, row):
        m = self.w.matrices[name]
        q, s = self.blocks(row)
        if m.split:
            q, s = [b for b in q for _ in "ab"], [b for b in s for _ in "ab"]
        out = []
        for n in range(m.scales.shape[1]):
            y = block_dot(m.codes[:, n].tolist(), codes(m.scales[:, n]), q, s)
            out.append(y if m.post_scale == 1 else fp32_mul(y, constant(m.post_scale)))
        bias = self.w.vectors.get(name + "_bias")
        return out if bias is None else [fp32_add(y, b) for y, b in zip(out, codes(bias), strict=True)]

    def norm(self, name, row):
        mean = fp32_mul(fp32_sum([fp32_mul(x, x) for x in row]), constant(1 / len(row)))
        r = rsqrt(fp32_add(mean, constant(self.d.norm_epsilon)))
        return [fp32_mul(fp32_mul(x, r), w) for x, w in zip(row, codes(self.w.vectors[name]), strict=True)]

    def rotate(self, row, table):
        out = []
        for j in range(0, len(row), 2):
            a, b, c, s = row[j], row[j + 1], table[j], table[j + 1]
            out += [fp32_sub(fp32_mul(a, c), fp32_mul(b, s)), fp32_add(fp32_mul(b, c), fp32_mul(a, s))]
        return out

    def attention(self, i, x, position):
        d, p = self.d, f"layers.{i}."
        heads = lambda name: [y[h : h + d.d_head] for y in [self.project(p + name, x)] for h in range(0, len(y), d.d_head)]  # noqa: E731
        q, k, v = heads("q"), heads("k"), heads("v")
        if d.qk_norm:
            q, k = [self.norm(p + "q_norm", h) for h in q], [self.norm(p + "k_norm", h) for h in k]
        table = codes(rotary_table(d.ropes[i], d.d_head, np.array([position]))[0])
        self.keys[i].append([self.blocks(self.rotate(h, table)) for h in k])
        self.values[i].append([self.whole_row(h) for h in v])
        out = []
        for n, head in enumerate(q):
            scaled = [fp32_mul(e, constant(d.attention_scale * math.log2(math.e))) for e in self.rotate(head, table)]
            sink = fp32_mul(codes(self.w.vectors[p + "sinks"])[n], constant(math.log2(math.e))) if d.sinks else None
            out += self.attend(i, self.blocks(scaled), n // (d.n_heads // d.n_kv_heads), position, sink)
        return self.project(p + "o", out)

    def whole_row(self, row):
        padded = row + [0] * (-len(row) % 32)
        largest = max(padded, key=lambda c: c & 0x7FFFFFFF)
        # quantise every block beside the row's largest element, so that all take its scale
        pairs = [quantise_block([*padded[j : j + 32], largest]) for j in range(0, len(padded), 32)]
        return [q for block, _ in pairs for q in block[:32]][: len(row)], pairs[0][1]

    def attend(self, i, query, kv, position, sink):
        window = self.d.windows[i]
        seen = [window == 0 or position - s < window for s in range(position + 1)]
        scores = [block_dot(k[kv][0], k[kv][1], *query) if see else LOWEST for k, see in zip(self.keys[i], seen, strict=True)]
        m = scores[0]
        for s in [*scores[1:], *([] if sink is None else [sink])]:
            m = fp32_max(m, s)
        p = [exp2(fp32_sub(s, m)) if see else 0 for s, see in zip(scores, seen, strict=True)]
        total = 0
        for start in range(0, len(p), 128):
            total = fp32_add(total, fp32_sum(p[start : start + 128]))
        if sink is not None:
            total = fp32_add(total, exp2(fp32_sub(sink, m)))
        values = [v[kv] for v in self.values[i]]
        w, w_scales = self.blocks([fp32_mul(e, v[1]) if see else 0 for e, v, see in zip(p, values, seen, strict=True)])
        one, r = constant(1), rcp(total)
        out = []
        for h in range(self.d.d_head):
            column = [v[0][h] for v in values] + [0] * (-len(values) % 32)
            mixed = block_dot([column[j : j + 32] for j in range(0, len(column), 32)], [one] * len(w), w, w_scales)
            out.append(fp32_mul(mixed, r))
        return out

    def activate(self, g, u):
        d = self.d
        if d.activation == "silu":
            return fp32_mul(fp32_mul(g, sigmoid(g)), u)
        if d.activation == "gelu_tanh":
            linear = 2 * math.sqrt(2 / math.pi)
            z = fp32_mul(g, fp32_add(fp32_mul(fp32_mul(g, g), constant(linear * 0.044715)), constant(linear)))
            return fp32_mul(fp32_mul(g, sigmoid(z)), u)
        limit = d.swiglu_limit
        g, u = fp32_min(g, constant(limit)), fp32_min(fp32_max(u, constant(-limit)), constant(limit))
        return fp32_mul(fp32_mul(g, sigmoid(fp32_mul(g, constant(d.swiglu_alpha)))), fp32_add(u, constant(1)))

    def gated(self, prefix, x):
        g, u = self.project(prefix + "gate", x), self.project(prefix + "up", x)
        return self.project(prefix + "down", [self.activate(a, b) for a, b in zip(g, u, strict=True)])

    def mlp(self, prefix, x):
        routing = self.d.routing
        if routing is None:
            return self.gated(prefix, x)
        logits = self.project(prefix + "router", x)
        order = sorted(range(len(logits)), key=lambda e: (-fp32_value(logits[e]), e))[: routing.n_routed]
        powers = [exp2(fp32_mul(fp32_sub(v, logits[order[0]]), constant(math.log2(math.e)))) for v in logits]
        divisor = rcp(fp32_sum([powers[e] for e in order] if routing.normalised else powers))
        y = None
        for e in order:
            part = [fp32_mul(v, fp32_mul(powers[e], divisor)) for v in self.gated(f"{prefix}experts.{e}.", x)]
            y = part if y is None else [fp32_add(a, b) for a, b in zip(y, part, strict=True)]
        return y

    def forward(self, tokens):
        return [self.token(id, position) for position, id in enumerate(tokens)]

    def token(self, id, position):
        d, table = self.d, self.w.matrices["embedding"]
        x = []
        for b in range(len(table.codes)):
            lanes = table.codes[b, id].tolist()
            lanes = lanes if not table.split else lanes[:16] if b % 2 == 0 else lanes[16:]
            x += [fp32_mul(fp32_bits(q), codes(table.scales[b, id : id + 1])[0]) for q in lanes]
        if table.post_scale != 1:
            x = [fp32_mul(e, constant(table.post_scale)) for e in x]
        if d.embedding_scale != 1:
            x = [fp32_mul(e, constant(d.embedding_scale)) for e in x]
        for i in range(d.n_layers):
            h = self.attention(i, self.norm(f"layers.{i}.attention_norm", x), position)
            h = self.norm(f"layers.{i}.attention_post_norm", h) if d.post_norms else h
            x = [fp32_add(a, b) for a, b in zip(x, h, strict=True)]
            h = self.mlp(f"layers.{i}.", self.norm(f"layers.{i}.mlp_norm", x))
            h = self.norm(f"layers.{i}.mlp_post_norm", h) if d.post_norms else h
            x = [fp32_add(a, b) for a, b in zip(x, h, strict=True)]
        return self.project("embedding" if d.tied_embeddings else "head", self.norm("final_norm", x))


def _tiny(kind, **change):
    decoder = decoder_from_config(random_config(kind) | TINY | change, kind)
    return weights_of(decoder, random_arrays(decoder, seed=11))


@pytest.mark.parametrize("kind", ["llama", "llama31", "qwen3", "gemma3", "qwen3_moe", "gpt_oss"])
def test_every_code_equals_the_scalar_definition(kind):
    weights = IntegerWeights.load(_tiny(kind, **({"sliding_window": 2} if kind in ("gemma3", "gpt_oss") else {})))
    tokens = [3, 11, 0, 7]
    expected = Scalar(weights).forward(tokens)
    assert codes(IntegerReference(weights, compiled=False).forward(tokens)) == expected
    assert codes(IntegerReference(weights).forward(tokens)) == expected


@pytest.mark.parametrize("format", [INT4_BLOCK32, MXINT8, MXFP4, NVFP4], ids=lambda f: f.name)
def test_every_weight_format_equals_the_scalar_definition(format):
    weights = IntegerWeights.load(_tiny("llama", num_hidden_layers=1), format)
    assert codes(IntegerReference(weights).forward([3, 11])) == Scalar(weights).forward([3, 11])


def test_attention_beyond_one_span_and_block_equals_the_scalar_definition():
    """130 keys: two spans of the sum, five key blocks; only the last token is compared, the cache being filled by the reference."""
    weights = IntegerWeights.load(_tiny("llama", num_hidden_layers=1, max_position_embeddings=256))
    reference, tokens = IntegerReference(weights), np.random.default_rng(0).integers(0, 12, 130).tolist()
    cache, scalar = reference.start(), Scalar(weights)
    reference.forward(tokens[:-1], cache)
    for t in range(129):
        scalar.keys[0].append([(cache.keys[0][t, 0].tolist(), codes(cache.key_scales[0][t, 0]))])
        scalar.values[0].append([(cache.values[0][t, 0].tolist(), codes(cache.value_scales[0][t : t + 1, 0])[0])])
    assert codes(reference.forward(tokens[-1:], cache)[0]) == scalar.token(tokens[-1], 129)


@pytest.mark.parametrize("kind", RANDOM_CONFIGS)
def test_bits_do_not_depend_on_chunks_or_batch(kind):
    weights = IntegerWeights.load(random_weights(kind, seed=3))
    reference, rng = IntegerReference(weights), np.random.default_rng(5)
    tokens = rng.integers(0, 160, 60)
    whole = reference.forward(tokens)
    cache = reference.start()
    cut = [reference.forward(part, cache) for part in np.split(tokens, [7, 8, 33])]
    np.testing.assert_array_equal(np.concatenate(cut), whole)
    first, second = reference.start(), reference.start()
    reference.forward(tokens[:41], first)
    batch = reference.step([(tokens[:13], second), (tokens[41:], first)])
    np.testing.assert_array_equal(batch[0], whole[:13])
    np.testing.assert_array_equal(batch[1], whole[41:])


def test_each_weight_matters():
    """A single code with its sign turned changes the logits: the comparison above can fail."""
    weights = IntegerWeights.load(_tiny("llama", num_hidden_layers=1))
    before = IntegerReference(weights).forward([3, 11])
    for name, matrix in weights.matrices.items():
        changed = matrix.codes.copy()
        changed[0, 3, 5] = -127 if changed[0, 3, 5] > 0 else 127
        other = replace(weights, matrices={**weights.matrices, name: replace(matrix, codes=changed)})
        assert (IntegerReference(other).forward([3, 11]) != before).any(), name


def test_tinyshakes_speaks_the_same_in_integers():
    """Greedy text of a trained model hinges on few near-ties: teacher-forced arg-maxes agree wherever float's margin exceeds the logits' change."""
    weights = open_weights("tinyshakes")
    tokens = np.random.default_rng(1).integers(13, 65, 128)
    theirs, ours = FloatReference.load(weights).forward(tokens), IntegerReference.load(weights, INT8_BLOCK32).forward(tokens)
    top2 = np.sort(theirs, -1)[:, -2:]
    margin = top2[:, 1] - top2[:, 0]
    change = np.abs(ours - theirs).max(-1)
    decided = margin > 2 * change
    assert decided.mean() > 0.5
    assert (ours.argmax(-1) == theirs.argmax(-1))[decided].all()
