"""How far a stream has come, or a batch of them with padding in front.

Knows nothing about models, caches or where a token lies.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor


@dataclass
class Clock:
    """How far a stream, or a batch of them, has come; one for all rings of a cache.

    Attributes:
        seen: tokens fed so far, padding included.
        base: text position that the model calls 0; moved on from time to time.
        padding: padding tokens in front of each stream of the batch, or None without any.
        turning: passes run ``banded_attention``, which turns queries to the sinks itself.
        compiled: passes run in a compiled graph, which must not see a number change.
    """

    seen: int = 0
    base: int = 0
    padding: Int[Tensor, " row"] | None = None
    turning: bool = False
    compiled: bool = False

    def padding_after(self, mask: Int[Tensor, "row token"], n_new: int) -> Tensor | None:
        """Return what ``padding`` will be after a pass.

        Args:
            mask: of the new tokens, or of the whole text; 0 where there is none.
            n_new: tokens of the pass.

        Raises:
            ValueError: a token is hidden after a visible one.
        """
        hidden = (mask[:, -n_new:] == 0).cpu()
        before = self.padding
        if not hidden.any():
            return before
        before = torch.zeros(len(hidden), dtype=torch.long) if before is None else before
        leading = hidden.cumprod(-1).sum(-1)
        inside = (hidden.sum(-1) != leading) | ((leading > 0) & (before != self.seen))
        if inside.any():
            raise ValueError(
                "padding must be on the left: stream "
                f"{int(inside.nonzero()[0])} has a hidden token after a visible one; set "
                "tokenizer.padding_side = 'left'"
            )
        return before + leading
