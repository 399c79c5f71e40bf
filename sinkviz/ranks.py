"""How a layer holds keys in text order, each to be rotated to its rank among those kept.

``Pass`` is what one pass over the model makes of a policy, and a ``RankedLayer`` holds one layer's
keys and values. Knows nothing about models, masks of transformers or text.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin

from sinkviz.bound import under_way
from sinkviz.policies import Policy
from sinkviz.positions import rotate

HELD = ("keys", "values", "tokens", "received", "latest")


@dataclass(frozen=True)
class Pass:
    """One pass of new tokens.

    Attributes:
        n_new: tokens fed.
        n_key: keys that the last of them sees, itself included.
        kept: their text positions; empty for policies by attention.
        stay: ranks of the held keys that stay; None where all do, or where each head decides.
        turns: cosine and sine of every rank, by the identity of the frequencies.
    """

    n_new: int
    n_key: int
    kept: list[int]
    stay: Int[Tensor, "1 1 key"] | None
    turns: dict[int, tuple[Tensor, Tensor]]


class RankedLayer(CacheLayerMixin):
    """One layer's keys, as if at position 0, and values; both in text order.

    Attributes:
        tokens: text positions of the keys; one row and head may stand for all.
        received: attention that each key has received, summed over queries and query heads.
        latest: the same of the newest query; None where nobody asks.
    """

    is_sliding = False
    is_croppable = False

    def __init__(self, policy: Policy, frequencies: Tensor | None, interleaved: bool) -> None:
        super().__init__()
        self.policy, self.frequencies, self.interleaved = policy, frequencies, interleaved
        self.step: Pass | None = None
        self.reset()

    def held(self) -> dict[str, Tensor]:
        """Return what the layer holds, by name."""
        return {name: x for name in HELD if (x := getattr(self, name)) is not None}

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Begin with no token, in the shape of these."""
        self.keys, self.values = key_states[:, :, :0], value_states[:, :, :0]
        self.tokens = torch.zeros(1, 1, 0, dtype=torch.long, device=key_states.device)
        dtype = torch.promote_types(torch.float32, key_states.dtype)
        self.received = torch.zeros(1, 1, 0, dtype=dtype, device=key_states.device)
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Take in new keys and values; return all that the new queries attend over.

        Nothing is lost before ``commit``: a pass that breaks off leaves the layer as it was.

        Raises:
            ValueError: no pass is under way.
        """
        step = under_way(self.step)
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        now = torch.arange(self.seen, self.seen + step.n_new, device=key_states.device)
        new = {
            "keys": self._turned(key_states, back=True),
            "values": value_states,
            "tokens": now.expand(*self.tokens.shape[:2], -1),
            "received": self.received.new_zeros(*self.received.shape[:2], step.n_new),
        }
        stay = self._stay(step)
        self._pending = {name: _joined(getattr(self, name), stay, x) for name, x in new.items()}
        return self._turned(self._pending["keys"]), self._pending["values"]

    @property
    def passing(self) -> Int[Tensor, "row head key"]:
        """Text positions of the keys that ``update`` has returned in the pass under way."""
        return self._pending["tokens"]

    def _stay(self, step: Pass) -> Tensor | None:
        """Return the ranks of the held keys that stay, or None for all."""
        n_held = self.keys.shape[2]
        if not self.policy.by_attention or n_held + step.n_new == step.n_key:
            return step.stay if step.stay is None else step.stay.to(self.keys.device)
        dropped = self.policy.drop(self.received, self.latest)[..., None]
        rank = torch.arange(n_held - 1, device=self.keys.device)
        return rank + (rank >= dropped)

    def _turned(self, keys: Tensor, back: bool = False) -> Tensor:
        """Return keys, the last of which are the newest, rotated to their ranks or back."""
        if self.frequencies is None:
            return keys
        turn = self.step.turns[id(self.frequencies)]
        cos, sin = (x[-keys.shape[2] :].to(keys.device)[None, None] for x in turn)
        return rotate(keys, cos, -sin if back else sin, interleaved=self.interleaved)

    def observe(self, attention: Float[Tensor, "batch head query key"]) -> None:
        """Add up the attention of a pass, that of all query heads of a kv head together."""
        attention = attention.to(self.received.dtype)
        grouped = attention.unflatten(1, (self.keys.shape[1], -1)).sum(2)
        self._pending["received"] = self._pending["received"] + grouped.sum(2)
        self._pending["latest"] = grouped[:, :, -1]

    def commit(self) -> None:
        """Keep what the pass has brought."""
        self._take(self._pending)
        self.seen += self.step.n_new
        self.rollback()

    def rollback(self) -> None:
        """Forget the pass under way."""
        self._pending, self.step = {}, None

    def restore(self, held: dict[str, Tensor], seen: int) -> None:
        """Hold these from now on."""
        self._take(held)
        self.seen, self.is_initialized = seen, bool(held)

    def _take(self, held: dict[str, Tensor | None]) -> None:
        for name, x in held.items():
            setattr(self, name, x)

    def get_seq_length(self) -> int:
        """Return how many tokens were fed, evicted ones included."""
        return self.seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return how many keys this pass meets, and the mask's offset.

        Raises:
            ValueError: no pass is under way: another model asks.
        """
        n_key = under_way(self.step).n_key
        return n_key, self.seen + query_length - n_key

    def get_max_length(self) -> int:
        """Return the most tokens that a query sees."""
        return self.policy.cache_size

    def reset(self) -> None:
        """Forget everything."""
        self._take(dict.fromkeys(HELD))
        self.seen, self.is_initialized = 0, False
        self.rollback()

    def batch_select_indices(self, indices: Int[Tensor, " row"]) -> None:
        """Keep these rows of the batch, in this order; a row may come more than once."""
        for name, x in self.held().items():
            if name in ("keys", "values") or len(x) > 1:
                setattr(self, name, x.index_select(0, indices.to(x.device)))


def _joined(held: Tensor, stay: Tensor | None, new: Tensor) -> Tensor:
    """Return what stays of a held tensor, (row, head, key, ...), followed by the new."""
    if stay is not None:
        stay = stay.reshape(*stay.shape, *[1] * (held.ndim - 3))
        held = torch.take_along_dim(held, stay, 2)
        new = new.expand(*held.shape[:2], *new.shape[2:])
    return torch.cat((held, new), 2)
