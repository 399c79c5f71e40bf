"""What papers claim about cheaper attention, and what our table says to it.

Knows tables; runs nothing.
"""

from __future__ import annotations

import math

import pandas as pd

from sinkviz.experiments.judging import Absent, Verdict, decided
from sinkviz.experiments.running import Claim
from sinkviz.plots._parts import number


def _times(table: pd.DataFrame, mechanism: str) -> pd.DataFrame:
    """Return the timed rows of the mechanisms that begin so, by length."""
    rows = table[(table.kind == "time") & table.mechanism.str.startswith(mechanism)]
    rows = rows[rows.ms.notna()] if len(rows) else rows
    if rows.length.nunique() < 2:
        raise Absent(f"{mechanism} was not timed at two lengths")
    return rows.set_index("length").sort_index()


def _growth(values: pd.Series) -> float:
    """Return the power of the length that a quantity grows with, over the last doublings."""
    last, before = values.index[-1], values.index[max(0, len(values) - 3)]
    return math.log(values[last] / values[before]) / math.log(last / before)


def _quality(table: pd.DataFrame, way: str) -> pd.Series:
    """Return perplexity by keys of one way to attend."""
    rows = table[(table.kind == "quality") & (table.way == way)] if "way" in table else table[:0]
    if rows.empty:
        raise Absent(f"no quality of {way} attention was measured")
    return rows.set_index("keys").perplexity.astype(float).sort_index()


@decided
def _fused_same(table: pd.DataFrame) -> Verdict:
    own, eager = (float(_quality(table, way).iloc[0]) for way in ("own", "eager"))
    names = table[(table.kind == "quality") & (table.way == "own")].mechanism.iloc[0]
    if names == "eager":
        raise Absent("this model knows eager attention alone")
    return abs(own / eager - 1) < 1e-4, f"perplexity {names} {own:.4f}, eager {eager:.4f}"


@decided
def _fused_memory(table: pd.DataFrame) -> Verdict:
    fused, eager = _times(table, "sdpa").peak_mb, _times(table, "eager").peak_mb
    last = int(fused.index[-1])
    return _growth(fused) < 1.2, (
        f"peak of one layer at {last:,} tokens: {fused[last]:.1f} MB against {eager[last]:.1f} MB "
        f"({eager[last] / fused[last]:.0f} times); it grows as length to the power of "
        f"{_growth(fused):.1f} against {_growth(eager):.1f}"
    )


@decided
def _fused_speed(table: pd.DataFrame) -> Verdict:
    ratios = 1 / _times(table, "sdpa").ms_ratio
    told = ", ".join(f"{ratios[n]:.1f} times at {n:,}" for n in ratios.index)
    return bool(ratios.iloc[-1] > 1), f"as fast as eager attention: {told} tokens"


@decided
def _window_linear(table: pd.DataFrame) -> Verdict:
    window, eager = _times(table, "window"), _times(table, "eager")
    last = int(window.index[-1])
    return _growth(window.ms) < 1.3 < _growth(eager.ms), (
        f"{window.mechanism.iloc[0]} grows as length to the power of {_growth(window.ms):.1f} in "
        f"time and {_growth(window.peak_mb):.1f} in memory, eager {_growth(eager.ms):.1f} and "
        f"{_growth(eager.peak_mb):.1f}; at {last:,} tokens {1 / window.ms_ratio[last]:.0f} times "
        "as fast"
    )


@decided
def _window_breaks(table: pd.DataFrame) -> Verdict:
    window, sinks = _quality(table, "window"), _quality(table, "sinks")
    full = float(_quality(table, "own").iloc[0])
    kept = [
        f"{int(n)} keys: {number(window[n])} without, {number(sinks[n])} with sinks"
        for n in window.index
    ]
    # Of the loss that a window brings, sinks take back more than half at every size.
    agrees = ((sinks - full) < (window - full) / 2).all()
    return bool(agrees), f"full attention {number(full)}; " + "; ".join(kept)


@decided
def _top_k(table: pd.DataFrame) -> Verdict:
    top, full = _quality(table, "top"), float(_quality(table, "own").iloc[0])
    length = int(table[table.kind == "quality"].length.iloc[0])
    near = [n for n in top.index if top[n] < 1.01 * full]
    cost = 1 / _times(table, "top").ms_ratio.iloc[-1]
    told = ", ".join(f"{number(top[n])} with {int(n)}" for n in top.index)
    least = f"within 1 % from {int(near[0])} keys on" if near else "nowhere within 1 %"
    return bool(near and near[0] <= length / 4), (
        f"full attention {number(full)} ({length} keys at most); {told}: {least}. Computed as "
        f"here, with all scores, it is {cost:.2f} times as fast as eager attention"
    )


def _heads(table: pd.DataFrame, name: str) -> tuple[float, pd.DataFrame]:
    """Return the perplexity of one sharing of heads, and its decoding by length."""
    zoo = table[table.model.str.startswith("heads-") & (table.mechanism == name)]
    quality, decoding = zoo[zoo.kind == "heads quality"], zoo[zoo.kind == "heads"]
    if quality.empty or decoding.empty:
        raise Absent(f"no {name} model of the zoo was measured")
    return float(quality.perplexity.iloc[0]), decoding.set_index("length").sort_index()


def _against_multi_head(table: pd.DataFrame, name: str) -> tuple[float, float, str]:
    """Return perplexity and cache as multiples of multi-head attention's, and both in words."""
    (base, base_rows), (ours, rows) = (_heads(table, one) for one in ("multi-head", name))
    last = int(rows.index[-1])
    cache = float(rows.cache_bytes[last] / base_rows.cache_bytes[last])
    time = float(rows.ms_ratio[last] / base_rows.ms_ratio[last])
    told = (
        f"perplexity {ours:.2f} against {base:.2f} ({ours / base - 1:+.1%}), cache {cache:.2f} "
        f"and decode step {time:.2f} times multi-head's at {last:,} tokens"
    )
    return ours / base, cache, told


@decided
def _multi_query(table: pd.DataFrame) -> Verdict:
    quality, cache, told = _against_multi_head(table, "multi-query")
    heads = int(table[table.mechanism == "multi-query"].heads.iloc[0])
    agrees = quality < 1.03 and abs(cache * heads - 1) < 0.01
    return bool(agrees), f"{told} (up to 3 % counts as little)"


@decided
def _grouped_query(table: pd.DataFrame) -> Verdict:
    grouped, _, told = _against_multi_head(table, "grouped-query")
    single, _, _ = _against_multi_head(table, "multi-query")
    between = min(1.0, single) <= grouped <= max(1.0, single)
    return bool(between), f"{told}; multi-query {single - 1:+.1%}"


CLAIMS = (
    Claim(
        "Fused attention is exact: it changes nothing but time and memory.",
        "the same perplexity with and without (GPT-2 small 18.2, medium 14.3)",
        "Dao et al. 2022, arXiv 2205.14135, table 2",
        _fused_same,
    ),
    Claim(
        "Memory of fused attention grows with the length, not with its square.",
        "linear in length; up to 20 times less than attention that is written out",
        "Dao et al. 2022, arXiv 2205.14135, section 4.3 and figure 3",
        _fused_memory,
    ),
    Claim(
        "Fused attention is faster than attention that is written out.",
        "up to 7.6 times on GPT-2 (A100)",
        "Dao et al. 2022, arXiv 2205.14135, figure 1",
        _fused_speed,
    ),
    Claim(
        "Attention over a window costs time in proportion to the length.",
        "O(T L) for T tokens and a window of L, against O(T^2)",
        "Xiao et al. 2023, arXiv 2309.17453, figure 1",
        _window_linear,
    ),
    Claim(
        "Window attention breaks a model that was trained without; a few sinks mend it.",
        "Llama-2-13B: perplexity 5,158 with 0+1,024, 5.40 with 4+1,020",
        "Xiao et al. 2023, arXiv 2309.17453, figure 1 and table 1",
        _window_breaks,
    ),
    Claim(
        "Few keys per query are enough, in a model trained with all of them.",
        "nearly the accuracy of full attention without further training",
        "Gupta et al. 2021, arXiv 2106.06899, abstract",
        _top_k,
    ),
    Claim(
        "Heads that share one set of keys cost little quality and make the cache smaller by the "
        "number of heads.",
        "Billion-word perplexity 30.2 against 29.9 (1 % more)",
        "Shazeer 2019, arXiv 1911.02150, table 2",
        _multi_query,
    ),
    Claim(
        "Grouped keys lie between multi-query and multi-head attention in quality.",
        "T5 XXL: average score 47.2 multi-head, 47.1 in 8 groups, 46.6 multi-query; inference "
        "1.51, 0.28 and 0.24 s per sample",
        "Ainslie et al. 2023, arXiv 2305.13245, table 1",
        _grouped_query,
    ),
)
