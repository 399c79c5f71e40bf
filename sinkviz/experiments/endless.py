"""A million tokens: who reads on, who breaks, and where.

Knows models through ``score`` alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Int
from torch import Tensor

from sinkviz.experiments import measuring
from sinkviz.experiments.judging import PAPER, WORSE, Verdict, of_each_model, spoken
from sinkviz.experiments.running import Cell, Claim, Experiment, Row, Setting
from sinkviz.experiments.scales import binned, mean_nll, position_edges, readable, usual_cache
from sinkviz.models import LM
from sinkviz.plots.methods import plot_nll_bins
from sinkviz.policies import Policy, SinkWindow, parse_policy
from sinkviz.records import StreamRun
from sinkviz.scoring import score
from sinkviz.text import read_text

# A method is left once a stretch is this much worse than its first tokens were: e times the
# perplexity.
EXPLODED = 1.0
GROWTH = 4
# What costs more with every token, or very much with each, is asked for fewer.
MOST = {"Dense": 65_536, "Recompute": 20_000}
MOST_QUICK = {"Dense": 4_096, "Recompute": 1_000}
FRESH_CHECKS = 5


def _cells(setting: Setting) -> list[Cell]:
    n_tokens = 20_000 if setting.quick else 1_000_000
    most = MOST_QUICK if setting.quick else MOST
    return [
        {
            "model": name,
            "policy": str(policy),
            "tokens": min(n_tokens, most.get(type(policy).__name__, n_tokens)),
            "asked": n_tokens,
        }
        for name, lm in setting.models.items()
        for policy in measuring.four_methods(usual_cache(setting, lm))
    ]


def endless_ids(setting: Setting, lm: LM, n_tokens: int) -> tuple[Int[Tensor, " token"], int]:
    """Return token ids of any number, and how many of them come before the text begins again.

    A text that is too short is read over and over: a cache that forgets cannot tell.
    """
    ids = lm.encode(read_text(setting.text, n_characters=8 * n_tokens, seed=setting.seed))
    before = min(len(ids), n_tokens)
    if before < n_tokens:
        again = ids[1:] if len(ids) > 1 else ids  # the begin token begins one text only
        ids = torch.cat((ids, again.repeat(-(-(n_tokens - len(ids)) // len(again)))))
    return ids[:n_tokens], before


@dataclass(frozen=True)
class Reading:
    """How far a method came.

    Attributes:
        run: the longest one; None where not even the first was possible.
        ended: why there is no more, a few words.
    """

    run: StreamRun | None
    ended: str


def read_until_it_breaks(
    lm: LM, ids: Int[Tensor, " token"], policy: Policy, shortest: int
) -> Reading:
    """Score longer and longer beginnings of a text, each four times the last, until nll explodes.

    Args:
        lm: the language model.
        ids: the text.
        policy: what stays in the cache.
        shortest: the first beginning, tokens; its nll is what later stretches are held against.

    Returns:
        The longest run, and why it is the longest: the text is at its end, the positions or the
        memory are, or the tokens added last are ``EXPLODED`` nats worse than the first beginning.
    """
    limit = readable(lm, policy, len(ids))
    run, length, before = None, min(shortest, limit), 1
    while True:
        try:
            run = score(lm, ids[:length], policy)
        except (MemoryError, torch.OutOfMemoryError):
            return Reading(run, "memory")
        first = run.mean_nll(1, shortest)
        if length > shortest and run.mean_nll(before) > first + EXPLODED:
            return Reading(run, "nll exploded")
        if length == limit:
            return Reading(run, "text" if limit == len(ids) else "positions")
        before, length = length, min(GROWTH * length, limit)


def _measure(setting: Setting, cell: Cell) -> list[Row]:
    lm, policy = setting.models[cell["model"]], parse_policy(cell["policy"])
    cache = usual_cache(setting, lm)
    ids, before = endless_ids(setting, lm, cell["tokens"])
    reading = read_until_it_breaks(lm, ids, policy, 2 * cache)
    ended = reading.ended
    if ended == "text" and cell["tokens"] < cell["asked"]:
        ended = "cost"  # it would have gone on, but at a price
    row = {
        "model": lm.name,
        "method": type(policy).__name__,
        "policy": cell["policy"],
        "cache": policy.cache_size,
        "train_length": lm.train_length,
        "asked": cell["asked"],
        "repeats_after": before if before < cell["tokens"] else None,
        "ended": ended,
    }
    if reading.run is None:
        return [row | {"first": 0, "stop": 0, "nll": None}]
    nll = reading.run.nll
    rows = [row | part for part in binned(nll, position_edges(cache, cell["tokens"]))]
    if isinstance(policy, SinkWindow):
        rows += [row | one for one in _against_fresh(lm, ids, policy, nll)]
    return rows


def _against_fresh(
    lm: LM, ids: Int[Tensor, " token"], policy: SinkWindow, nll: np.ndarray
) -> list[Row]:
    """Compare late stretches with streams that begin shortly before, from the same sinks.

    What a stream has read long ago must have left no trace but the sinks. Through the layers it
    leaves one for some caches of tokens; after those the two streams may differ by rounding alone.
    """
    n_layers = lm.model.config.get_text_config().num_hidden_layers
    lead = (n_layers + 1) * policy.cache_size
    rows = []
    for part in range(1, FRESH_CHECKS + 1):
        stop = part * len(ids) // FRESH_CHECKS
        start = stop - lead - 4 * policy.cache_size
        if start < policy.n_sink:
            continue
        fresh = score(lm, torch.cat((ids[: policy.n_sink], ids[start:stop])), policy).nll
        late = slice(stop - 4 * policy.cache_size, stop)
        off = np.abs(nll[late] - fresh[-4 * policy.cache_size :]).max()
        rows.append(
            {
                "first": late.start,
                "stop": stop,
                "fresh_nll": float(fresh[-4 * policy.cache_size :].mean(dtype=np.float64)),
                "off": float(off),
            }
        )
    return rows


def _by_method(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    read = table[table["nll"].notna()]
    return dict(tuple(read.groupby("method", sort=False)))


def broken_from(rows: pd.DataFrame, reference: pd.DataFrame) -> int | None:
    """Return the text position from which on each stretch is worse than the reference's, or None.

    Args:
        rows: stretches of one method.
        reference: the same stretches of SinkWindow.
    """
    both = rows.merge(reference, on="first", suffixes=("", "_sinks"))
    both = both[both["stop"] == both["stop_sinks"]].sort_values("first")
    worse = (both["nll"] - both["nll_sinks"] > WORSE).to_numpy()
    if not len(worse) or not worse[-1]:
        return None
    last_good = np.flatnonzero(~worse)
    return int(both["first"].iloc[last_good[-1] + 1 if len(last_good) else 0])


@of_each_model
def _judge_flat(table: pd.DataFrame) -> Verdict:
    rows = _by_method(table)["SinkWindow"]
    last, cache = int(rows["stop"].max()), int(rows["cache"].iloc[0])
    early = mean_nll(rows, cache + 1, last // 8)
    late = mean_nll(rows, last // 8)
    said = (
        f"{last:,} tokens; perplexity {spoken(np.exp(early))} over the first eighth, "
        f"{spoken(np.exp(late))} over the rest"
    )
    again = rows["repeats_after"].dropna()
    if len(again):
        said += f" (the text begins again after {int(again.iloc[0]):,})"
    checks = table["off"].dropna() if "off" in table else ()
    if len(checks):
        said += (
            f"; a stream that began shortly before differs by at most {checks.max():.0e} nats in "
            f"any token, at {len(checks)} places"
        )
        return bool(checks.max() < 1e-2), said
    return bool(late - early < EXPLODED), said


@of_each_model
def _judge_others(table: pd.DataFrame) -> Verdict:
    by_method = _by_method(table)
    reference, said, breaks = by_method["SinkWindow"], [], []
    for method in ("Dense", "Window"):
        if method not in by_method:
            said.append(f"{method} could not begin (memory)")
            breaks.append(True)
            continue
        rows = by_method[method]
        place, last = broken_from(rows, reference), int(rows["stop"].max())
        ended = {
            "nll exploded": "nll exploded",
            "positions": "its positions ended",
            "memory": "memory ended",
            "cost": "its cost grows with the text, so we stopped",
            "text": "the text ended",
        }[rows["ended"].iloc[0]]
        worst = f"is broken from token {place:,} on" if place else "does not break"
        said.append(f"{method} {worst} ({ended} at {last:,})")
        stopped = rows["ended"].iloc[0] in ("nll exploded", "positions", "memory")
        breaks.append(place is not None or stopped)
    return all(breaks), "; ".join(said)


def _draw(table: pd.DataFrame):
    return plot_nll_bins(table[table["nll"].notna()]).figure


ENDLESS = Experiment(
    name="endless",
    question="Who can read a million tokens, and where do the others break?",
    cells=_cells,
    measure=_measure,
    draw=_draw,
    claims=(
        Claim(
            "With sinks the perplexity stays where it is over millions of tokens.",
            "Llama-2, MPT, Falcon and Pythia: stable over 4 million tokens, 100 books",
            f"{PAPER}, figure 5",
            _judge_flat,
        ),
        Claim(
            "Full attention and window attention do not get that far.",
            "full attention fails past the pre-training length, window attention past the cache",
            f"{PAPER}, figure 3",
            _judge_others,
        ),
    ),
)
