"""Whether the millionth token costs what the thousandth did, in time and in memory.

Knows nothing about other ways to stream.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor
from tqdm.auto import tqdm

from sinkviz.bench.measure import (
    Row,
    alternate,
    finish,
    milliseconds,
    ratio,
    resident_bytes,
    steps,
    story_ids,
)
from sinkviz.lanes import Lane
from sinkviz.models import load
from sinkviz.policies import SinkWindow
from sinkviz.scoring import score

POLICY = SinkWindow(4, 60)
YOUNG = 1000


def fast_forward(lane: Lane, n_tokens: int) -> None:
    """Let a lane with a full ring believe that it has read at least ``n_tokens`` more tokens.

    The clock and its base move on by whole turns of all rings, so that slots, angles and logits
    stay what they are, to the last bit: only the numbers are larger. Or smaller, where
    ``n_tokens`` is negative.
    """
    clock, turn = lane.cache.clock, math.lcm(*(ring.n_recent for ring in lane.cache.rings))
    jump = math.ceil(n_tokens / turn) * turn
    clock.seen += jump
    clock.base += jump
    lane.seen += jump


def bench_stream(
    model: str = "classroom-rope",
    *,
    read: Sequence[int] = (YOUNG, 100_000),
    jump: int = 4_000_000,
    repeat: int = 61,
) -> Iterator[Row]:
    """Time per token and bytes of a stream, early and late: read in blocks, and fast-forwarded."""
    lm = load(model)
    ids = story_ids(lm, max(read))
    lanes = []
    for mark in (*read, YOUNG):
        lane = Lane(lm, POLICY)
        for part in ids[:mark].split(512):
            lane.feed(part)
        lanes.append(lane)
    fast_forward(lanes[-1], jump - YOUNG)
    marks = [lane.seen for lane in lanes]
    calls = {str(i): steps(_reader(lane, ids), 20) for i, lane in enumerate(lanes)}
    times = alternate(repeat, **calls)
    for index, lane in enumerate(lanes):
        yield {
            "at_token": marks[index],
            "reached_by": "jump" if index == len(read) else "reading",
            "ms_per_token": milliseconds(times[str(index)]),
            "to_first": ratio(times[str(index)], times["0"]),
            "cache_bytes": lane.cache_bytes,
        }


def _reader(lane: Lane, ids: Int[Tensor, " token"]) -> Callable[[], None]:
    """Return a step that feeds a token, always one of the first hundred."""

    def step() -> None:
        start = lane.seen % 100
        lane.feed(ids[start : start + 1])

    return step


def bench_soak(
    model: str = "classroom-rope", *, tokens: int = 300_000, every: int = 50_000
) -> Iterator[Row]:
    """A real stream, one token at a time: time, memory and nll, stretch by stretch (minutes).

    ``to_young`` compares with a second stream that is set back to token 1,000 again and again,
    in the same minutes; ``off`` is the greatest difference from the parallel score, in nats.
    """
    lm = load(model)
    ids = story_ids(lm, tokens + 1)
    expected = torch.from_numpy(score(lm, ids, POLICY).nll)
    young, lane = Lane(lm, POLICY), Lane(lm, POLICY)
    young.feed(ids[:YOUNG])
    nll = torch.full((len(ids),), math.nan)
    seconds, ratios, first = [], [], 0
    for index in tqdm(range(tokens), unit="token", unit_scale=True, disable=None):
        took, nll[index + 1] = _timed(lane, ids, index)
        seconds.append(took)
        done = index + 1
        if done % YOUNG == 0 and done > YOUNG:
            again = [_timed(young, ids, YOUNG + i)[0] for i in range(POLICY.n_recent)]
            fast_forward(young, -POLICY.n_recent)
            ratios.append(float(np.median(seconds[-50:]) / np.median(again[-50:])))
        if done % every == 0 or done == tokens:
            part = slice(first + 1, done + 1)
            resident = resident_bytes()
            yield {
                "at_token": done,
                "ms_per_token": milliseconds(np.array(seconds)),
                "to_young": float(np.median(ratios)) if ratios else None,
                "cache_bytes": lane.cache_bytes,
                "resident_mb": None if resident is None else resident / 1e6,
                "nll": float(nll[part].mean()),
                "off": float((nll[part] - expected[part]).abs().max()),
            }
            seconds, ratios, first = [], [], done


def _timed(lane: Lane, ids: Int[Tensor, " token"], index: int) -> tuple[float, float]:
    """Feed a token; return the seconds it took, and the nll of the next."""
    finish()
    began = time.perf_counter()
    logits = lane.feed(ids[index : index + 1])
    finish()
    seconds = time.perf_counter() - began
    return seconds, -float(logits.float().log_softmax(-1)[ids[index + 1]])
