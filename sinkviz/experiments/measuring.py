"""What the experiments share: lists of policies, runs of one text, and its sinks.

Knows models through ``score`` and ``capture`` alone; draws nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sinkviz.capturing import capture
from sinkviz.experiments.stretches import n_front
from sinkviz.metrics import SINK_EPSILON, sink_rate
from sinkviz.models import LM, Text
from sinkviz.policies import Dense, Policy, Recompute, SinkWindow, Window
from sinkviz.records import StreamRun
from sinkviz.scoring import score

SINKS = (0, 1, 2, 4, 8)


def four_methods(cache_size: int) -> list[Policy]:
    """Return the paper's four methods with one size of cache, tokens.

    Source: Xiao et al. 2023, arXiv 2309.17453, figure 1.

    Example:
        >>> [str(policy) for policy in four_methods(64)]
        ['Dense', '0+64', 'recompute 64', '4+60']
    """
    sinks = SinkWindow(4, cache_size - 4) if cache_size > 4 else SinkWindow(1, cache_size - 1)
    return [Dense(), Window(cache_size), Recompute(cache_size), sinks]


def x_plus_y(cache_size: int, sinks: Sequence[int] = SINKS) -> list[Policy]:
    """Return caches of one size that keep more and more first tokens.

    Source: Xiao et al. 2023, arXiv 2309.17453, table 2.

    Example:
        >>> [str(policy) for policy in x_plus_y(64)]
        ['0+64', '1+63', '2+62', '4+60', '8+56']
    """
    fitting = [n for n in sinks if n < cache_size]
    return [SinkWindow(n, cache_size - n) if n else Window(cache_size) for n in fitting]


def measure(
    lm: LM, text: Text, policies: Sequence[Policy], *, progress: bool = False
) -> list[StreamRun]:
    """Score one text under several policies.

    Args:
        lm: the language model.
        text: text or ids.
        policies: one run each.
        progress: show a progress bar per run.

    Returns:
        The runs, in the order of the policies.

    Raises:
        ValueError: the text is too short, or a policy does not fit the model.
    """
    ids = lm.encode(text)
    return [score(lm, ids, policy, progress=progress) for policy in policies]


def forgetting_from(runs: Sequence[StreamRun]) -> int | None:
    """Return the first text position at which every limited cache has evicted, or None."""
    sizes = [run.policy.cache_size for run in runs]
    limits = [n for n, run in zip(sizes, runs, strict=True) if n and n + 1 < len(run.nll)]
    return max(limits) + 1 if limits else None


def tidy(runs: Sequence[StreamRun], start: int | None = None) -> list[dict[str, Any]]:
    """Return one row per run of the same text.

    Args:
        runs: of the same text.
        start: text position from which ``nll_forgetting`` counts; by default where every limited
            cache has begun to forget.

    Returns:
        Rows with ``policy``, ``cache`` (tokens), ``perplexity`` and ``nll`` of the whole text,
        ``nll_forgetting`` (nats per token from ``start`` on), ``drift`` (mean nll of the last
        quarter minus that of the second) and ``seconds``.
    """
    start = forgetting_from(runs) if start is None else start
    rows = []
    for run in runs:
        quarter = len(run.nll) // 4
        drift = None
        if quarter > 1:
            drift = run.mean_nll(3 * quarter) - run.mean_nll(quarter, 2 * quarter)
        rows.append(
            {
                "policy": str(run.policy),
                "cache": run.policy.cache_size,
                "perplexity": run.perplexity,
                "nll": run.mean_nll(),
                "nll_forgetting": None if start is None else run.mean_nll(start),
                "drift": drift,
                "seconds": run.seconds,
            }
        )
    return rows


@dataclass(frozen=True)
class Sinks:
    """How much a model leans on the first token, over many stretches of a text.

    Attributes:
        received: mean attention that the first token receives, (layer, head) in [0, 1].
        high: what the top 5 % of all queries give it at least, (layer, head) in [0, 1].
        n_texts: stretches.
        length: tokens of each.
    """

    received: Float[Tensor, "layer head"]
    high: Float[Tensor, "layer head"]
    n_texts: int
    length: int

    @property
    def rate(self) -> float:
        """Share of heads that give the first token more than 0.3."""
        return sink_rate(self.received[..., None])

    def __str__(self) -> str:
        n_heads = self.received.numel()
        return (
            f"sink rate {self.rate:.0%}: {round(self.rate * n_heads)} of {n_heads} heads give the "
            f"first token more than {SINK_EPSILON} of their attention, the strongest "
            f"{float(self.received.max()):.2f}; in {int((self.high > 0.8).sum())} heads the top "
            f"5 % of queries give it more than 0.8 ({self.n_texts} texts of {self.length} tokens)"
        )


def first_token_sinks(lm: LM, text: Text, *, n_texts: int = 32, longest: int = 512) -> Sinks:
    """Measure the attention on the first token of many texts.

    The texts are stretches of one long text, each as long as the model's training texts and with
    what stands in front of those: learned sinks, ``<|begin|>``, or nothing.

    Args:
        lm: the language model.
        text: text or ids.
        n_texts: stretches, evenly spaced; they overlap in a short text.
        longest: tokens per stretch at most, which bounds the work for large models.

    Returns:
        Means over the stretches and their queries.

    Raises:
        ValueError: the text has fewer than two tokens.

    Source: Gu et al. 2024, arXiv 2410.10781, section 3.1.
    """
    ids = lm.encode(text)
    if len(ids) < 2:
        raise ValueError("sinks need a text of at least two tokens; one sees only itself")
    length = min(lm.train_length or longest, longest, len(ids))
    front = n_front(lm, ids)
    size = length - front
    starts = torch.linspace(front, len(ids) - size, n_texts).long().unique().tolist()
    received, shares = [], []
    for start in starts:
        stretch = torch.cat((ids[:front], ids[start : start + size]))
        trace = capture(lm, stretch, keep="statistics", n_sink=1)
        received.append(torch.from_numpy(trace.received[..., 0]))
        shares.append(torch.from_numpy(trace.mass_of("sink")[..., 1:]))
    return Sinks(
        received=torch.stack(received).mean(0),
        high=torch.cat(shares, dim=-1).quantile(0.95, dim=-1),
        n_texts=len(starts),
        length=length,
    )
