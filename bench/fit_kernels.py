"""Fit kernel calibration to measured tables and write src/fabless/data/calibration.toml.

    python bench/fit_kernels.py [--write] [--data ../shared/data/silicon/kernels]

Fits on the shapes of even parity (position of n plus position of k among the table's sizes; every second row for attention and
collectives) and reports errors on the others, then once more with each chip left out. Parameters of a family see only its chips; those of a
library path are shared by all chips.
"""

from __future__ import annotations

import argparse
import csv
from dataclasses import astuple, fields, replace
from pathlib import Path

import numpy as np
from scipy.optimize import minimize

from fabless.chip.catalogue import load_chip
from fabless.mapping.gemm import Products
from fabless.number.formats import format_named
from fabless.sim import kernels as K  # noqa: N812 - one letter keeps the fits readable
from fabless.sim.calibration import Calibration
from fabless.sim.collectives import collective_s

ROOT = Path(__file__).parents[1]
CHIPS = {
    "a100_sxm": "nvidia_a100_sxm_80gb", "h100_sxm": "nvidia_h100_sxm", "h200_sxm": "nvidia_h200_sxm", "b200_sxm": "nvidia_b200_sxm",
    "rtx_pro_6000_server": "nvidia_rtx_pro_6000_se",
}  # fmt: skip
PATHS = {"bfloat16": "wide", "fp8": "fp8", "fp8_block": "fp8_block", "nvfp4": "nvfp4"}
#: Bytes moved per input value to quantise it: per-tensor scales read twice (maximum, then values), blocks once; then the narrow value is written.
QUANTISE_BYTES = {"wide": 0.0, "fp8": 2 + 2 + 1, "fp8_block": 2 + 1, "nvfp4": 2 + 0.5625}
SPLITS = {"wide": 1.0, "fp8": 0.0, "fp8_block": 0.0, "nvfp4": 0.0}
CLIP = 0.6  # an outlier of the tables weighs no more than a factor of e^0.6
SAMPLE = 240  # rows a table contributes to a fit


def rows_of(path):
    with path.open() as lines:
        return list(csv.DictReader(lines))


def read_gemms(folder):
    tables = {}
    for short in CHIPS:
        for path in folder.glob(f"{short}_gemm_*.csv"):
            for r in rows_of(path):
                tables.setdefault((short, r["gemm_dtype"]), []).append([float(r[c]) for c in ("m", "n", "k", "latency_ms")])
    return {key: np.array(v) * (1, 1, 1, 1e-3) for key, v in tables.items()}


def read_attention(folder, kind):
    tables = {}
    columns = ("batch_size", "isl", "step", "num_heads", "num_key_value_heads", "head_dim", "latency_ms")
    for short in CHIPS:
        for path in folder.glob(f"{short}_{kind}_attention_*.csv"):
            for r in rows_of(path):
                tables.setdefault((short, r["attn_dtype"], r["kv_cache_dtype"]), []).append([float(r[c]) for c in columns])
    return {key: np.array(v) * (1, 1, 1, 1, 1, 1, 1e-3) for key, v in tables.items()}


def read_collectives(folder):
    """Rows (kind, chips, bytes, seconds); the tables count elements."""
    kinds = {"all_gather": "all_gather", "all_reduce": "all_reduce", "alltoall": "all_to_all", "reduce_scatter": "reduce_scatter"}
    tables = {}
    for short in CHIPS:
        for path in folder.glob(f"{short}_comm_*.csv"):
            for r in rows_of(path):
                size = float(r["message_size"]) * (2 if r["nccl_dtype"] == "half" else 1)
                tables.setdefault((short, kinds[r["op_name"]], int(r["num_gpus"])), []).append([size, float(r["latency"]) * 1e-3])
    return {key: np.array(v) for key, v in tables.items()}


def even(table):
    ns, ks = (sorted(set(table[:, i])) for i in (1, 2))
    return np.array([(ns.index(n) + ks.index(k)) % 2 == 0 for n, k in table[:, 1:3]])


def gemm_errors(short, dtype, table, calibration, path):
    chip = load_chip(CHIPS[short])
    operand = format_named("fp8" if dtype == "fp8_block" else dtype)
    one = np.ones(len(table))
    size = operand.bytes_per_value * one
    p = Products(*table[:, :3].T, one, size, size, 2 * one)
    return np.log(K.gemm_call_s(chip, p, operand, path, calibration) / table[:, 3])


def attention_errors(short, dtype, kv, table, calibration, paths):
    chip = load_chip(CHIPS[short])
    b, s, step, h, hk, d, seconds = table.T
    keys, queries = s + step, s
    one = np.ones(len(table))
    a = K.Attentions(
        b, queries, keys, queries * step + queries * (queries + 1) / 2, h, hk, d, d, 2 * d, format_named(kv).bytes_per_value * one, 2 * one
    )
    return np.log(K.attention_call_s(chip, a, format_named(dtype), calibration, prefill=paths[0], decode=paths[1]) / seconds)


def collective_errors(short, kind, n, table, calibration):
    chip = load_chip(CHIPS[short])
    return np.log(collective_s(kind, table[:, 0], n, chip.link, calibration) / table[:, 1])


def loss(errors):
    return float(np.mean(np.minimum(np.abs(errors), CLIP)))


def search(cost, start, limits=None, iterations=120):
    """Minimise over logarithms of positive parameters; limits are upper bounds (a ratio stays below 1)."""
    upper = np.log([np.inf if x is None else x for x in (limits or [None] * len(start))])

    def bounded(x):
        return cost(np.exp(np.minimum(x, upper))) + 10 * float(np.sum(np.maximum(0, x - upper)))

    found = minimize(
        bounded, np.log(np.maximum(start, 1e-12)), method="Nelder-Mead", options={"maxiter": iterations, "xatol": 1e-3, "fatol": 1e-5}
    )
    return np.exp(np.minimum(found.x, upper))


class Fit:
    """Alternate between families (given paths) and paths (given families)."""

    def __init__(self, gemms, prefills, decodes, collectives, exclude=None):
        rng = np.random.default_rng(0)

        def sample(table, keep):
            chosen = np.flatnonzero(keep)
            return table[rng.permutation(chosen)[:SAMPLE]]

        def drop(tables):
            return {k: v for k, v in tables.items() if k[0] != exclude}

        alternate = {k: np.arange(len(v)) % 2 == 0 for k, v in (drop(prefills) | {}).items()}
        self.gemms = {k: sample(v, even(v)) for k, v in drop(gemms).items()}
        self.prefills = {k: v[alternate[k]] for k, v in drop(prefills).items()}
        self.decodes = {k: v[np.arange(len(v)) % 2 == 0] for k, v in drop(decodes).items()}
        self.collectives = {k: v[np.arange(len(v)) % 2 == 0] for k, v in drop(collectives).items()}
        shorts = {k[0] for k in self.gemms}
        self.family = {s: load_chip(CHIPS[s]).family for s in CHIPS}
        self.calibrations = {self.family[s]: Calibration(self.family[s], 0.8, 0.8, 2.3e-6, 0.8, 5e-6) for s in sorted(shorts)}
        self.paths = {
            "wide": K.GemmPath(0.0, 6e-7, 1.0, 2e-7, 0.0, 1.0), "fp8": K.GemmPath(9e-6, 5e-7, 0.95, 1e-6, 5.0, 0.0),
            "fp8_block": K.GemmPath(1e-6, 1e-6, 0.78, 2e-6, 3.0, 0.0), "nvfp4": K.GemmPath(2e-6, 3.3e-6, 0.95, 1.9e-6, 2.5625, 0.0),
        }  # fmt: skip
        self.kernels = {s: K.kernel_set(load_chip(CHIPS[s])) for s in CHIPS}
        sets = sorted({self.kernels[s] for s in shorts})
        self.prefill = dict.fromkeys(sets, K.PrefillPath(9e-6, 0.7, 0.85, 1.5e-6, 2.0))
        self.decode = dict.fromkeys(sets, K.DecodePath(6e-6, 6e-6, 1.5e-6, 4e-6, 1.1, 1.5))

    def run(self, sweeps=3):
        for _ in range(sweeps):
            self.fit_families()
            self.fit_paths()
        self.fit_attention()
        self.fit_links()
        return self

    def fit_families(self):
        for family, start in self.calibrations.items():
            mine = [k for k in self.gemms if self.family[k[0]] == family]

            def cost(x, mine=mine, start=start):
                c = replace(start, matrix_efficiency=x[0], memory_efficiency=x[1], launch_overhead_s=x[2])
                return np.mean([loss(gemm_errors(*k, self.gemms[k], c, self.paths[PATHS[k[1]]])) for k in mine])

            x = search(cost, [start.matrix_efficiency, start.memory_efficiency, start.launch_overhead_s], [1.0, 1.0, None])
            self.calibrations[family] = replace(start, matrix_efficiency=x[0], memory_efficiency=x[1], launch_overhead_s=x[2])

    def fit_paths(self):
        for name, path in self.paths.items():
            mine = [k for k in self.gemms if PATHS[k[1]] == name]
            if not mine:
                continue

            def cost(made, mine=mine):
                return np.mean([loss(gemm_errors(*k, self.gemms[k], self.calibrations[self.family[k[0]]], made)) for k in mine])

            if name == "wide":  # its launch and rate are the family's own
                x = search(
                    lambda y, path=path: cost(replace(path, refill_s=y[0], tile_overhead_s=y[1])), [path.refill_s, path.tile_overhead_s]
                )
                self.paths[name] = replace(path, refill_s=x[0], tile_overhead_s=x[1])
            else:
                x = search(
                    lambda y, path=path: cost(K.GemmPath(*y, path.quantise_bytes, path.splits)), astuple(path)[:4], [None, None, 1.0, None]
                )
                self.paths[name] = K.GemmPath(*x, path.quantise_bytes, path.splits)

    def fit_attention(self):
        def cost_of(tables, name, paths):
            mine = [(k, v) for k, v in tables.items() if self.kernels[k[0]] == name]
            return np.mean([loss(attention_errors(*k, v, self.calibrations[self.family[k[0]]], paths)) for k, v in mine])

        for name, prefill in self.prefill.items():
            decode = self.decode[name]
            x = astuple(prefill)
            y = astuple(decode)
            for _ in range(2):
                x = search(
                    lambda v, n=name, d=decode: cost_of(self.prefills, n, (K.PrefillPath(*v), d)), x, [None, 1.0, 1.0, None, None], 300
                )
                y = search(lambda v, n=name, p=prefill: cost_of(self.decodes, n, (p, K.DecodePath(*v))), y, [None] * 4 + [1.25, None], 300)
            self.prefill[name] = K.PrefillPath(*x)
            self.decode[name] = K.DecodePath(*y)

    def attention_paths(self, short):
        """Paths of a chip's kernel set; of a set that no chip of the fit runs, the median over sets."""
        name = self.kernels[short]
        if name in self.prefill:
            return self.prefill[name], self.decode[name]
        middle = [np.median([astuple(p) for p in group.values()], axis=0) for group in (self.prefill, self.decode)]
        return K.PrefillPath(*middle[0]), K.DecodePath(*middle[1])

    def fit_links(self):
        for family, start in self.calibrations.items():
            mine = [k for k in self.collectives if self.family[k[0]] == family]

            def cost(x, mine=mine, start=start):
                c = replace(start, link_efficiency=x[0], link_latency_s=x[1])
                return np.mean([loss(collective_errors(*k, self.collectives[k], c)) for k in mine])

            x = search(cost, [start.link_efficiency, start.link_latency_s], [1.0, None])
            self.calibrations[family] = replace(start, link_efficiency=x[0], link_latency_s=x[1])

    def transfer(self):
        """Median over families, parameter by parameter."""
        values = {f.name: float(np.median([getattr(c, f.name) for c in self.calibrations.values()])) for f in fields(Calibration)[1:6]}
        return Calibration("transfer", **values)

    def calibration(self, short):
        return self.calibrations.get(self.family[short]) or self.transfer()


def ape(errors):
    return np.abs(np.expm1(errors))


def errors_of(fit, short, tables, held_only=True):
    gemms, prefills, decodes, collectives = tables
    c = fit.calibration(short)
    out = {"gemm": [], "prefill": [], "decode": [], "collective": []}
    for k, v in gemms.items():
        if k[0] == short:
            out["gemm"].append((k, gemm_errors(*k, v[~even(v)] if held_only else v, c, fit.paths[PATHS[k[1]]])))
    for name, group in (("prefill", prefills), ("decode", decodes)):
        for k, v in group.items():
            if k[0] == short:
                out[name].append((k, attention_errors(*k, v[1::2] if held_only else v, c, fit.attention_paths(short))))
    for k, v in collectives.items():
        if k[0] == short:
            out["collective"].append((k, collective_errors(*k, v[1::2] if held_only else v, c)))
    return out


def summary(errors):
    e = ape(np.concatenate(errors))
    return f"n {len(e):6d}  median {np.median(e):.3f}  p90 {np.quantile(e, 0.9):.3f}"


def report(fit, tables, title, detail=True):
    pooled = {}
    for short in CHIPS:
        for name, parts in errors_of(fit, short, tables).items():
            for k, e in parts:
                pooled.setdefault(name, []).append(e)
                if detail and name != "collective":
                    print(f"   {name:10s} {'/'.join(map(str, k)):45s} {summary([e])}  bias {np.mean(e):+.3f}")
    pooled["attention"] = pooled["prefill"] + pooled["decode"]
    for name, parts in pooled.items():
        print(f"{title} {name:10s} {summary(parts)}")


def leave_one_out(tables):
    """Return per chip the errors of all its rows under a fit without it."""
    out = {}
    for short in CHIPS:
        fit = Fit(*tables, exclude=short).run(2)
        parts = errors_of(fit, short, tables, held_only=False)
        out[short] = {name: np.concatenate([e for _, e in v]) for name, v in parts.items()}
        print("left out", short, {name: f"{np.median(ape(e)):.3f}" for name, e in out[short].items()}, flush=True)
    return out


def row(id, value, unit, kind, **attributes):
    lines = ["[[rows]]", f'id = "{id}"', f"value = {value:.4g}", f'unit = "{unit}"', f'kind = "{kind}"', 'source = "aiconfigurator"']
    lines += [f'{k} = "{v}"' if isinstance(v, str) else f"{k} = {v:.4g}" for k, v in attributes.items()]
    return "\n".join(lines) + "\n"


def unit(parameter):
    return "s" if parameter.endswith("_s") else "B" if parameter.endswith("_bytes") else "ratio"


def write(fit, left_out, target, held):
    head = target.read_text("utf-8").split("[[rows]]")[0]
    out = [head.rstrip() + "\n"]
    for c in [*fit.calibrations.values(), fit.transfer()]:
        chips = [s for s in CHIPS if fit.family[s] == c.family] or list(CHIPS)
        errors = np.concatenate([left_out[s][name] for s in chips for name in ("gemm", "prefill", "decode")])
        band = float(np.quantile(ape(errors), 0.8))
        note = f"n {held[c.family][0]}, median error on shapes outside the fit {held[c.family][1]:.3f}, chip left out {np.median(ape(errors)):.3f}"
        for f in fields(Calibration)[1:6]:
            spread = [getattr(x, f.name) for x in fit.calibrations.values()]
            soft = {"low": min(spread), "high": max(spread)} if c.family == "transfer" else {}
            kind = "derived" if c.family == "transfer" else "measured"
            out.append(
                row(f"{c.family}.{f.name}", getattr(c, f.name), unit(f.name), kind, note=note, family=c.family, parameter=f.name, **soft)
            )
        out.append(row(f"{c.family}.error_ratio", band, "ratio", "derived", note=note, family=c.family, parameter="error_ratio"))
    named = {f"gemm_{k}": v for k, v in fit.paths.items()}
    named |= {f"prefill_{k}": v for k, v in fit.prefill.items()} | {f"decode_{k}": v for k, v in fit.decode.items()}
    for name, path in named.items():
        for f in fields(path):
            kind = "derived" if f.name in {"quantise_bytes", "splits"} else "measured"
            out.append(row(f"{name}.{f.name}", getattr(path, f.name), unit(f.name), kind, path=name, parameter=f.name))
    target.write_text("\n".join(out), "utf-8")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=ROOT / "../shared/data/silicon/kernels")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--loo", action="store_true")
    arguments = parser.parse_args()
    folder = arguments.data
    tables = (read_gemms(folder), read_attention(folder, "context"), read_attention(folder, "generation"), read_collectives(folder))
    fit = Fit(*tables).run()
    for c in fit.calibrations.values():
        print(c)
    for name, path in [*fit.paths.items(), *fit.prefill.items(), *fit.decode.items()]:
        print(name, path)
    report(fit, tables, "outside the fit:")
    if not (arguments.write or arguments.loo):
        return
    left_out = leave_one_out(tables)
    for name in ("gemm", "prefill", "decode", "collective"):
        print("chip left out:", name, summary([left_out[s][name] for s in CHIPS]))
    if arguments.write:
        held = {}
        for family in [*fit.calibrations, "transfer"]:
            parts = [errors_of(fit, s, tables) for s in CHIPS if fit.family[s] == family or family == "transfer"]
            e = np.concatenate([x for p in parts for name in ("gemm", "prefill", "decode") for _, x in p[name]])
            held[family] = (len(e), float(np.median(ape(e))))
        write(fit, left_out, ROOT / "src/fabless/data/calibration.toml", held)


if __name__ == "__main__":
    main()
