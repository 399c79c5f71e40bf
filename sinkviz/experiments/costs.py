"""What attention costs, computed in several ways: time, memory, cache and quality.

Source: Dao et al. 2022, arXiv 2205.14135 (flash); Xiao et al. 2023, arXiv 2309.17453 (window);
Gupta et al. 2021, arXiv 2106.06899 (top-k keys); Shazeer 2019, arXiv 1911.02150 (multi-query);
Ainslie et al. 2023, arXiv 2305.13245 (grouped-query).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from types import MappingProxyType
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from transformers import DynamicCache

from sinkviz.bench.measure import alternate, finish, milliseconds, ratio, setting, steps
from sinkviz.experiments.costs_claims import CLAIMS
from sinkviz.experiments.expense import peak_bytes_of
from sinkviz.experiments.mechanisms import (
    Mechanism,
    attending,
    causal_mask,
    eager,
    flash,
    flex,
    local_window,
    sdpa,
    top_k,
)
from sinkviz.experiments.running import Cell, Experiment, Row, Setting
from sinkviz.experiments.stretches import stretch_nll
from sinkviz.models import LM, untouched
from sinkviz.plots.costs import plot_costs

MODELS = ("classroom-rope", "heads-multi", "heads-grouped", "heads-single")
N_SINK, WINDOW, TOP = 4, 64, 8
LARGEST_SCORES = 2**30  # bytes of one layer's scores that are written out
HEADS = MappingProxyType({True: "multi-query", False: "grouped-query"})


class _Site(nn.Module):
    """What attention functions ask of the module that they stand in."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.layer_idx, self.num_key_value_groups, self.is_causal = 0, groups, True
        self.eval()


def cells(setting: Setting) -> list[Cell]:
    """Return the grid: lengths to time at, mechanisms to score, lengths to decode at."""
    quick = setting.quick
    heads, _, _ = _shape(setting.lm)
    lengths = [128, 256, 512] if quick else [128, 256, 512, 1024, 2048, 4096]
    size = setting.lm.model.dtype.itemsize
    fitting = [n for n in lengths if size * heads * n * n <= LARGEST_SCORES]
    found: list[Cell] = [{"kind": "time", "length": length} for length in fitting]
    found += [{"kind": "quality", "way": "own"}]
    if setting.lm.family.interface:
        whole = _length(setting.lm)
        windows = (
            [whole // 8, whole // 4]
            if quick
            else [whole // 8, whole // 4, whole // 2, 3 * whole // 4]
        )
        tops = [1, 4, 16] if quick else [1, 2, 4, 8, 16, 32, 64]
        found += [{"kind": "quality", "way": "eager"}]
        found += [{"kind": "quality", "way": "window", "keys": n} for n in windows]
        found += [{"kind": "quality", "way": "sinks", "keys": n} for n in windows]
        found += [{"kind": "quality", "way": "top", "keys": n} for n in tops if n < whole]
    found += [{"kind": "heads quality", "model": name} for name in setting.models]
    lengths = [128, 512] if quick else [128, 512, 2048]
    return found + [{"kind": "heads", "length": length} for length in lengths]


def measure(setting: Setting, cell: Cell) -> list[Row]:
    """Return the rows of a cell."""
    if cell["kind"] == "time":
        return _times(setting.lm, cell["length"], setting)
    if cell["kind"] == "quality":
        return [_quality(setting, cell["way"], cell.get("keys"))]
    if cell["kind"] == "heads quality":
        lm = setting.models[cell["model"]]
        return [_shared(lm) | {"kind": "heads quality"} | _nll(setting, lm, None)]
    return _decoding(setting, cell["length"])


def _length(lm: LM) -> int:
    """Return the length at which quality is measured: what the model was trained on, or 512."""
    return min(lm.train_length or 512, 512)


def _shape(lm: LM) -> tuple[int, int, int]:
    """Return heads of queries, heads of keys, and coordinates per head."""
    config = lm.model.config.get_text_config()
    heads = config.num_attention_heads
    shared = getattr(config, "num_key_value_heads", None) or heads
    return heads, shared, getattr(config, "head_dim", None) or config.hidden_size // heads


# Time and memory of one layer's attention --------------------------------------------------------


def _mechanisms(lm: LM, length: int, quick: bool) -> dict[str, Callable[[], Mechanism]]:
    found: dict[str, Callable[[], Mechanism]] = {"eager": eager, "sdpa": sdpa}
    cuda = lm.device.type == "cuda"
    if cuda:
        found["flash"] = flash
    if cuda or not quick:  # to compile takes half a minute on a CPU
        found["flex"] = lambda: flex(length, lm.device)
    found[f"window {WINDOW}"] = lambda: local_window(lm, length, WINDOW)
    found[f"top-{TOP} keys"] = lambda: top_k(TOP)
    return found


def _times(lm: LM, length: int, how: Setting) -> list[Row]:
    """Time one layer's attention over a whole text, every mechanism in turns, on random states."""
    heads, shared, size = _shape(lm)
    draw = torch.Generator().manual_seed(how.seed)
    query, key, value = (
        torch.randn(1, n, length, size, generator=draw).to(lm.device, lm.model.dtype)
        for n in (heads, shared, shared)
    )
    site, mask = _Site(heads // shared), causal_mask(query, length)
    calls, failed, found = {}, {}, {}
    for name, make in _mechanisms(lm, length, how.quick).items():
        try:
            mechanism = make()
            call = _call(mechanism, site, query, key, value, mask, size**-0.5)
            call()
        except (RuntimeError, NotImplementedError, ValueError) as error:
            failed[name] = f"not on this device: {str(error).splitlines()[0][:100]}"
            continue
        calls[name], found[name] = call, mechanism
    repeat = 3 if how.quick else 9
    times = alternate(repeat, **{name: _long_enough(call) for name, call in calls.items()})
    rows = [{"mechanism": name, "note": note} for name, note in failed.items()]
    for name, call in calls.items():
        held = min(length, found[name].holds or length)
        rows.append(
            {
                "mechanism": name,
                "keys": min(length, found[name].keys or length),
                "exact": found[name].exact,
                "ms": milliseconds(times[name]),
                "ms_ratio": ratio(times[name], times["eager"]),
                "peak_mb": peak_bytes_of(call, lm.device) / 1e6,
                # Keys and values that the next token may still look at, of one layer.
                "cache_bytes": (key.nbytes + value.nbytes) * held // length,
                "timing": f"median of {repeat} alternating turns; {setting()}",
            }
        )
    torch._dynamo.reset()  # the next length is another kernel
    return [{"kind": "time", "model": lm.name, "length": length} | row for row in rows]


def _long_enough(call: Callable[[], Any]) -> Callable[[], int]:
    """Return a turn of 20 ms at least: what is over in a moment is hard to time."""
    started = time.perf_counter()
    call()
    finish()
    return steps(call, min(50, 1 + int(0.02 / (time.perf_counter() - started))))


def _call(
    mechanism: Mechanism,
    site: _Site,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor,
    scaling: float,
) -> Callable[[], Any]:
    # A model makes its mask once for all layers, so the making is not part of a layer's cost.
    given = mask if mechanism.masked else None

    def call() -> None:
        with torch.no_grad():
            mechanism.attend(site, query, key, value, given, scaling=scaling, dropout=0.0)

    return call


# Quality of what changes the result --------------------------------------------------------------


def _nll(how: Setting, lm: LM, attention: str | None) -> Row:
    length = _length(lm)
    ids = how.ids(lm, 1 + (2048 if how.quick else 32_768))
    nll = float(stretch_nll(lm, ids, length, attention=attention).double().mean())
    return {"length": length, "nll": nll, "perplexity": math.exp(min(nll, 700.0))}


def _quality(how: Setting, way: str, keys: int | None) -> Row:
    lm, length = how.lm, _length(how.lm)
    if way in ("own", "eager"):
        implementation = lm.model.config._attn_implementation if way == "own" else way
        about = {"mechanism": implementation, "keys": length, "exact": True}
        found = _nll(how, lm, None if way == "own" else way)
    else:
        if way == "top":
            mechanism = top_k(keys)
        else:
            n_sink = min(N_SINK, keys - 1) if way == "sinks" else 0
            mechanism = local_window(lm, length, keys - n_sink, n_sink)
        with attending(mechanism) as name:
            found = _nll(how, lm, name)
        about = {"mechanism": mechanism.name, "keys": keys, "exact": False}
    return {"kind": "quality", "model": lm.name, "way": way} | about | found


# Heads that share keys ---------------------------------------------------------------------------


def _shared(lm: LM) -> Row:
    heads, shared, _ = _shape(lm)
    name = "multi-head" if shared == heads else HEADS[shared == 1]
    return {
        "model": lm.name,
        "mechanism": name,
        "heads": heads,
        "kv_heads": shared,
        "parameters": lm.model.num_parameters(),
    }


def _decoding(how: Setting, length: int) -> list[Row]:
    """Time a decode step of several streams at once, every model in turns; count their caches."""
    n_streams, repeat = (4, 3) if how.quick else (16, 9)
    calls, rows = {}, []
    for lm in how.models.values():
        ids = how.ids(lm, length + 1).expand(n_streams, -1)
        cache = DynamicCache()
        step = _decode(lm, cache, ids[:, -1:])
        try:
            with untouched(lm.model):
                lm.model(ids[:, :-1], past_key_values=cache, use_cache=True, logits_to_keep=1)
            step()
        except (ValueError, IndexError):  # positions from a table, which ends
            rows.append(_shared(lm) | {"note": f"cannot read {length + 1} tokens"})
            continue
        held = [x for layer in cache.layers for x in (layer.keys, layer.values)]
        n_bytes = sum(x.nbytes for x in held) // n_streams
        calls[lm.name] = step
        rows.append(_shared(lm) | {"cache_bytes": n_bytes, "streams": n_streams})
    if calls:
        times = alternate(repeat, **{name: steps(call, 3) for name, call in calls.items()})
        first = next(iter(times))
        for row in rows:
            if row["model"] in times:
                row["ms"] = milliseconds(times[row["model"]])
                row["ms_ratio"] = ratio(times[row["model"]], times[first])
                row["ms_ratio_to"] = first
                row["timing"] = f"median of {repeat} alternating turns; {setting()}"
    return [{"kind": "heads", "length": length} | row for row in rows]


def _decode(lm: LM, cache: DynamicCache, ids: Tensor) -> Callable[[], None]:
    def call() -> None:
        with untouched(lm.model):
            lm.model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache.crop(-1)  # so that every step is at the same length

    return call


def draw(table: pd.DataFrame) -> Figure:
    """Draw time, memory, quality and caches, a panel each."""
    figure, axes = plt.subplots(2, 2, figsize=(12, 8), layout="constrained")
    times, quality = table[table.kind == "time"], table[table.kind == "quality"]
    plot_costs(times, "ms", ax=axes[0, 0])
    plot_costs(times, "peak_mb", ax=axes[0, 1])
    families = quality.assign(mechanism=quality.way.map(_FAMILIES))
    families = families.dropna(subset="mechanism")
    plot_costs(families, "perplexity", against="keys", references=["full"], ax=axes[1, 0])
    heads = table[table.kind == "heads"]
    plot_costs(heads.assign(cache_kb=heads.cache_bytes / 1e3), "cache_kb", ax=axes[1, 1])
    return figure


_FAMILIES = {"own": "full", "window": "window", "sinks": "sinks + window", "top": "top-k keys"}

ATTENTION_COSTS = Experiment(
    name="attention_costs",
    question="What does attention cost in time, memory, cache and quality: written out, fused, "
    "over a window, over the highest scores, and with heads that share keys?",
    cells=cells,
    measure=measure,
    draw=draw,
    models=MODELS,
    claims=CLAIMS,
)
