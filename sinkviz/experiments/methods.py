"""Dense, Window, Recompute and SinkWindow over one long text: how well, and at what cost.

Knows models through ``score`` and a lane that writes; draws nothing itself.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from jaxtyping import Int
from torch import Tensor

from sinkviz.experiments import measuring
from sinkviz.experiments.judging import ALIKE, PAPER, WORSE, Verdict, of_each_model, spoken
from sinkviz.experiments.running import Cell, Claim, Experiment, Row, Setting
from sinkviz.experiments.scales import binned, mean_nll, position_edges, readable, usual_cache
from sinkviz.experiments.stretches import longest_input
from sinkviz.lanes import Lane
from sinkviz.models import LM
from sinkviz.plots.methods import grid_four_methods
from sinkviz.policies import Policy, Recompute, SinkWindow, Window, parse_policy
from sinkviz.sampling import Sampler
from sinkviz.scoring import score
from sinkviz.streaming import Writer

COST_STEPS = 40
READ_AT_ONCE = 512


def _four_cells(setting: Setting) -> list[Cell]:
    cells = []
    for name, lm in setting.models.items():
        cache = usual_cache(setting, lm)
        n_tokens = 1_500 if setting.quick else 20_000
        for policy in measuring.four_methods(cache):
            cells.append({"model": name, "kind": "nll", "policy": str(policy), "tokens": n_tokens})
        lengths, length = [], cache
        while length <= n_tokens:
            lengths.append(length)
            length *= 4
        cells += [
            {"model": name, "kind": "length", "policy": str(policy), "tokens": length}
            for policy in measuring.four_methods(cache)
            for length in lengths
            if readable(lm, policy, length + COST_STEPS) == length + COST_STEPS
        ]
        sizes = [cache * factor for factor in ((1, 4) if setting.quick else (1, 2, 4, 8))]
        cells += [
            {"model": name, "kind": "cache", "policy": str(policy), "tokens": 2 * size}
            for size in sizes
            for policy in (Window(size), Recompute(size), SinkWindow(4, size - 4))
            if size <= (longest_input(lm) or size)
        ]
    return cells


def _four_measure(setting: Setting, cell: Cell) -> list[Row]:
    lm, policy = setting.models[cell["model"]], parse_policy(cell["policy"])
    cache = usual_cache(setting, lm)
    row = {
        "model": lm.name,
        "kind": cell["kind"],
        "method": type(policy).__name__,
        "policy": cell["policy"],
        "cache": policy.cache_size,
        "train_length": lm.train_length,
    }
    if cell["kind"] != "nll":
        ids = setting.ids(lm, cell["tokens"])
        milliseconds, n_bytes = step_cost(lm, policy, ids)
        return [
            row | {"length": cell["tokens"], "ms_per_token": milliseconds, "cache_bytes": n_bytes}
        ]
    ids = setting.ids(lm, cell["tokens"])
    run = score(lm, ids[: readable(lm, policy, len(ids))], policy)
    return [row | part for part in binned(run.nll, position_edges(cache, cell["tokens"]))]


def step_cost(
    lm: LM, policy: Policy, ids: Int[Tensor, " token"], n_steps: int = COST_STEPS
) -> tuple[float, int]:
    """Return what a token of ``stream`` costs after a text: milliseconds, and bytes of the cache.

    The text is read in blocks; what is timed is the same ``step`` that ``stream`` takes.

    Args:
        lm: the language model.
        policy: what stays in the cache.
        ids: the text read before.
        n_steps: tokens written, of which the first warms up; the median counts.
    """
    lane = Lane(lm, policy)
    for part in ids[:-1].split(READ_AT_ONCE):
        lane.feed(part)
    writer = Writer(lane, Sampler(), ids[-1:])
    steps = [writer.step() for _ in range(n_steps)]
    return 1e3 * float(np.median([step.seconds for step in steps[1:]])), steps[-1].cache_bytes


def _kind(table: pd.DataFrame, kind: str) -> dict[str, pd.DataFrame]:
    """Return the rows of one kind by method: dense, window, recompute, sinks."""
    rows = table[table["kind"] == kind]
    return dict(tuple(rows.groupby("method", sort=False)))


def _differences(table: pd.DataFrame) -> dict[str, float]:
    """Return the nll of each method after the first eviction, less that of SinkWindow; nats."""
    by_method = _kind(table, "nll")
    start = int(by_method["SinkWindow"]["cache"].iloc[0]) + 1
    # The same stretches for both: full attention may end early.
    found = {}
    for method, rows in by_method.items():
        last = int(rows["stop"].max())
        found[method] = mean_nll(rows, start) - mean_nll(by_method["SinkWindow"], start, last)
    return found


@of_each_model
def _judge_dense(table: pd.DataFrame) -> Verdict:
    by_method = _kind(table, "nll")
    dense, length = by_method["Dense"], by_method["Dense"]["train_length"].iloc[0]
    if pd.isna(length) or int(dense["stop"].max()) < 2 * length:
        return None, "the text, or the model's positions, end before twice the training length"
    start = int(dense[dense["first"] >= length]["first"].min())
    beyond = mean_nll(dense, start) - mean_nll(by_method["SinkWindow"], start)
    said = (
        f"beyond the training length of {int(length)} tokens, Dense is {beyond:.2f} nats per "
        "token worse than SinkWindow"
    )
    return beyond > WORSE, said


@of_each_model
def _judge_window(table: pd.DataFrame) -> Verdict:
    by_method = _kind(table, "nll")
    start = int(by_method["Window"]["cache"].iloc[0]) + 1
    ppl = {m: float(np.exp(mean_nll(by_method[m], start))) for m in ("Window", "SinkWindow")}
    said = (
        f"after the first eviction perplexity {spoken(ppl['Window'])} without the first tokens, "
        f"{spoken(ppl['SinkWindow'])} with them ({by_method['SinkWindow']['policy'].iloc[0]})"
    )
    return _differences(table)["Window"] > WORSE, said


@of_each_model
def _judge_recompute(table: pd.DataFrame) -> Verdict:
    off = _differences(table)["Recompute"]
    return abs(off) < ALIKE, f"recomputation is {off:+.3f} nats per token from SinkWindow"


@of_each_model
def _judge_speed(table: pd.DataFrame) -> Verdict:
    by_method = _kind(table, "cache")
    slow = by_method["Recompute"].set_index("cache")["ms_per_token"]
    fast = by_method["SinkWindow"].set_index("cache")["ms_per_token"]
    ratios = (slow / fast).sort_index()
    said = ", ".join(f"{ratio:.1f} times at {size:.0f} tokens" for size, ratio in ratios.items())
    grows = ratios.iloc[-1] > ratios.iloc[0] or len(ratios) == 1
    return bool(ratios.iloc[-1] > 1 and grows), f"recomputing a token takes {said} of cache"


@of_each_model
def _judge_constant(table: pd.DataFrame) -> Verdict:
    costs = {m: rows.sort_values("length") for m, rows in _kind(table, "length").items()}
    sinks, dense = costs["SinkWindow"], costs["Dense"]
    if len(sinks) < 2:
        return None, "one length only"
    time = sinks["ms_per_token"].iloc[-1] / sinks["ms_per_token"].iloc[0]
    same = sinks["cache_bytes"].nunique() == 1
    slower = dense["ms_per_token"].iloc[-1] / dense["ms_per_token"].iloc[0]
    larger = dense["cache_bytes"].iloc[-1] / dense["cache_bytes"].iloc[0]
    first, last = sinks["length"].iloc[0], sinks["length"].iloc[-1]
    said = (
        f"from {first:,.0f} to {last:,.0f} tokens, SinkWindow: {time:.2f} times the milliseconds, "
        f"{'the same' if same else 'up to'} {sinks['cache_bytes'].max():,.0f} bytes; Dense: "
        f"{slower:.1f} times the milliseconds and {larger:.0f} times the bytes at "
        f"{dense['length'].iloc[-1]:,.0f} tokens"
    )
    return bool(same and time < 1.5), said


FOUR_METHODS = Experiment(
    name="four_methods",
    question="How well do four ways to keep a cache predict a long text, and what do they cost?",
    cells=_four_cells,
    measure=_four_measure,
    draw=grid_four_methods,
    claims=(
        Claim(
            "Full attention fails once the text is longer than what the model was trained on.",
            "perplexity explodes beyond the pre-training length for all models with relative "
            "positions; figure only",
            f"{PAPER}, figure 3",
            _judge_dense,
        ),
        Claim(
            "Window attention collapses as soon as the first tokens are evicted.",
            "Llama-2-13B: perplexity 5158.07 with 0+1024, 5.40 with 4+1020",
            f"{PAPER}, figure 3 and table 1",
            _judge_window,
        ),
        Claim(
            "Keeping the first tokens predicts as well as recomputing the window.",
            "Llama-2-13B: perplexity 5.40 with sinks, 5.43 recomputed",
            f"{PAPER}, figures 1 and 3",
            _judge_recompute,
        ),
        Claim(
            "Recomputing costs more per token, and the more so the larger the cache.",
            "up to 22.2 times faster per token than recomputation (Llama-2-7B and 13B, one A6000)",
            f"{PAPER}, figure 10",
            _judge_speed,
        ),
        Claim(
            "With sinks a token costs the same time and memory at any length of text.",
            "constant for StreamingLLM; full attention grows with the text",
            f"{PAPER}, figures 1 and 5",
            _judge_constant,
        ),
    ),
)
