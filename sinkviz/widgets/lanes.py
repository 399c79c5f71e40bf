"""What one lane of SideBySide remembers: its whole history as numbers, its end as text."""

from __future__ import annotations

import math
from array import array
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np

from sinkviz.models import LM
from sinkviz.policies import Policy
from sinkviz.records import StreamRun, provenance
from sinkviz.streaming import Step
from sinkviz.widgets.common import as_bytes, finite

TAIL = 400  # tokens per lane that the front end holds
POINTS = 200  # of a sparkline
SMOOTH = 32  # tokens that a point of a sparkline is the mean of


class LaneRecord:
    """What one lane has done so far: whole history as arrays, the last tokens as text."""

    def __init__(self, lm: LM, policy: Policy, prompt: Sequence[int]) -> None:
        self.lm, self.policy = lm, policy
        self.ids, self.nll = array("q"), array("f")
        self.head: list[str] = []
        self.tail: deque[tuple[str, float]] = deque(maxlen=TAIL)
        self.points: list[float] = []
        self.bin = 1
        self.last: deque[float] = deque(maxlen=SMOOTH)
        self.total = self.seconds = self.pace = 0.0
        self.predicted = self.cache_size = self.cache_bytes = 0
        self.evicted: set[int] = set()  # text positions, as far back as the tail goes
        self._pending: list[int] = []
        for token_id in prompt:
            self._append(token_id, math.nan)

    def add(self, step: Step) -> None:
        """Take in the next step of the stream."""
        self._append(step.token_id, step.nll)
        self.predicted += 1
        self.total += step.nll
        self.seconds += step.seconds
        # The first step reads the whole prompt; later ones tell the pace.
        mixed = 0.9 * self.pace + 0.1 * step.seconds
        self.pace = mixed if self.predicted > 2 else step.seconds
        self.cache_size, self.cache_bytes = step.cache_size, step.cache_bytes
        first = len(self.ids) - len(self.tail)
        self.evicted.update(position for position in step.evicted if position >= first)
        self.last.append(step.nll)
        if self.predicted % self.bin == 0:
            # The mean of a handful would set the scale.
            steady = len(self.last) >= SMOOTH // 4
            self.points.append(sum(self.last) / len(self.last) if steady else math.nan)
        if len(self.points) > POINTS:
            self.points, self.bin = self.points[1::2], 2 * self.bin

    def _append(self, token_id: int, nll: float) -> None:
        text = self._text(token_id)
        if len(self.ids) < self.policy.n_sink:
            self.head.append(text)
        self.ids.append(token_id)
        self.nll.append(nll)
        self.tail.append((text, nll))
        self.evicted.discard(len(self.ids) - TAIL - 1)

    def _text(self, token_id: int) -> str:
        """Return a token as text; a character split over tokens comes with the last of them."""
        if self.lm.tokenizer is None:
            return f"{token_id} "
        self._pending.append(token_id)
        text = self.lm.decode(self._pending)
        if text.endswith("\ufffd") and len(self._pending) < 4:
            return ""
        self._pending.clear()
        return text or self.lm.tokens([token_id])[0]

    @property
    def perplexity(self) -> float | None:
        """Of all tokens predicted so far; None before the first, and where it is infinite."""
        return finite(np.exp(self.total / self.predicted)) if self.predicted else None

    def state(self, n_new: int = TAIL) -> dict[str, Any]:
        """Return what the front end needs to know, with the text of the last ``n_new`` tokens."""
        shown = list(self.tail)[-n_new:] if n_new else []
        end = len(self.ids)
        return {
            "end": end,
            "head": self.head,
            "tokens": [text for text, _ in shown],
            "nll": as_bytes([nll for _, nll in shown]),
            # A byte per token of the tail, since a policy by attention leaves gaps anywhere.
            "evicted": bytes(n in self.evicted for n in range(end - len(self.tail), end)),
            "points": as_bytes(self.points),
            "bin": self.bin,
            "span": self.predicted,
            "milliseconds": 1000 * self.pace,
            "cache_size": self.cache_size,
            "cache_bytes": self.cache_bytes,
            "perplexity": self.perplexity,
        }

    def run(self) -> StreamRun:
        """Return the whole history as a record; tokens of the prompt have no nll."""
        ids = np.array(self.ids, dtype=np.int64)
        return StreamRun(
            policy=self.policy,
            token_ids=ids,
            nll=np.array(self.nll, dtype=np.float32),
            seconds=self.seconds,
            cache_bytes=self.cache_bytes,
            provenance=provenance(
                self.lm.name,
                ids,
                policy=str(self.policy),
                engine="stepwise",
                device=str(self.lm.device),
            ),  # fmt: skip
        )
