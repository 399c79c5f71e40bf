"""Choosing the next token from logits: greedy, or at random with a generator of one's own.

Knows nothing about models or caches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)


class Sampler:
    """A function from (logits, recent ids) to the next id, with its own random generator.

    Args:
        temperature: 0 takes the most likely token (greedy).
        top_k: sample among so many most likely tokens.
        top_p: sample among the most likely tokens that hold this share of probability.
        repetition_penalty: above 1 makes recent tokens less likely.
        seed: of the generator.

    Raises:
        ValueError: a number is not finite, the temperature is negative, or transformers refuses
            another.

    Example:
        >>> Sampler()(torch.tensor([0.0, 2.0, 1.0]), recent=[])
        1
    """

    def __init__(
        self,
        *,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        repetition_penalty: float = 1.0,
        seed: int = 0,
    ) -> None:
        options = {
            "temperature": temperature,
            "top_p": top_p,
            "repetition_penalty": repetition_penalty,
        }
        for name, value in options.items():
            if value is not None and not math.isfinite(value):
                raise ValueError(f"{name} must be a finite number, got {value}")
        if temperature < 0:
            raise ValueError(f"temperature must be at least 0, got {temperature}; 0 is greedy")
        self.temperature = temperature
        self.processors = LogitsProcessorList()
        if repetition_penalty != 1.0:
            self.processors.append(RepetitionPenaltyLogitsProcessor(repetition_penalty))
        if temperature > 0:
            self.processors.append(TemperatureLogitsWarper(float(temperature)))
            if top_k is not None:
                self.processors.append(TopKLogitsWarper(top_k))
            if top_p is not None:
                self.processors.append(TopPLogitsWarper(top_p))
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, logits: Tensor, recent: Sequence[int]) -> int:
        """Return the next id, given the logits (vocabulary,) and the ids that a penalty is for."""
        ids = torch.tensor([list(recent)], device=logits.device)
        scores = self.processors(ids, logits[None].float())[0]
        if self.temperature == 0:
            return int(scores.argmax())
        return int(torch.multinomial(scores.softmax(-1).cpu(), 1, generator=self.generator))
