"""Read or write a text without end, under a cache policy.

``stream`` generates, ``compare`` generates or reads in lockstep for several policies, one token at
a time. Knows nothing about figures or widgets.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from sinkviz.binding import uninterrupted
from sinkviz.files import check_place
from sinkviz.lanes import KIND, Lane
from sinkviz.models import LM, Text
from sinkviz.policies import Policy
from sinkviz.records import load_tensors, save_tensors
from sinkviz.rows import LastRows
from sinkviz.sampling import Sampler


@dataclass(frozen=True)
class Step:
    """One token of a stream.

    Attributes:
        position: in the text.
        token_id: the token.
        token: the token as text.
        nll: how surprising the model found it, nats.
        entropy: of the model's prediction for it, nats.
        seconds: time spent on feeding the token before it.
        cache_size: tokens that the prediction could see.
        cache_bytes: bytes of the cache.
        evicted: text positions that left the cache for this prediction.
        mass: where the prediction's attention went, role of the key -> share in [0, 1], mean over
            all heads; None where it was not captured.
        rows: the prediction's attention itself, one row per layer and head, where it was asked for.
    """

    position: int
    token_id: int
    token: str
    nll: float
    entropy: float
    seconds: float
    cache_size: int
    cache_bytes: int
    evicted: tuple[int, ...] = ()
    mass: dict[str, float] | None = None
    rows: LastRows | None = None


def _step(
    lane: Lane,
    logits: Tensor,
    token_id: int,
    seconds: float,
    n_new: int,
    rows: LastRows | None = None,
    capture: bool | str = False,
) -> Step:
    log_probability = logits.float().log_softmax(-1)
    nll = -float(log_probability[token_id])
    if math.isnan(nll):
        raise FloatingPointError(
            f"{lane.lm.name} returned logits that are not numbers after {lane.seen} tokens under "
            f"{lane.policy}: weights or activations have overflowed; load it in float32 or bfloat16"
        )
    return Step(
        position=lane.seen,
        token_id=token_id,
        token=lane.lm.tokens([token_id])[0],
        nll=nll,
        entropy=float(torch.special.entr(log_probability.exp()).sum()),
        seconds=seconds,
        cache_size=lane.cache_size,
        cache_bytes=lane.cache_bytes,
        evicted=lane.evicted(n_new),
        mass=None if rows is None else rows.by_role(),
        rows=rows if capture == "rows" else None,
    )


def stream(
    lm: LM,
    policy: Policy,
    prompt: Text,
    *,
    max_new_tokens: int | None = 200,
    stop: str | None = None,
    state: str | Path | None = None,
    compiled: bool = False,
    capture: bool | str = False,
    **sampling: Any,
) -> Iterator[Step]:
    """Generate a text token by token, at a constant cost per token where the policy allows it.

    Args:
        lm: the language model.
        policy: what stays in the cache.
        prompt: text or ids to begin with; it may be longer than the cache, and empty where the
            stream goes on from a state.
        max_new_tokens: how many to generate; None goes on until the caller stops.
        stop: end after the text that was generated ends with this.
        state: a file to keep the stream in. Where it exists, the stream goes on from it, and the
            prompt and the seed are not used; it is written when the stream ends, breaks off or is
            left, whole or not at all.
        compiled: run the steps in a compiled graph, see ``sinkviz.lanes.Lane``.
        capture: let each step tell where its attention went (``Step.mass``); ``"rows"`` to have the
            attention of every head, too (``Step.rows``), which takes memory for as long as a step
            is kept.
        sampling: ``temperature`` (0, the default, is greedy), ``top_k``, ``top_p``,
            ``repetition_penalty`` (for the tokens that the cache can hold, at most the last
            1,024) and ``seed``; see ``sinkviz.sampling.Sampler``.

    Returns:
        An iterator of one ``Step`` per generated token. Leave it at any time; the model stays as
        it was.

    Raises:
        ValueError: the prompt is empty, an option is out of range, or the state belongs to another.
        FloatingPointError: the model returned logits that are not numbers.
    """
    _check_count(max_new_tokens)
    _check_capture(capture)
    if state is not None:
        check_place(state)
    lane = Lane(lm, policy, compiled=compiled)
    goes_on = state is not None and Path(state).is_file()
    ids = torch.zeros(0, dtype=torch.long) if goes_on else lm.encode(prompt)
    writer = Writer(lane, Sampler(**sampling), ids, capture=capture)
    if goes_on:
        writer.restore(state)
    return _stream(writer, max_new_tokens, stop, state)


def _stream(
    writer: Writer, max_new_tokens: int | None, stop: str | None, state: str | Path | None
) -> Iterator[Step]:
    tail: deque[int] = deque(maxlen=64)
    try:
        for (step,) in _write([writer], max_new_tokens):
            yield step
            tail.append(step.token_id)
            if stop and writer.lane.lm.decode(tail).endswith(stop):
                return
    finally:
        if state is not None:
            writer.save(state)


def _check_count(max_new_tokens: int | None) -> None:
    if max_new_tokens is not None and max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be at least 1 or None, got {max_new_tokens}")


def _check_capture(capture: bool | str) -> None:
    if capture not in (True, False, "rows"):
        raise ValueError(f"capture must be True, False or 'rows', got {capture!r}")


def compare(
    lm: LM,
    policies: Sequence[Policy],
    *,
    prompt: Text | None = None,
    text: Text | None = None,
    max_new_tokens: int | None = 200,
    capture: bool | str = False,
    **sampling: Any,
) -> Iterator[tuple[Step, ...]]:
    """Run several policies in lockstep, on the same prompt or over the same text.

    Args:
        lm: the language model.
        policies: one lane each.
        prompt: generate from this; each lane goes its own way, with the same seed.
        text: read this instead; each lane tells how well it predicted every token.
        max_new_tokens: how many to generate; None goes on until the caller stops.
        capture: let each step tell where its attention went; see ``stream``.
        sampling: options of ``sinkviz.sampling.Sampler``, for generation.

    Yields:
        One ``Step`` per policy, in their order.

    Raises:
        ValueError: not exactly one of ``prompt`` and ``text``, no policy, an empty text, or an
            option out of range.
    """
    if (prompt is None) == (text is None):
        raise ValueError("give either a prompt to generate from or a text to read, not both")
    if not policies:
        raise ValueError("give at least one policy")
    _check_count(max_new_tokens)
    _check_capture(capture)
    lanes = [Lane(lm, policy) for policy in policies]
    if text is not None:
        ids = lm.encode(text)
        if len(ids) < 2:
            raise ValueError(
                "a text to read needs at least two tokens; the first predicts the next"
            )
        return _read(lanes, ids, capture)
    ids = lm.encode(prompt)
    writers = [Writer(lane, Sampler(**sampling), ids, capture=capture) for lane in lanes]
    return _write(writers, max_new_tokens)


def _read(
    lanes: list[Lane], ids: Int[Tensor, " token"], capture: bool | str
) -> Iterator[tuple[Step, ...]]:
    targets = ids.tolist()
    for position in range(1, len(targets)):
        steps = []
        for lane in lanes:
            started = time.perf_counter()
            rows = LastRows() if capture else None
            logits = lane.feed(ids[position - 1 : position], rows=rows)
            seconds = time.perf_counter() - started
            steps.append(_step(lane, logits, targets[position], seconds, 1, rows, capture))
        yield tuple(steps)


class Writer:
    """A lane that feeds itself: the token it chooses is the one that it reads next.

    Args:
        lane: what reads.
        sampler: what chooses.
        prompt: ids to begin with.
        capture: let each step tell where its attention went; see ``stream``.
    """

    def __init__(
        self,
        lane: Lane,
        sampler: Sampler,
        prompt: Int[Tensor, " token"],
        *,
        capture: bool | str = False,
    ) -> None:
        self.lane, self.sampler, self.pending, self.capture = lane, sampler, prompt, capture
        most = min(lane.policy.cache_size or 1024, 1024)
        self.recent = deque(prompt.tolist(), maxlen=most)

    def step(self) -> Step:
        """Read what is pending, and choose the next token.

        Ctrl-C waits until a token that was read has been followed by a choice.
        """
        started, n_new = time.perf_counter(), len(self.pending)
        if n_new > 1:
            self.lane.feed(self.pending[:-1])
            self.pending = self.pending[-1:]
        rows = LastRows() if self.capture else None
        with uninterrupted():
            logits = self.lane.feed(self.pending, rows=rows)
            token_id = self.sampler(logits, self.recent) if _finite(logits) else 0
            seconds = time.perf_counter() - started
            step = _step(self.lane, logits, token_id, seconds, n_new, rows, self.capture)
            self.pending = torch.tensor([token_id], device=self.lane.lm.device)
            self.recent.append(token_id)
        return step

    def save(self, path: str | Path) -> Path:
        """Write the stream to one safetensors file, whole or not at all; return the path."""
        tensors, plain = self.lane.state()
        own = {"pending": self.pending, "generator": self.sampler.generator.get_state()}
        return save_tensors(path, KIND, tensors | own, plain | {"recent": list(self.recent)})

    def restore(self, path: str | Path) -> None:
        """Go on where ``save`` left off.

        Raises:
            ValueError: the file holds something else, or was saved with another model or policy.
        """
        tensors, plain = load_tensors(path, KIND)
        self.pending = tensors.pop("pending").to(self.lane.lm.device)
        self.sampler.generator.set_state(tensors.pop("generator"))
        self.recent.clear()
        self.recent.extend(plain["recent"])
        self.lane.restore(tensors, plain)


def _write(writers: list[Writer], max_new_tokens: int | None) -> Iterator[tuple[Step, ...]]:
    written = 0
    while max_new_tokens is None or written < max_new_tokens:
        yield tuple(writer.step() for writer in writers)
        written += 1


def _finite(logits: Tensor) -> bool:
    return not bool(torch.isnan(logits).any())
