"""A language model in the hand: ``LM``, and what may be done to it for a while.

An ``LM`` holds a transformers causal language model and its tokenizer, and makes the cache of a
policy. Knows nothing about where models come from.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Int
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel, TextStreamer
from transformers.cache_utils import Cache

from sinkviz.binding import one_at_a_time
from sinkviz.caches import SinkCache
from sinkviz.families import Family, attention_modules, computes_on
from sinkviz.policies import Dense, Policy, SinkWindow, Window
from sinkviz.ranked import RankedCache
from sinkviz.trial import family_of

Text = str | Sequence[int] | Tensor
FEW_PARAMETERS = 30_000_000


def whole_ids(ids: Tensor | Sequence[int]) -> Int[Tensor, " token"]:
    """Return token ids as one row of a tensor; there may be none.

    Raises:
        ValueError: an id is no whole number.

    Example:
        >>> whole_ids([5, 6])
        tensor([5, 6])
    """
    given = torch.as_tensor(ids).flatten()
    # An empty list has no numbers, and would be one of floats.
    odd = given.dtype == torch.bool or given.is_floating_point() or given.is_complex()
    if odd and len(given):
        raise ValueError(f"token ids must be whole numbers, got {given.dtype}")
    return given.long()


@dataclass(frozen=True, repr=False)
class LM:
    """A language model and its tokenizer.

    Attributes:
        model: a transformers causal language model.
        tokenizer: its tokenizer, or None: then give token ids wherever a text is taken.
        name: shown in figures and records.
        policy: what stays in the cache of ``generate``.
    """

    model: PreTrainedModel
    tokenizer: Any = None
    name: str = ""
    policy: Policy | None = None

    def __post_init__(self) -> None:
        if hasattr(self.model, "_orig_mod"):
            raise TypeError("LM needs the model itself, not what torch.compile(model) returns")
        if not isinstance(self.model, PreTrainedModel) or not self.model.can_generate():
            raise TypeError(
                f"LM needs a transformers causal language model, got {type(self.model).__name__}; "
                "encoders and sequence-to-sequence models predict no next token"
            )
        if self.model.config.is_encoder_decoder:
            raise TypeError(f"{type(self.model).__name__} is an encoder-decoder, not a causal LM")
        if not self.name:
            name = self.model.config.name_or_path or type(self.model).__name__
            object.__setattr__(self, "name", Path(name).name)

    @cached_property
    def family(self) -> Family:
        """How the model tells positions apart, and where its attention lives."""
        return family_of(self.model)

    @cached_property
    def attention_modules(self) -> list[nn.Module]:
        """The model's self-attention modules, first layer first."""
        return attention_modules(self.model, self.family)

    @cached_property
    def is_small(self) -> bool:
        """Whether one CPU thread is as fast as several, token by token."""
        return self.device.type == "cpu" and self.model.num_parameters() < FEW_PARAMETERS

    @property
    def changes(self) -> str:
        """What is being done to the model, as asked for (``sinkviz.interventions``); may be ''."""
        return "; ".join(_CHANGES.get(self.model, ()))

    @property
    def attention(self) -> str:
        """The attention implementation; of another thread's measurement it shows nothing."""
        with one_at_a_time(self.model):
            return str(self.model.config._attn_implementation)

    @property
    def device(self) -> torch.device:
        """Where token ids must lie."""
        return computes_on(self.model)

    @property
    def train_length(self) -> int | None:
        """Tokens the model was trained on at a time, or None where its config does not say."""
        config = self.model.config.get_text_config()
        names = ("max_position_embeddings", "max_seq_len", "seq_length")
        return next((size for name in names if (size := getattr(config, name, None))), None)

    def encode(self, text: Text) -> Int[Tensor, " token"]:
        """Return the ids of a text, with the first token that the tokenizer puts in front.

        Args:
            text: a string, or ids, which are taken as they are.

        Raises:
            ValueError: the text is empty, or a string was given to a model without a tokenizer,
                or an id is no whole number or not in the vocabulary.
        """
        if isinstance(text, str):
            if self.tokenizer is None:
                raise ValueError("this LM has no tokenizer; give token ids instead of a string")
            if not text.strip():
                raise ValueError("the text is empty; give at least one word")
            # Long texts are the point here, so no warning about the training length.
            text = self.tokenizer(text, verbose=False)["input_ids"]
            text = [*getattr(self.model.config, "sink_ids", ()), *text]
        ids = whole_ids(text)
        if not len(ids):
            raise ValueError("the text is empty; give at least one token")
        size = self.model.config.vocab_size
        if int(ids.min()) < 0 or int(ids.max()) >= size:
            raise ValueError(
                f"token ids must be in 0..{size - 1}, got {int(ids.min())}..{int(ids.max())}"
            )
        return ids.to(self.device)

    def tokens(self, ids: Int[Tensor, " token"] | Sequence[int]) -> tuple[str, ...]:
        """Return each token as a short string; without a tokenizer, its id."""
        ids = [int(i) for i in ids]
        if self.tokenizer is None:
            return tuple(str(i) for i in ids)
        sinks = getattr(self.model.config, "sink_ids", ())
        return tuple("<|sink|>" if i in sinks else self.tokenizer.decode([i]) for i in ids)

    def decode(self, ids: Int[Tensor, " token"] | Sequence[int]) -> str:
        """Return the text of ids, special tokens left out."""
        if self.tokenizer is None:
            return " ".join(self.tokens(ids))
        return self.tokenizer.decode([int(i) for i in ids], skip_special_tokens=True)

    def cache(self, policy: Policy | None = None) -> Cache:
        """Return a new transformers cache for the model: ``past_key_values`` of its ``generate``.

        Args:
            policy: what stays in it; by default the LM's own.

        Raises:
            ValueError: there is no policy, it has no cache, or it is not possible with this model.
        """
        policy = policy or self.policy
        if policy is None:
            raise ValueError("no policy: give one here, or to load(name, policy='4+1020')")
        if policy.recompute:
            raise ValueError(f"{policy} runs each window afresh and has no cache")
        if isinstance(policy, Dense):
            return DynamicCache()
        if isinstance(policy, SinkWindow | Window):
            return SinkCache(self.model, policy.n_sink, policy.n_recent, positions=policy.positions)
        return RankedCache(self.model, policy)

    def generate(
        self, text: Text, *, max_new_tokens: int = 200, live: bool = False, **options: Any
    ) -> str:
        """Let the model's own ``generate`` write on, under the LM's policy.

        For a stream without end take ``sinkviz.stream``: transformers keeps the whole text, and
        does a little more work for every further token.

        Args:
            text: what to go on from.
            max_new_tokens: how many tokens to write.
            live: print the text as it is written.
            options: of transformers' ``generate``.

        Returns:
            What was written, without ``text``.

        Raises:
            ValueError: the LM has no policy, or the model drops its cache at such a length.
        """
        cache, ids = self.cache(), self.encode(text)
        end = getattr(self.model.config, "original_max_position_embeddings", None)
        if self.family.drops_cache and end is not None and len(ids) + max_new_tokens > end:
            raise ValueError(
                f"in transformers' generate, {self.family.name} throws its cache away after {end} "
                "tokens and reads the whole text again; use sinkviz.stream"
            )
        if live and self.tokenizer is not None:
            options.setdefault("streamer", TextStreamer(self.tokenizer, skip_prompt=True))
        with untouched(self.model, "eager" if getattr(cache, "observes", False) else None):
            found = self.model.generate(
                ids[None],
                past_key_values=cache,
                max_new_tokens=max_new_tokens,
                **{"use_cache": True} | options,
            )
        return self.decode(found[0, len(ids) :])

    def __repr__(self) -> str:
        size = sum(p.numel() for p in self.model.parameters())
        config = self.model.config
        return (
            f"LM({self.name}: {size / 1e6:.1f} M parameters, {config.num_hidden_layers} layers x "
            f"{config.num_attention_heads} heads, {self.model.dtype}, {self.device})"
        )


@contextlib.contextmanager
def untouched(model: nn.Module, attention: str | None = None) -> Iterator[None]:
    """Run a model for measurement: no gradients, no dropout; then leave it as it was.

    Other threads that ask for the same model wait meanwhile.

    Args:
        model: the model.
        attention: attention implementation to use meanwhile.
    """
    with one_at_a_time(model):
        # To walk all modules twice would be a tenth of a small model's step.
        training = [one for one in model.modules() if one.training] if model.training else []
        before = model.config._attn_implementation
        try:
            for module in training:
                module.training = False
            if attention is not None:
                model.config._attn_implementation = attention
            with torch.no_grad():
                yield
        finally:
            for module in training:
                module.training = True
            if attention is not None:
                model.config._attn_implementation = before


# What is being done to a model, in the order it was begun; by the model, since several LMs may
# hold one.
_CHANGES: WeakKeyDictionary[nn.Module, list[str]] = WeakKeyDictionary()


@contextlib.contextmanager
def changed(
    model: nn.Module, says: str, change: contextlib.AbstractContextManager
) -> Iterator[None]:
    """Let a change of a model last for a block, and records made meanwhile say so.

    Args:
        model: the model.
        says: the change, as it was asked for.
        change: makes it, and takes it back.
    """
    with change:
        _CHANGES.setdefault(model, []).append(says)
        try:
            yield
        finally:
            _CHANGES[model].remove(says)


@contextlib.contextmanager
def few_threads(lm: LM) -> Iterator[None]:
    """Compute a small model on one CPU thread, and give the others back afterwards.

    Threads wait for each other after every small product. On two cores with other work (a browser
    that draws, say) that made a token of a model of 1 M parameters thirty times slower.
    """
    before = torch.get_num_threads()
    small = lm.is_small and before > 1
    try:
        if small:
            torch.set_num_threads(1)
        yield
    finally:
        if small:
            torch.set_num_threads(before)
