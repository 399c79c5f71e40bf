"""Statistics of one layer's attention, as sums to which blocks of weights are added.

What is kept grows with the length of the text and not with its square. Knows nothing about models,
nor where the weights come from.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sinkviz.capturing.sights import Sight
from sinkviz.metrics import ROLES

# Blocks whose sums over rows are added in single precision before they are in double.
FEW_BLOCKS = 8
STATISTICS = ("received", "mass", "entropy", "distance", "pooled", "norms")
# Those for which no weight is wanted for itself, and pairs may be added in any parts and order.
SUMS = frozenset(("received", "mass", "entropy", "norms"))


@dataclass(frozen=True)
class Plan:
    """What to find out about the attention of a text.

    Attributes:
        n_tokens: length of the text.
        statistics: some of ``STATISTICS``.
        n_sink: first tokens that count as sinks.
        n_recent: tokens that count as recent, the query's own included.
        queries: text positions whose strongest keys are wanted, in ascending order.
        top_k: how many keys of each.
        cell: tokens along a side of a cell of the pooled maps.
        scores: keep what comes before the softmax, too.
    """

    n_tokens: int
    statistics: tuple[str, ...] = STATISTICS
    n_sink: int = 4
    n_recent: int = 64
    queries: tuple[int, ...] = ()
    top_k: int = 8
    cell: int = 1
    scores: bool = False

    @property
    def sums_alone(self) -> bool:
        """Whether only ``SUMS`` are wanted."""
        return SUMS.issuperset(self.statistics) and not (self.queries or self.scores)


def distance_edges(n_tokens: int) -> tuple[int, ...]:
    """Return the edges of the bins of distances, tokens: 0, 1, 2, 4, 8 ... beyond the text.

    Example:
        >>> distance_edges(6)
        (0, 1, 2, 4, 8)
    """
    return (0, *(2**i for i in range(max(0, n_tokens - 1).bit_length() + 1)))


def _sums(
    plan: Plan, n_heads: int, device: torch.device, dtype: torch.dtype
) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Return shape and precision of the sums that a plan needs, by name."""
    # Long sums of small numbers; only Apple's GPUs have no doubles.
    wide = dtype if device.type == "mps" else torch.float64
    n, sides = plan.n_tokens, -(-plan.n_tokens // plan.cell)
    kinds = {
        "received": {"received": ((n_heads, n), wide), "viewers": ((n,), wide)},
        "mass": {role: ((n_heads, n), dtype) for role in ROLES if role != "middle"},
        "entropy": {"entropy": ((n_heads, n), dtype)},
        "distance": {"backwards": ((n_heads, n), wide)},
        "pooled": {
            "pooled_max": ((n_heads, sides, sides), dtype),
            "pooled_mean": ((n_heads, sides, sides), dtype),
            "pairs": ((sides, sides), wide),
        },
    }
    return {
        name: sums
        for statistic in plan.statistics
        for name, sums in kinds.get(statistic, {}).items()
    }


def layer_bytes(plan: Plan, n_heads: int, device: torch.device) -> int:
    """Return how many bytes the sums of one layer take in single precision on a device.

    Example:
        >>> layer_bytes(Plan(100, ("received", "entropy")), 2, torch.device("cpu"))
        3200
    """
    sums = _sums(plan, n_heads, device, torch.float32)
    return sum(math.prod(shape) * kind.itemsize for shape, kind in sums.values())


class LayerStatistics:
    """The sums of one layer; add its blocks in any order, then ask for the ``result``.

    Args:
        plan: what to find out.
        n_heads: attention heads of the layer.
        device: where the sums are kept.
        dtype: of what is computed: float32 or wider.
        kept: heads whose whole maps to keep, and where: (query, key) of the text, on the CPU.
    """

    def __init__(
        self,
        plan: Plan,
        n_heads: int,
        device: torch.device,
        dtype: torch.dtype,
        kept: Sequence[tuple[int, Tensor]] = (),
    ) -> None:
        self.plan, self.dtype, self.kept, n = plan, dtype, kept, plan.n_tokens
        self.sums = {
            name: torch.zeros(shape, dtype=kind, device=device)
            for name, (shape, kind) in _sums(plan, n_heads, device, dtype).items()
        }
        if plan.queries:
            n_top = (len(plan.queries), plan.top_k)
            self.sums["top_attention"] = torch.zeros(n_heads, *n_top, dtype=dtype, device=device)
            self.sums["top_keys"] = torch.full((n_heads, *n_top), -1, device=device)
        self.scores = torch.full((n_heads, n, n), torch.nan, dtype=dtype) if plan.scores else None
        self._scratch: dict[str, Tensor] = {}
        self._waiting: tuple[slice, Tensor] | None = None
        self._n_waiting = 0

    def wants(self, statistic: str) -> bool:
        """Whether a statistic is asked for."""
        return statistic in self.plan.statistics

    def scratch(self, name: str, heads: int, rows: int, keys: int, like: Tensor) -> Tensor:
        """Return memory for (head, row, key), with as many zeros before each head as it has rows.

        The same memory is used again, since fresh pages cost as much as the arithmetic.
        """
        size = heads * (rows * keys + rows)
        held = self._scratch.get(name)
        if held is None or held.numel() < size:
            room = 2 ** (size - 1).bit_length()
            held = self._scratch[name] = torch.empty(room, dtype=self.dtype, device=like.device)
        flat = held[:size].view(heads, rows * keys + rows)
        if name == "weights":
            flat[:, :rows] = 0
        return flat[:, rows:].view(heads, rows, keys)

    def see(self, sight: Sight) -> None:
        """Count who sees whom in a pass; once per pass, before its blocks."""
        if "viewers" in self.sums:
            self.sums["viewers"][: sight.n_keys] += sight.viewers()
        if "pairs" in self.sums:
            cell = self.plan.cell
            seen = sight.per_cell(cell).to(self.sums["pairs"])
            rows = torch.arange(sight.first, sight.n_keys, device=seen.device) // cell
            self.sums["pairs"][:, : seen.shape[1]].index_add_(0, rows, seen)

    def add(
        self,
        heads: slice,
        first: int,
        start: int,
        weights: Float[Tensor, "head row key"],
        share: Float[Tensor, "head row"],
        null: Float[Tensor, "head row"] | None = None,
        entropy: Float[Tensor, "head row"] | None = None,
    ) -> None:
        """Add a block of rows of some heads.

        Args:
            heads: which heads.
            first: text position of the block's first query.
            start: text position of its first key; the last key is the last query's own, or of a
                part of the block where only ``SUMS`` are wanted: all its queries' own, or none.
            weights: if more than ``SUMS`` are wanted, in memory from ``scratch``; zero where a
                query does not see a key. They may be overwritten.
            share: what to multiply each row of weights by to get attention.
            null: share of each query that goes to no key.
            entropy: of each query's attention, nats.
        """
        plan, sums, n_rows, n_keys = self.plan, self.sums, *weights.shape[1:]
        rows, keys = slice(first, first + n_rows), slice(start, start + n_keys)
        if "pooled_mean" in sums:
            weights.mul_(share[..., None])
            share = torch.ones_like(share)
            column = self._pool(heads, first, start, weights)
            if "received" in sums:
                self._columns(heads)[:, keys] += column
        elif "received" in sums:
            self._columns(heads)[:, None, keys].baddbmm_(share[:, None], weights)
        near = start < plan.n_sink or keys.stop > first - plan.n_recent + 1
        if near and "self" in sums:
            self._divide(heads, first, start, weights, share, null)
        if "entropy" in sums:
            sums["entropy"][heads, rows] += entropy
        if "backwards" in sums:
            diagonals = torch.bmm(share[:, None], _slanting(weights, 1 - n_rows, n_keys))[:, 0]
            sums["backwards"][heads, plan.n_tokens - n_keys :] += diagonals
        wanted = [i for i, query in enumerate(plan.queries) if rows.start <= query < rows.stop]
        if wanted:
            chosen = [plan.queries[i] - first for i in wanted]
            top, where = (weights * share[..., None])[:, chosen].topk(min(plan.top_k, n_keys), -1)
            sums["top_attention"][heads, wanted, : top.shape[-1]] = top
            where = (where + start).masked_fill(top == 0, -1)
            sums["top_keys"][heads, wanted, : top.shape[-1]] = where
        for head, whole in self.kept:
            if heads.start <= head < heads.stop:
                at = head - heads.start
                whole[rows, keys] = weights[at] * share[at, :, None]

    def rescale(self, first: int, total: Float[Tensor, "head row"]) -> None:
        """Make up for what rounding added to some queries' attention, now that all of it is known.

        What keys receive is a mean of many, in which this averages out.

        Args:
            first: text position of the first query.
            total: the sum of each query's attention, one but for rounding.
        """
        rows = slice(first, first + total.shape[1])
        for name in self.sums.keys() & {*ROLES, "entropy"}:
            self.sums[name][:, rows] /= total
        if "entropy" in self.sums:
            self.sums["entropy"][:, rows] += total.log()

    def put(self, first: int, sums: dict[str, Float[Tensor, "head _"]]) -> None:
        """Add what is already summed over a whole pass; of it, what is asked for.

        Args:
            first: text position of the pass's first query.
            sums: by name: ``received`` of each key of the text so far, the rest of each query.
        """
        for name in self.sums.keys() & sums.keys():
            one = sums[name]
            if name == "received":
                self.sums[name][:, : one.shape[1]] += one
            else:
                self.sums[name][:, first : first + one.shape[1]] = one

    def _columns(self, heads: slice) -> Float[Tensor, "head key"]:
        """Return where the sums over rows of some blocks of these heads are added up.

        To add every block in double precision would take as long as to compute its sums; a few
        blocks lose nothing to rounding.
        """
        if self._waiting is None or self._waiting[0] != heads or self._n_waiting == FEW_BLOCKS:
            self._flush()
            shape = (heads.stop - heads.start, self.plan.n_tokens)
            zeros = torch.zeros(shape, dtype=self.dtype, device=self.sums["received"].device)
            self._waiting, self._n_waiting = (heads, zeros), 0
        self._n_waiting += 1
        return self._waiting[1]

    def _flush(self) -> None:
        """Add the sums that wait in single precision to those in double."""
        if self._waiting is not None:
            heads, columns = self._waiting
            self.sums["received"][heads] += columns
        self._waiting = None

    def _divide(
        self,
        heads: slice,
        first: int,
        start: int,
        weights: Tensor,
        share: Tensor,
        null: Tensor | None,
    ) -> None:
        """Add up the attention by role of the key, all but the middle."""
        plan, sums, rows = self.plan, self.sums, slice(first, first + weights.shape[1])
        if start + weights.shape[2] > first:
            sums["self"][heads, rows] = weights.diagonal(first - start, 1, 2) * share
        sink = weights[..., : max(0, plan.n_sink - start)]
        if first < plan.n_sink:
            sink = sink.clone()
            sink.diagonal(first - start, 1, 2).zero_()
        oldest = first - plan.n_recent + 1  # of the first row's recent keys
        left = max(start, oldest, plan.n_sink)
        if left == oldest and start + weights.shape[2] > first:
            band = _slanting(weights, left - start, plan.n_recent - 1)
        else:
            band = weights[..., left - start :].tril(first - left - 1).triu_(oldest - left)
        for role, part in (("sink", sink), ("recent", band)):
            if part.shape[2]:
                sums[role][heads, rows] += part.sum(-1) * share
        if null is not None:
            sums["null"][heads, rows] = null

    def _mass(self) -> Float[Tensor, "head query role"]:
        """Return each query's attention by role; see ``sinkviz.metrics.mass``."""
        by_role = {role: self.sums.pop(role) for role in ROLES if role != "middle"}
        middle = (1 - sum(by_role.values())).clamp(min=0)
        # Where no key lies between, what rounding leaves over is nobody's.
        middle[:, : self.plan.n_sink + self.plan.n_recent] = 0
        return torch.stack([(by_role | {"middle": middle})[role] for role in ROLES], -1)

    def _pool(self, heads: slice, first: int, start: int, weights: Tensor) -> Tensor:
        """Add to the pooled maps; return the sums over rows."""
        cell, groups = self.plan.cell, max(1, weights.shape[1] // self.plan.cell)
        grouped = weights.unflatten(1, (groups, -1))
        total, spare = grouped.sum(2), -weights.shape[2] % cell
        where = (
            heads,
            slice(first // cell, first // cell + groups),
            slice(start // cell, (start + weights.shape[2] + spare) // cell),
        )
        parts = (
            torch.nn.functional.pad(x, (0, spare)).unflatten(2, (-1, cell))
            for x in (total, grouped.amax(2))
        )
        self.sums["pooled_mean"][where] += next(parts).sum(3)
        biggest = self.sums["pooled_max"][where]
        torch.maximum(biggest, next(parts).amax(3), out=biggest)
        return total.sum(1)

    def result(self) -> dict[str, Tensor]:
        """Return what was asked for, on the CPU; nothing can be added afterwards."""
        sums, n = self.sums, self.plan.n_tokens
        if "received" in sums:
            self._flush()
            sums["received"] /= sums.pop("viewers").clamp(min=1)
        if "self" in sums:
            sums["mass"] = self._mass()
        if "pooled_mean" in sums:
            # A cell that nobody sees has no mean and no most: 0 / 0.
            pairs = sums.pop("pairs")
            sums["pooled_mean"] = sums["pooled_mean"] / pairs
            sums["pooled_max"][:, pairs == 0] = torch.nan
        if "backwards" in sums:
            total = sums.pop("backwards").flip(-1).cumsum(-1) / n
            total = torch.nn.functional.pad(total, (1, 0))
            edges = torch.tensor(distance_edges(n), device=total.device).clamp(max=n)
            sums["distance"] = total[:, edges].diff(dim=-1)
        found = {
            name: (x if name == "top_keys" else x.to(self.dtype)).cpu() for name, x in sums.items()
        }
        self.sums, self._scratch = {}, {}
        return found if self.scores is None else found | {"scores": self.scores}


def _slanting(
    weights: Float[Tensor, "head row key"], start: int, n_keys: int
) -> Float[Tensor, "head row _"]:
    """Return a view of so many keys of each row: of the first from ``start`` on, then one further.

    Where they begin left of the first key, columns are distances. What lies there is the previous
    row's part above its diagonal, which is zero, and the zeros of ``scratch``.
    """
    strides = weights.stride(0), weights.stride(1) + 1, 1
    return weights.as_strided(
        (*weights.shape[:2], n_keys), strides, weights.storage_offset() + start
    )
