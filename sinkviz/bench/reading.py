"""How fast a whole text is scored, and shown under a slider.

Knows nothing about caches.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence

from sinkviz.bench.measure import (
    Row,
    alternate,
    milliseconds,
    peak_bytes,
    ratio,
    steps,
    story_ids,
)
from sinkviz.models import load
from sinkviz.policies import Policy, SinkWindow, Window, parse_policy
from sinkviz.scoring import score

POLICIES = ("0+64", "4+60", "4+252")
CHILD = """
import json, sys
from sinkviz.bench.reading import peaks_of_scoring
print(json.dumps(peaks_of_scoring(*json.loads(sys.argv[1]))))
"""


def bench_score(
    model: str = "classroom-rope",
    *,
    tokens: int = 100_000,
    stepwise: int = 2_000,
    policies: Sequence[str] = POLICIES,
    memory: bool = True,
    repeat: int = 3,
) -> Iterator[Row]:
    """Parallel against stepwise scoring, tokens per second; and memory for ten times the text.

    ``growth_mb`` is what the peak memory of a process of its own grows by, from scoring ``tokens``
    to scoring ten times as many; ``returned_mb`` of it are the numbers that are returned. On CUDA,
    ``attention`` is the way in which blocks attended: the faster one, where the text is long.
    """
    lm = load(model)
    ids, said = story_ids(lm, tokens), {}

    def parallel(policy: Policy) -> int:
        run = score(lm, ids, policy)
        said.update(run.provenance)
        return len(run.nll)

    for name in policies:
        policy = parse_policy(name)
        times = alternate(
            repeat,
            parallel=lambda policy=policy: parallel(policy),
            stepwise=lambda policy=policy: len(
                score(lm, ids[:stepwise], policy, engine="stepwise").nll
            ),
        )
        row = {
            "policy": str(policy),
            "parallel_per_s": 1e3 / milliseconds(times["parallel"]),
            "stepwise_per_s": 1e3 / milliseconds(times["stepwise"]),
            "ratio": ratio(times["stepwise"], times["parallel"]),
        }
        if lm.device.type == "cuda":
            row["attention"] = said["attention"]
        if memory:
            row |= _memory(model, name, tokens)
        yield row


def _memory(model: str, policy: str, tokens: int) -> Row:
    # Large tensors are given back at once, so that the peak is of what is needed and not of what
    # the allocator has kept.
    done = subprocess.run(
        [sys.executable, "-c", CHILD, json.dumps([model, policy, [tokens, 10 * tokens]])],
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    peaks = json.loads(done.stdout.splitlines()[-1])
    less, more = ((None if peak is None else peak / 1e6) for peak in peaks)
    # An id of eight bytes and a nll of four for each token.
    return {
        "peak_mb": more,
        "growth_mb": None if less is None else more - less,
        "returned_mb": 9 * tokens * 12 / 1e6,
    }


def peaks_of_scoring(model: str, policy: str, lengths: Sequence[int]) -> list[int | None]:
    """Return the most memory that this process has taken after scoring each of some texts."""
    lm = load(model)
    ids = story_ids(lm, 1000)
    peaks = []
    for length in lengths:
        score(lm, ids.repeat(-(-length // 1000))[:length], parse_policy(policy))
        peaks.append(peak_bytes())
    return peaks


def bench_slider(model: str = "classroom-rope") -> Iterator[Row]:
    """Seconds from a move of the sink slider to its answer, 1,000 tokens (classroom model)."""
    lm = load(model)
    ids = story_ids(lm, 1000)
    for n_sink in (0, 1, 4):
        policy = SinkWindow(n_sink, 64 - n_sink) if n_sink else Window(64)
        call = steps(lambda policy=policy: score(lm, ids, policy, mass=True))
        seconds = milliseconds(alternate(9, score=call)["score"]) / 1e3
        yield {"policy": str(policy), "tokens": len(ids), "seconds": seconds}
