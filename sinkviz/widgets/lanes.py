"""What one lane of SideBySide remembers: its whole history as numbers, its end as text.

Knows nothing about models: whoever makes a lane says how its tokens are spelled.
"""

from __future__ import annotations

import math
from array import array
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from sinkviz.policies import Dense, Policy, Recompute, SinkWindow, Window, first_eviction
from sinkviz.records import StreamRun, provenance
from sinkviz.streaming import Step
from sinkviz.style import policy_name
from sinkviz.widgets.common import as_bytes, finite
from sinkviz.widgets.token_labels import prose

TAIL = 400  # tokens per lane that the front end holds
POINTS = 200  # of a sparkline
SMOOTH = 32  # tokens that a point of a sparkline is the mean of
STAYS = -1  # instead of the step at which a token was evicted

# What has a colour of its own, as in style.policy_styles.
KINDS = {Dense: "dense", Window: "window", SinkWindow: "sinkwindow", Recompute: "recompute"}

Spell = Callable[[int], str]


def described(policy: Policy, start: int) -> dict[str, Any]:
    """Return what the front end knows of a lane that does not change.

    Args:
        policy: of the lane.
        start: tokens that are known before the first step.
    """
    return {
        "name": policy_name(policy),
        "kind": KINDS.get(type(policy), "other"),
        "n_sink": policy.n_sink,
        "evicts": first_eviction(policy, 1 + (policy.cache_size or 0)),
        "by_attention": policy.by_attention,
        "start": start,
    }


class LaneRecord:
    """What one lane has done so far: whole history as arrays, the last tokens as text.

    Args:
        policy: of the lane.
        prompt: ids that are known before the first step.
        spell: returns the text of a token; it is called once for each, in order.
        about: provenance of the lane.
    """

    def __init__(
        self, policy: Policy, prompt: Sequence[int], spell: Spell, about: dict[str, Any]
    ) -> None:
        self.policy, self.start, self._spell, self.about = policy, len(prompt), spell, about
        # Per token of the text: id, nll, and the step at which it left the cache.
        self.ids, self.nll, self.gone = array("q"), array("f"), array("i")
        # Per step.
        self.seconds, self.sizes, self.bytes = array("f"), array("q"), array("q")
        self.sink = array("f")
        self.head: list[str] = []
        self.tail: deque[tuple[str, float]] = deque(maxlen=TAIL)
        self.points: list[float] = []
        self.bin = 1
        self.total = self.pace = 0.0
        self.just: tuple[int, ...] = ()  # text positions that the newest step pushed out
        for token_id in prompt:
            self._append(token_id, math.nan)

    def add(self, step: Step) -> None:
        """Take in the next step of the stream."""
        self._append(step.token_id, step.nll)
        self.total += step.nll
        self.seconds.append(step.seconds)
        self.sizes.append(step.cache_size)
        self.bytes.append(step.cache_bytes)
        self.sink.append(math.nan if step.mass is None else step.mass["sink"])
        # The first step reads the whole prompt; later ones tell the pace.
        mixed = 0.9 * self.pace + 0.1 * step.seconds
        self.pace = mixed if self.predicted > 2 else step.seconds
        self.just = step.evicted
        for position in step.evicted:
            self.gone[position] = self.predicted
        if self.predicted % self.bin == 0:
            self.points.append(self._recent(self.nll))
        if len(self.points) > POINTS:
            self.points, self.bin = self.points[1::2], 2 * self.bin

    def _append(self, token_id: int, nll: float) -> None:
        text = prose(self._spell(token_id))
        if len(self.ids) < self.policy.n_sink:
            self.head.append(text)
        self.ids.append(token_id)
        self.nll.append(nll)
        self.gone.append(STAYS)
        self.tail.append((text, nll))

    def _recent(self, series: array) -> float:
        """Return the mean of a series' last values; NaN of a handful, which would set the scale."""
        last = series[-min(SMOOTH, self.predicted) :] if self.predicted else []
        return sum(last) / len(last) if len(last) >= SMOOTH // 4 else math.nan

    @property
    def predicted(self) -> int:
        """Tokens predicted so far."""
        return len(self.seconds)

    @property
    def perplexity(self) -> float | None:
        """Of all tokens predicted so far; None before the first, and where it is infinite."""
        return finite(np.exp(self.total / self.predicted)) if self.predicted else None

    @property
    def evicted(self) -> set[int]:
        """Text positions that have been evicted, as far back as the tail goes."""
        first = len(self.gone) - len(self.tail)
        return {first + i for i, step in enumerate(self.gone[first:]) if step != STAYS}

    def now(self) -> dict[str, float | None]:
        """Return the numbers that a lane shows beside its text, as they stand.

        Returns:
            ``perplexity``; ``mean`` and ``sink``, the nll (nats) and the sinks' share of attention
            over the last 32 tokens; ``milliseconds`` per token; ``cache_size``, tokens;
            ``cache_bytes``; and of what the newest step evicted, ``left``, how many tokens, and
            ``newest``, the last of their text positions. None for what is not known.
        """
        return {
            "perplexity": self.perplexity,
            "mean": finite(self._recent(self.nll)),
            "sink": finite(self._recent(self.sink)),
            "milliseconds": 1000 * self.pace,
            "cache_size": self.sizes[-1] if self.sizes else 0,
            "cache_bytes": self.bytes[-1] if self.bytes else 0,
            "left": len(self.just),
            "newest": max(self.just, default=None),
        }

    def state(self, n_new: int = TAIL, most_bytes: int = 1_000_000) -> dict[str, Any]:
        """Return what the front end needs to know, with the text of the last ``n_new`` tokens.

        Args:
            n_new: tokens.
            most_bytes: of their text and nll as JSON; where it is more, fewer tokens come along.
        """
        shown = list(self.tail)[-n_new:] if n_new else []
        # Quotes and a comma; four bytes of nll are six as base64.
        sizes = np.cumsum([len(text.encode("utf-8", "replace")) + 9 for text, _ in shown[::-1]])
        shown = shown[len(shown) - int((sizes <= most_bytes).sum()) :]
        end = len(self.ids)
        gone = self.gone[end - len(self.tail) :]
        return {
            "end": end,
            "head": self.head,
            "tokens": [text for text, _ in shown],
            "nll": as_bytes([nll for _, nll in shown]),
            # A byte per token of the tail, since a policy by attention leaves gaps anywhere:
            # 1 is evicted, 2 is evicted by the newest step.
            "evicted": bytes((step != STAYS) + (0 < step == self.predicted) for step in gone),
            "points": as_bytes(self.points),
            "bin": self.bin,
            "span": self.predicted,
            **self.now(),
        }

    def steps(self, texts: Sequence[str]) -> Iterator[Step]:
        """Yield all steps once more, as they were.

        Args:
            texts: of the tokens, those of the prompt included.
        """
        leaves: dict[int, list[int]] = {}
        for position, step in enumerate(self.gone):
            if step != STAYS:
                leaves.setdefault(step, []).append(position)
        for index in range(self.predicted):
            position = self.start + index
            sink = self.sink[index]
            yield Step(
                position=position,
                token_id=self.ids[position],
                token=texts[position],
                nll=self.nll[position],
                entropy=math.nan,  # which no lane shows
                seconds=self.seconds[index],
                cache_size=self.sizes[index],
                cache_bytes=self.bytes[index],
                evicted=tuple(leaves.get(index + 1, ())),
                mass=None if math.isnan(sink) else {"sink": sink},
            )

    def run(self) -> StreamRun:
        """Return the whole history as a record; tokens of the prompt have no nll."""
        ids = np.array(self.ids, dtype=np.int64)
        more = {name: value for name, value in self.about.items() if name != "model"}
        model = str(self.about.get("model", "?"))
        return StreamRun(
            policy=self.policy,
            token_ids=ids,
            nll=np.array(self.nll, dtype=np.float32),
            seconds=float(sum(self.seconds)),
            cache_bytes=self.bytes[-1] if self.bytes else 0,
            provenance=provenance(model, ids, policy=str(self.policy), **more),
        )
