"""What the queries of a block may see, and how far off the sinks are: bands and their folds.

Knows nothing about models, caches or policies: positions in, masks out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad

from sinkviz import tiles
from sinkviz.positions import rotate


@dataclass(frozen=True)
class Band:
    """What attention must know to let a block of queries see what a cache policy lets them see.

    The first ``n_sink`` keys are sinks; all others form a band: one key per token, in text order,
    and the last belongs to the last query. A query that has left the sinks behind sees them as
    near as in the cache: it is rotated back (``turn``) for their scores.

    Attributes:
        query_position: text position of each query; negative for padding. One row, or one per
            stream of the batch.
        key_position: text position of each key; negative where there is none.
        n_sink: leading keys that are sinks.
        n_recent: most recent tokens that a query sees, itself included; None for all.
        turn: cosine and sine of each query's rotation towards the sinks; None where no query needs
            it, or positions are not rotary.
        interleaved: how rotary coordinates are paired.
    """

    query_position: Int[Tensor, "row query"]
    key_position: Int[Tensor, "row key"]
    n_sink: int = 0
    n_recent: int | None = None
    turn: tuple[Float[Tensor, "row query pair"], Float[Tensor, "row query pair"]] | None = None
    interleaved: bool = False

    def to(self, device: torch.device) -> Band:
        """Return the band with its tensors on a device."""
        if self.key_position.device == device:
            return self
        turn = None if self.turn is None else tuple(part.to(device) for part in self.turn)
        query, key = self.query_position.to(device), self.key_position.to(device)
        return replace(self, query_position=query, key_position=key, turn=turn)

    @cached_property
    def visible(self) -> Bool[Tensor, "row query key"]:
        """Which query sees which key; padding sees everything, so that its softmax is finite."""
        query, key = self.query_position[..., None], self.key_position[:, None]
        visible = (key >= 0) & (key <= query)
        if self.n_recent is not None:
            visible &= (key < self.n_sink) | (key > query - self.n_recent)
        return visible | (query < 0)

    @cached_property
    def hides(self) -> bool:
        """Whether some query must not see some key."""
        return not bool(self.visible.all())

    @cached_property
    def all_filled(self) -> bool:
        """Whether every key is there for every query that its place in the band lets see it."""
        reached = self.query_position[:, :1] >= self.n_sink - 1
        return bool((self.key_position >= 0).all() and reached.all())

    @cached_property
    def folds(self) -> Folds:
        """How the block folds; the band has a window."""
        return Folds(self)

    @cached_property
    def in_band(self) -> Bool[Tensor, "row key"]:
        """Which keys are there and no sinks."""
        place = torch.arange(self.key_position.shape[1], device=self.key_position.device)
        return (self.key_position >= 0) & (place >= self.n_sink)

    @cached_property
    def tiles(self) -> list[Tensor]:
        """Tiles of the queries and of the keys that they see, sinks aside; the band has a window.

        How many of each row have some pairs and which, how many have all and which.
        """
        n_query, n_key = self.query_position.shape[1], self.key_position.shape[1]
        pairs = 0, self.n_recent, self.n_sink, n_key
        parts = tiles.of_keys(self.in_band)
        grids = tiles.grids(n_query, n_key, pairs, self.in_band.device, parts)
        return [x for grid in grids for x in tiles.in_order(grid)]


class Folds:
    """A block cut into groups of neighbouring queries, each with the stretch of keys that it sees.

    A stretch is a window and a fold long, wherever it lies, so that work follows the window. Made
    once for all layers.

    Args:
        band: what the queries see; with a window.

    Attributes:
        size: queries of a fold.
        count: folds.
        spare: queries that are missing in the last fold.
        missing: keys that are missing in front of the first query's, as at the beginning of a text.
        reach: keys of a stretch in front of its first query, one more than it sees: a window and
            its sinks are mostly a round number, and rows of memory of such a length are faster.
        width: keys of a stretch, and the sinks.
    """

    def __init__(self, band: Band) -> None:
        # Not the band itself: in a circle, both would wait for the collector of garbage.
        self.query_position, self.key_position = band.query_position, band.key_position
        self.n_sink, self.n_recent = band.n_sink, band.n_recent
        n_query, n_key = band.query_position.shape[1], band.key_position.shape[1]
        # Small folds compute little in vain. But where they are copied, so is a window for each.
        # A power of two, which blocks are too: then nothing is left over.
        size = 32
        if band.query_position.device.type != "cpu":
            size = 2 ** min(7, max(5, round(math.log2(band.n_recent))))
        self.size = min(n_query, size)
        self.count = -(-n_query // self.size)
        self.spare = self.count * self.size - n_query
        self.reach = band.n_recent
        self.missing = self.reach - (n_key - band.n_sink - n_query)
        self.width = band.n_sink + self.reach + self.size

    @cached_property
    def mask(self) -> Float[Tensor, "query key"]:
        """What to add to the scores of a fold: by its place alone, a query must not see some keys.

        The same in all folds.
        """
        device = self.query_position.device
        row = torch.arange(self.size, device=device)[:, None]
        column = torch.arange(-self.n_sink, self.reach + self.size, device=device)
        outside = (column >= 0) & ((column <= row) | (column > row + self.reach))
        return torch.zeros(outside.shape, device=device).masked_fill_(outside, -torch.inf)

    @cached_property
    def hidden(self) -> Bool[Tensor, "row fold query key"]:
        """What is not ``band.visible``, in folds: the sinks, then each fold's stretch of keys."""
        query = pad(self.query_position, (0, self.spare), value=-1)
        query = query.unflatten(1, (self.count, self.size))
        key = pad(self.key_position[:, self.n_sink :], (self.missing, self.spare), value=-1)
        key = key.unfold(1, self.reach + self.size, self.size)
        front = self.key_position[:, None, : self.n_sink].expand(-1, self.count, -1)
        keys = torch.cat((front, key), -1).flatten(0, 1)
        folded = Band(query.flatten(0, 1), keys, self.n_sink, self.n_recent)
        return ~folded.visible.unflatten(0, (-1, self.count))


def turned(
    query: Float[Tensor, "batch head query dimension"], band: Band
) -> Float[Tensor, "batch head query dimension"]:
    """Return the queries as the sinks meet them: rotated to their position within the cache."""
    if band.turn is None:
        return query
    cos, sin = (part[:, None] for part in band.turn)
    return rotate(query, cos, sin, interleaved=band.interleaved)
