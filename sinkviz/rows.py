"""Where the newest token of a stream looks: one row of attention per layer and head.

Knows nothing about models or caches: they fill it in.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sinkviz.metrics import ROLES, mass


@dataclass
class LastRows:
    """The attention of a stream's newest query, layer by layer.

    Attributes:
        query: text position of the query.
        n_sink: first tokens that count as sinks.
        n_recent: tokens that count as recent, the query included.
        attention: per layer, in [0, 1], (head, key) each.
        key_position: per layer, the text position of each key, (key) or (head, key).
    """

    query: int = 0
    n_sink: int = 4
    n_recent: int = 64
    attention: list[Float[Tensor, "head key"]] = field(default_factory=list)
    key_position: list[Int[Tensor, " *head_key"]] = field(default_factory=list)

    def by_role(self) -> dict[str, float]:
        """Return how the attention divides among the roles of the keys, mean over all heads.

        Returns:
            Role -> share in [0, 1], in the order of ``sinkviz.metrics.ROLES``; they sum to one.

        Example:
            >>> attention, position = torch.tensor([[0.6, 0.3, 0.1]]), torch.tensor([0, 2, 3])
            >>> rows = LastRows(3, 1, 2, [attention], [position])
            >>> {role: round(share, 2) for role, share in rows.by_role().items()}
            {'sink': 0.6, 'recent': 0.3, 'middle': 0.0, 'self': 0.1, 'null': 0.0}
        """
        total, n_heads = torch.zeros(len(ROLES)), 0
        for row, heads, position in self._alike():
            query = torch.tensor([self.query])
            shares = mass(row[None], self.n_sink, self.n_recent, query=query, key=position)
            total += heads * torch.cat([shares[role] for role in ROLES]).cpu()
            n_heads += heads
        return dict(zip(ROLES, (total / n_heads).tolist(), strict=True))

    def _alike(self) -> list[tuple[Tensor, int, Tensor]]:
        """Return mean rows, of how many heads, and where their keys stand.

        Heads that hold the same keys, in whichever layer, make one row.
        """
        summed: dict[int, tuple[Tensor, int, Tensor]] = {}
        found = []
        for attention, position in zip(self.attention, self.key_position, strict=True):
            attention = attention.float()
            if position.ndim > 1:
                found += [(row, 1, own) for row, own in zip(attention, position, strict=True)]
                continue
            row, heads, _ = summed.get(id(position), (0, 0, position))
            summed[id(position)] = (row + attention.sum(0), heads + len(attention), position)
        return found + [(row / heads, heads, own) for row, heads, own in summed.values()]
