"""Read or write a text without end, under a cache policy.

``stream`` generates, ``compare`` generates or reads in lockstep for several policies, one token at
a time. Knows nothing about figures or widgets.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import (
    DynamicCache,
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from sinkviz.caches import SinkCache
from sinkviz.forward import forward
from sinkviz.models import LM, Text, untouched
from sinkviz.policies import Dense, Policy


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


class Lane:
    """A model reading one text under one policy: feed ids, get the next token's logits.

    ``stream``, ``compare`` and the slow reference of ``score`` are loops around ``feed``.
    """

    def __init__(self, lm: LM, policy: Policy) -> None:
        check_policy(lm, policy)
        self.lm, self.policy = lm, policy
        self.seen = 0
        self.cache: Any = None
        # What Recompute runs afresh; the other policies leave it empty.
        self.ids: deque[int] = deque(maxlen=policy.n_recent)
        self.begin: list[int] = []
        if isinstance(policy, Dense):
            self.cache = DynamicCache()
        elif not policy.recompute:
            self.cache = SinkCache(lm.model, policy.n_sink, policy.n_recent)

    def feed(self, ids: Int[Tensor, " token"]) -> Float[Tensor, " vocabulary"]:
        """Take in tokens; return the logits of the one that follows."""
        start, model = self.seen, self.lm.model
        self.seen += len(ids)
        if self.policy.recompute:
            self._remember(ids, start)
            window = torch.tensor([[*self.begin, *self.ids]], device=self.lm.device)
            with untouched(model):
                return model(window, use_cache=False, logits_to_keep=1).logits[0, -1]
        return forward(self.lm, self.cache, ids, last_only=True)[-1]

    def _remember(self, ids: Int[Tensor, " token"], start: int) -> None:
        n_begin = max(0, self.policy.n_begin - start)
        self.begin += ids[:n_begin].tolist()
        self.ids.extend(ids[n_begin:].tolist())

    @property
    def cache_size(self) -> int:
        """Tokens that the last prediction saw."""
        return min(self.seen, self.policy.cache_size or self.seen)

    @property
    def cache_bytes(self) -> int:
        """Bytes of keys and values held between steps."""
        if self.cache is None:
            return 0
        if isinstance(self.cache, SinkCache):
            return self.cache.n_bytes
        return sum(
            x.numel() * x.element_size()
            for layer in self.cache.layers
            for x in (layer.keys, layer.values)
        )

    def evicted(self, n_new: int) -> tuple[int, ...]:
        """Return the text positions that the last ``n_new`` tokens pushed out."""
        if self.policy.cache_size is None:
            return ()
        first = max(self.policy.n_sink, self.seen - n_new - self.policy.n_recent)
        return tuple(range(first, max(first, self.seen - self.policy.n_recent)))


def check_policy(lm: LM, policy: Policy) -> None:
    """Raise ValueError where a policy asks for more positions than a position table has."""
    longest = lm.train_length
    if lm.family.positions != "absolute" or longest is None:
        return
    if policy.cache_size is not None and policy.cache_size > longest:
        raise ValueError(
            f"{lm.name} has positions for {longest} tokens, the policy needs {policy.cache_size}; "
            f"use a cache of at most {longest}"
        )


def sampler(
    *,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    repetition_penalty: float = 1.0,
    seed: int = 0,
) -> Callable[[Tensor, Sequence[int]], int]:
    """Return a function from (logits, recent ids) to the next id, with its own random generator.

    Args:
        temperature: 0 takes the most likely token (greedy).
        top_k: sample among so many most likely tokens.
        top_p: sample among the most likely tokens that hold this share of probability.
        repetition_penalty: above 1 makes recent tokens less likely.
        seed: of the generator.

    Raises:
        ValueError: the temperature is negative, or transformers refuses another number.
    """
    if temperature < 0:
        raise ValueError(f"temperature must be at least 0, got {temperature}; 0 is greedy")
    processors = LogitsProcessorList()
    if repetition_penalty != 1.0:
        processors.append(RepetitionPenaltyLogitsProcessor(repetition_penalty))
    if temperature > 0:
        processors.append(TemperatureLogitsWarper(float(temperature)))
        if top_k is not None:
            processors.append(TopKLogitsWarper(top_k))
        if top_p is not None:
            processors.append(TopPLogitsWarper(top_p))
    generator = torch.Generator().manual_seed(seed)

    def choose(logits: Tensor, recent: Sequence[int]) -> int:
        ids = torch.tensor([list(recent)], device=logits.device)
        scores = processors(ids, logits[None].float())[0]
        if temperature == 0:
            return int(scores.argmax())
        return int(torch.multinomial(scores.softmax(-1).cpu(), 1, generator=generator))

    return choose


def _step(lane: Lane, logits: Tensor, token_id: int, seconds: float, n_new: int) -> Step:
    log_probability = logits.float().log_softmax(-1)
    return Step(
        position=lane.seen,
        token_id=token_id,
        token=lane.lm.tokens([token_id])[0],
        nll=-float(log_probability[token_id]),
        entropy=float(torch.special.entr(log_probability.exp()).sum()),
        seconds=seconds,
        cache_size=lane.cache_size,
        cache_bytes=lane.cache_bytes,
        evicted=lane.evicted(n_new),
    )


def stream(
    lm: LM,
    policy: Policy,
    prompt: Text,
    *,
    max_new_tokens: int | None = 200,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    repetition_penalty: float = 1.0,
    seed: int = 0,
    stop: str | None = None,
) -> Iterator[Step]:
    """Generate a text token by token, at a constant cost per token where the policy allows it.

    Args:
        lm: the language model.
        policy: what stays in the cache.
        prompt: text or ids to begin with; it may be longer than the cache.
        max_new_tokens: how many to generate; None goes on until the caller stops.
        temperature: 0 is greedy, see ``sampler``.
        top_k: see ``sampler``.
        top_p: see ``sampler``.
        repetition_penalty: see ``sampler``; applies to the tokens that the cache can hold, at most
            the last 1,024.
        seed: of the sampling.
        stop: end after the text that was generated ends with this.

    Yields:
        A ``Step`` per generated token. Leave the loop at any time; the model stays as it was.

    Raises:
        ValueError: the prompt is empty, or an option is out of range.
    """
    lanes = compare(
        lm,
        [policy],
        prompt=prompt,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
    )
    tail: deque[int] = deque(maxlen=64)
    for (step,) in lanes:
        yield step
        tail.append(step.token_id)
        if stop and lm.decode(tail).endswith(stop):
            return


def compare(
    lm: LM,
    policies: Sequence[Policy],
    *,
    prompt: Text | None = None,
    text: Text | None = None,
    max_new_tokens: int | None = 200,
    **sampling: Any,
) -> Iterator[tuple[Step, ...]]:
    """Run several policies in lockstep, on the same prompt or over the same text.

    Args:
        lm: the language model.
        policies: one lane each.
        prompt: generate from this; each lane goes its own way, with the same seed.
        text: read this instead; each lane tells how well it predicted every token.
        max_new_tokens: how many to generate; None goes on until the caller stops.
        sampling: options of ``sampler``, for generation.

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
    if max_new_tokens is not None and max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be at least 1 or None, got {max_new_tokens}")
    lanes = [Lane(lm, policy) for policy in policies]
    if text is not None:
        ids = lm.encode(text)
        if len(ids) < 2:
            raise ValueError(
                "a text to read needs at least two tokens; the first predicts the next"
            )
        return _read(lanes, ids)
    choosers = [sampler(**sampling) for _ in policies]
    return _write(lanes, choosers, lm.encode(prompt), max_new_tokens)


def _read(lanes: list[Lane], ids: Int[Tensor, " token"]) -> Iterator[tuple[Step, ...]]:
    targets = ids.tolist()
    for position in range(1, len(targets)):
        steps = []
        for lane in lanes:
            started = time.perf_counter()
            logits = lane.feed(ids[position - 1 : position])
            seconds = time.perf_counter() - started
            steps.append(_step(lane, logits, targets[position], seconds, 1))
        yield tuple(steps)


def _write(
    lanes: list[Lane],
    choosers: list[Callable[[Tensor, Sequence[int]], int]],
    prompt: Int[Tensor, " token"],
    max_new_tokens: int | None,
) -> Iterator[tuple[Step, ...]]:
    pending = [prompt for _ in lanes]
    recent = [
        deque(prompt.tolist(), maxlen=min(lane.policy.cache_size or 1024, 1024)) for lane in lanes
    ]
    written = 0
    while max_new_tokens is None or written < max_new_tokens:
        steps = []
        for index, lane in enumerate(lanes):
            started = time.perf_counter()
            logits = lane.feed(pending[index])
            token_id = choosers[index](logits, recent[index])
            seconds = time.perf_counter() - started
            steps.append(_step(lane, logits, token_id, seconds, len(pending[index])))
            pending[index] = torch.tensor([token_id], device=lane.lm.device)
            recent[index].append(token_id)
        written += 1
        yield tuple(steps)
