"""What every cache of ours is to a model: a transformers ``Cache`` that follows its passes.

It can be copied, saved, and given other rows of a batch, but never goes back. Knows nothing about
which tokens a cache keeps, or how; the hooks that tell it of passes are ``sinkviz.binding``.
"""

from __future__ import annotations

import weakref
from abc import ABC, abstractmethod
from typing import Any, TypeVar

import torch
from jaxtyping import Int
from torch import Tensor, nn
from transformers.cache_utils import Cache

from sinkviz.families import Family, layer_devices

Step = TypeVar("Step")


def under_way(step: Step | None) -> Step:
    """Return the pass under way.

    Raises:
        ValueError: there is none: another model asks.
    """
    if step is None:
        raise ValueError(
            "this cache belongs to another model, or its model was not called itself: call the "
            "model that the cache was made for, with past_key_values=cache"
        )
    return step


class BoundCache(Cache, ABC):
    """A transformers cache that follows the passes of one model.

    ``copy.deepcopy`` gives a cache that holds the same and follows the same model, so that several
    texts can go on from one beginning.

    Its layers have ``held``: their tensors by name, none before the first pass.

    Attributes:
        family: of the model.
        bound_to: the model, as long as it lives.
        observes: whether it goes by the attention that keys receive.
    """

    family: Family
    bound_to: weakref.ref[nn.Module]
    observes = False

    @abstractmethod
    def anew(self, model: nn.Module) -> BoundCache:
        """Return an empty cache of the same kind, for the model that this one is bound to."""

    @abstractmethod
    def state(self) -> tuple[dict[str, Tensor], dict[str, int]]:
        """Return all that it takes to go on: tensors by name, and the clock."""

    @abstractmethod
    def restore(self, tensors: dict[str, Tensor], clock: dict[str, int]) -> None:
        """Go on where ``state`` was taken, with a cache of the same sizes."""

    def __deepcopy__(self, memo: dict[int, Any]) -> BoundCache:
        """Return a cache of its own hooks, which a plain copy would lack."""
        tensors, clock = self.state()
        twin = self.anew(self.bound_to())
        twin.restore({name: x.detach() for name, x in tensors.items()}, clock)
        return twin

    def held(self) -> dict[str, Tensor]:
        """Return the tensors of all layers: ``layers.0.keys`` ..."""
        return {
            f"layers.{index}.{name}": x
            for index, layer in enumerate(self.layers)
            for name, x in layer.held().items()
        }

    def by_layer(self, tensors: dict[str, Tensor]) -> list[dict[str, Tensor]]:
        """Return what ``held`` gave as each layer's own, on its device."""
        found = []
        for index, device in enumerate(layer_devices(self.bound_to(), self.family)):
            front = f"layers.{index}."
            own = {name: x for name, x in tensors.items() if name.startswith(front)}
            found.append({name.removeprefix(front): x.to(device) for name, x in own.items()})
        return found

    @property
    def n_bytes(self) -> int:
        """Bytes of all that is held: keys, values, and what else the cache goes by."""
        return sum(x.numel() * x.element_size() for x in self.held().values())

    # A pass -------------------------------------------------------------------------------------

    @abstractmethod
    def begin(self, batch: int, n_new: int, attention_mask: Tensor | None) -> dict[str, Any]:
        """Prepare a pass; return the arguments of the model that the cache decides itself.

        Args:
            batch: streams.
            n_new: tokens of the pass, per stream.
            attention_mask: what the caller gave, or None.
        """

    @abstractmethod
    def commit(self) -> None:
        """The pass is over: its tokens count."""

    @abstractmethod
    def parts(self, n_new: int, turning: bool = False) -> list[int]:
        """Return the sizes of the passes in which to feed so many tokens.

        Args:
            n_new: how many.
            turning: in passes of ``banded_attention``.
        """

    @abstractmethod
    def layout_of(self, layer: int) -> tuple[Tensor, Tensor]:
        """Return distance and visibility of this pass, (row, query, key) each."""

    @abstractmethod
    def query_position(self, layer: int) -> Tensor:
        """Return the text positions of this pass's tokens, (row, query); negative for padding."""

    @abstractmethod
    def key_position(self, layer: int) -> Tensor:
        """Return those of the keys that a layer has returned in this pass, (row, head, key).

        Negative where there is no key; of one head where they are the same for all.
        """

    def observe(self, layer: int, attention: Tensor) -> None:  # noqa: B027  (most caches do not)
        """Take note of a layer's attention, (batch, head, query, key), if ``observes``."""

    # Batches ------------------------------------------------------------------------------------

    def reorder_cache(self, beam_idx: Int[Tensor, " row"]) -> None:
        """Let each row go on as a copy of another, as beam search asks."""
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row, as beam search and several answers per prompt ask."""
        first = next((layer for layer in self.layers if layer.is_initialized), None)
        if first is not None:
            self.batch_select_indices(torch.arange(len(first.keys)).repeat_interleave(repeats))

    def crop(self, tokens_to_remove: int) -> None:
        """Refuse: evicted tokens cannot come back.

        Raises:
            ValueError: always, except for nothing to remove.
        """
        if tokens_to_remove:
            raise ValueError(
                f"a {type(self).__name__} cannot go back: what it evicted is gone; assisted and "
                "contrastive decoding need a cache that keeps everything"
            )
