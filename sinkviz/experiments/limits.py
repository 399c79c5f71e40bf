"""What sinks do not give: memory. Lines beyond the cache, and the beginning of a book.

Knows models through ``score``, ``stream`` and queries alone.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from jaxtyping import Int
from torch import Tensor

from sinkviz.experiments import measuring
from sinkviz.experiments.asking import (
    GUESSING,
    answers,
    ask_back,
    beyond_chance,
    gone,
    tokens_per_line,
)
from sinkviz.experiments.judging import PAPER, Verdict, of_each_model
from sinkviz.experiments.running import Cell, Claim, Experiment, Row, Setting
from sinkviz.experiments.scales import readable, usual_cache
from sinkviz.experiments.stretches import longest_input
from sinkviz.models import LM
from sinkviz.plots.recall import grid_limits
from sinkviz.policies import Dense, Policy, Recompute, SinkWindow, parse_policy
from sinkviz.scoring import score
from sinkviz.streaming import stream

# Rounding of float32: below this a difference says nothing.
NOTHING = 1e-4
CACHES_BACK = (1 / 2, 3 / 2, 2, 4, 8)
CACHES_BACK_QUICK = (1 / 2, 2)
N_SAME = 4  # first tokens that stay when the beginning changes: the sinks
PER_CACHE = 8
N_WRITTEN = 32


def _cells(setting: Setting) -> list[Cell]:
    cells = []
    for name, lm in setting.models.items():
        cache, layers = usual_cache(setting, lm), _layers(lm)
        cell = {"model": name, "kind": "beginning"}
        for policy in measuring.four_methods(cache):
            # What is computed afresh forgets after one cache; other caches hand things on.
            caches = 3 if policy.recompute else layers + 2
            if isinstance(policy, Dense) and longest_input(lm):
                continue  # its positions end before there is anything to see
            cells.append(cell | {"policy": str(policy), "caches": caches})
        if lm.tokenizer is None:  # nobody can ask it anything
            continue
        line = tokens_per_line(lm, "names")
        cell = {"model": name, "kind": "recall", "queries": 16 if setting.quick else 100}
        cells += [
            cell | {"policy": str(policy), "lines": max(1, round(back * cache / line))}
            for back in (CACHES_BACK_QUICK if setting.quick else CACHES_BACK)
            for policy in (SinkWindow(4, cache - 4), Recompute(cache))
        ]
    return cells


def _layers(lm: LM) -> int:
    return lm.model.config.get_text_config().num_hidden_layers


def _measure(setting: Setting, cell: Cell) -> list[Row]:
    lm, policy = setting.models[cell["model"]], parse_policy(cell["policy"])
    cache = usual_cache(setting, lm)
    row = {
        "model": lm.name,
        "kind": cell["kind"],
        "method": type(policy).__name__,
        "policy": cell["policy"],
        "cache": policy.cache_size,
        "layers": _layers(lm),
    }
    if cell["kind"] == "recall":
        asked = ask_back(lm, "names", cell["lines"], cell["queries"], setting.seed)
        return [row | {"lines": cell["lines"]} | answers(lm, asked, policy)]
    return [row | one for one in _beginning_rows(setting, lm, policy, cache, cell["caches"])]


def _beginning_rows(
    setting: Setting, lm: LM, policy: Policy, cache: int, n_caches: int
) -> list[Row]:
    n_changed, n_after = 2 * cache, n_caches * cache
    ids = setting.ids(lm, 2 * n_changed + n_after)
    one, other = two_beginnings(ids, n_changed)
    one, other = (part[: readable(lm, policy, len(part))] for part in (one, other))
    nll = [score(lm, part, policy).nll for part in (one, other)]
    off = np.abs(nll[0][n_changed:] - nll[1][n_changed:])
    width = max(1, cache // PER_CACHE)
    rows = [
        {
            "since": start + 1,
            "caches": (start + 1) / cache,
            "most": float(off[start : start + width].max()),
            "mean": float(off[start : start + width].mean()),
        }
        for start in range(0, len(off), width)
    ]
    written = [
        [step.token_id for step in stream(lm, policy, part, max_new_tokens=N_WRITTEN)]
        for part in (one, other)
    ]
    same = sum(a == b for a, b in zip(*written, strict=True))
    return [*rows, {"since": len(off), "caches": len(off) / cache, "same": same / N_WRITTEN}]


def two_beginnings(
    ids: Int[Tensor, " token"], n_changed: int
) -> tuple[Int[Tensor, " read"], Int[Tensor, " read"]]:
    """Return two texts that differ in their beginning only, after the same first four tokens.

    Args:
        ids: a text; its last ``n_changed`` tokens are the other beginning.
        n_changed: tokens until the texts are the same again, more than four.

    Example:
        >>> two_beginnings(torch.arange(12), 6)
        (tensor([0, 1, 2, 3, 4, 5]), tensor([ 0,  1,  2,  3, 10, 11]))
    """
    text = ids[:-n_changed]
    other = torch.cat((text[:N_SAME], ids[len(text) + N_SAME :], text[n_changed:]))
    return text, other


def _beginning(table: pd.DataFrame, method: str) -> pd.DataFrame:
    return table[(table["kind"] == "beginning") & (table["method"] == method)]


def _most(rows: pd.DataFrame, first: float, stop: float = np.inf) -> float:
    """Return the largest change of a token between so many caches after the texts are the same."""
    return float(rows[(rows["caches"] > first) & (rows["caches"] <= stop)]["most"].max())


@of_each_model
def _judge_recall(table: pd.DataFrame) -> Verdict:
    rows = table[(table["kind"] == "recall") & (table["method"] == "SinkWindow")]
    if not len(rows):
        return None, "no tokenizer, so the model cannot be asked"
    agrees, said = gone(rows)
    if beyond_chance(rows, seen=True) <= GUESSING:
        return None, f"{said}: the model cannot do the task at all"
    return agrees, said


@of_each_model
def _judge_beginning(table: pd.DataFrame) -> Verdict:
    rows = _beginning(table, "SinkWindow")
    layers = int(rows["layers"].iloc[0])
    early, late = _most(rows, 1, layers), _most(rows, layers)
    same = float(rows["same"].dropna().iloc[0])
    said = (
        f"the beginning of a text changed, its first four tokens not: one cache after it, nll "
        f"still differs by up to {early:.3g} nats (layers hand it on), after {layers} caches, one "
        f"per layer, by {late:.3g}; {same:.0%} of {N_WRITTEN} tokens written then are the same"
    )
    return late <= NOTHING and same == 1, said


@of_each_model
def _judge_recompute(table: pd.DataFrame) -> Verdict:
    rows = _beginning(table, "Recompute")
    late = _most(rows, 1 + 1 / PER_CACHE)
    return late <= NOTHING, f"recomputed windows: nll differs by {late:.3g} nats after one cache"


@of_each_model
def _judge_dense(table: pd.DataFrame) -> Verdict:
    rows = _beginning(table, "Dense")
    if not len(rows):
        return None, "the model's positions end too early"
    late = _most(rows, rows["caches"].max() - 1)
    said = f"with full attention nll still differs by up to {late:.3g} nats at the end"
    return late > NOTHING, said


FAQ = "the README of streaming-llm, answers to common questions"

LIMITS = Experiment(
    name="limits",
    question="What do sinks not give?",
    cells=_cells,
    measure=_measure,
    draw=grid_limits,
    claims=(
        Claim(
            "Sinks do not extend the memory: beyond the cache a model can only guess.",
            "accuracy falls to zero when the distance passes the cache size",
            f"{PAPER}, appendix on query-answer distances",
            _judge_recall,
        ),
        Claim(
            "Who has a book summarised gets a summary of its end: the beginning leaves no trace.",
            "stated, not measured",
            FAQ,
            _judge_beginning,
        ),
        Claim(
            "Recomputed windows forget at once what is no longer in them.",
            "by construction",
            f"{PAPER}, figure 1",
            _judge_recompute,
        ),
        Claim(
            "Full attention remembers the beginning.",
            "by construction",
            f"{PAPER}, figure 1",
            _judge_dense,
        ),
    ),
)
