"""Attention maps as small square pictures of bytes: thumbnails, tiles of any zoom, single lines.

Cells keep the largest attention in them, because a sink is one column wide: averaged with its
neighbours it would be lost. Knows nothing about widgets.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Sequence

import numpy as np
from jaxtyping import Bool, Float, UInt8

from sinkviz.metrics import ROLES
from sinkviz.records import Trace

TILE = 256  # cells along a side of a tile
Keys = Sequence[int]  # text positions in order


def pooled(weights: Float[np.ndarray, "row column"], cell: int) -> Float[np.ndarray, "high wide"]:
    """Return the largest weight of each block of ``cell`` x ``cell``, the last ones cut short.

    Example:
        >>> pooled(np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]]), 2).tolist()
        [[5.0, 6.0], [8.0, 9.0]]
    """
    return _largest(_largest(weights, cell).T, cell).T


def _largest(rows: Float[np.ndarray, "row column"], cell: int) -> Float[np.ndarray, "cell column"]:
    # Fifteen times as fast as np.maximum.reduceat.
    found = rows[::cell].copy() if cell > 1 else rows
    for one in range(1, cell):
        part = rows[one::cell]
        np.maximum(found[: len(part)], part, out=found[: len(part)])
    return found


def codes(shares: Float[np.ndarray, "*cell"]) -> UInt8[np.ndarray, "*cell"]:
    """Return shares as bytes, evenly spaced on the square-root scale: 1 is nothing, 255 is all.

    Example:
        >>> codes(np.array([0.0, 0.01, 0.25, 1.0])).tolist()
        [1, 26, 128, 255]
    """
    return (1.5 + 254 * np.sqrt(np.clip(shares, 0, 1))).astype(np.uint8)


def triangles(maps: UInt8[np.ndarray, "*map side side"]) -> bytes:
    """Return the lower triangles of square pictures, row by row: above them nobody sees anybody."""
    rows, columns = np.tril_indices(maps.shape[-1])
    return maps[..., rows, columns].tobytes()


class MapTiles:
    """The maps of a trace, cut to order; of each head the whole map or else the pooled one.

    ``without`` names the keys, by text position, that are taken out; what each query gives to the
    others is then rescaled to one. Of a pooled map this takes out their cells, and rescales by the
    mean of the queries in a cell.

    Args:
        trace: whole maps, pooled maps, or both.

    Raises:
        ValueError: the trace holds no map of any kind.
    """

    def __init__(self, trace: Trace) -> None:
        self.trace, self.n_tokens = trace, len(trace.tokens)
        if trace.attention is None and trace.pooled_max is None:
            raise ValueError(
                "this trace holds no maps; capture it with keep='maps', or with 'pooled' among "
                "its statistics"
            )
        self._rest: dict[tuple[int, int], np.ndarray] = {}
        self._rest_without: Keys = ()  # what they leave out

    def sinks(self, positions: Iterable[int]) -> tuple[int, ...]:
        """Return text positions in order, each once, if they can be taken out of the maps.

        Raises:
            ValueError: there is none, one is not in the text, or the trace knows only its own.
        """
        found, n = tuple(sorted(set(positions))), self.trace.n_sink
        if not found or found[0] < 0 or found[-1] >= self.n_tokens:
            raise ValueError(
                f"a sink must be one of the tokens 0..{self.n_tokens - 1}, got {list(found)}"
            )
        whole = self.trace.attention is not None and self.trace.heads is None
        if not whole and found != tuple(range(n)):
            raise ValueError(
                f"without whole maps the sink is the first {n} tokens, as captured, not "
                f"{list(found)}; capture with keep='maps', or anew with another n_sink"
            )
        return found

    def finest(self, layer: int, head: int) -> int:
        """Return the tokens along a side of the smallest cell there is; 0 without any map."""
        if self._whole(layer, head) is not None:
            return 1
        return 0 if self.trace.pooled_max is None else self.trace.cell

    def shares(self, sinks: tuple[int, ...]) -> Float[np.ndarray, "layer head"]:
        """Return the mean share that the sinks get of later queries, in [0, 1]; NaN if unknown.

        Of one sink this is the attention it receives, its own included.
        """
        trace, later = self.trace, min(sinks[-1] + 1, self.n_tokens - 1)
        if len(sinks) == 1:
            return np.asarray(trace.received[..., sinks[0]], dtype=float)
        if trace.attention is not None and trace.heads is None:
            return trace.attention[..., later:, list(sinks)].sum(-1, dtype=float).mean(-1)
        return trace.mass_of("sink")[..., later:].mean(-1, dtype=float)

    def tile(
        self, layer: int, head: int, cell: int, row: int, column: int, without: Keys = ()
    ) -> UInt8[np.ndarray, "high wide"]:
        """Return one tile of the map at one zoom.

        Args:
            layer: 0-based.
            head: 0-based.
            cell: tokens along a side of a cell, a multiple of ``finest(layer, head)``.
            row: which tile downwards, of ``TILE`` cells each.
            column: which tile across.
            without: keys that are taken out.

        Returns:
            Codes as in ``codes``; 0 where nobody sees anybody, or all keys were taken out.

        Raises:
            ValueError: there is no such tile.
        """
        finest, size = self.finest(layer, head), TILE * cell
        if not finest or cell < 1 or cell % finest:
            raise ValueError(f"head {(layer, head)} has no cells of {cell} tokens")
        if not (0 <= row * size < self.n_tokens and 0 <= column * size < self.n_tokens):
            raise ValueError(f"no tile {(row, column)} of cells of {cell} tokens")
        return self._picture(layer, head, cell, row * size, column * size, size, without)

    def thumbnails(
        self, side: int, without: Keys = ()
    ) -> tuple[int, UInt8[np.ndarray, "layer head side side"]]:
        """Return every head in at most ``side`` cells a side, and the tokens of such a cell."""
        cell = self._fitting(side)
        found = [
            [self._small(layer, head, cell, without) for head in range(self.trace.n_heads)]
            for layer in range(self.trace.n_layers)
        ]
        return cell, np.array(found)

    def thumbnail(
        self, layer: int, head: int, side: int, without: Keys = ()
    ) -> tuple[int, UInt8[np.ndarray, "side side"]]:
        """Return one head likewise."""
        cell = self._fitting(side)
        return cell, self._small(layer, head, cell, without)

    def _fitting(self, side: int) -> int:
        finest = 1 if self.trace.pooled_max is None else self.trace.cell
        return finest * -(-self.n_tokens // (side * finest))

    def _small(
        self, layer: int, head: int, cell: int, without: Keys
    ) -> UInt8[np.ndarray, "side side"]:
        if self.finest(layer, head):
            return self._picture(layer, head, cell, 0, 0, self.n_tokens, without)
        side = -(-self.n_tokens // cell)
        return np.zeros((side, side), np.uint8)

    def line(
        self, layer: int, head: int, token: int, way: str, without: Keys = ()
    ) -> tuple[int, Float[np.ndarray, " cell"]]:
        """Return what a token reads (``keys``) or who reads it (``queries``), exactly.

        Returns:
            Tokens per cell, and the share of each cell of the whole text, in [0, 1]; 0 and nothing
            where there is no map.
        """
        cell = self.finest(layer, head)
        if not 0 <= token < self.n_tokens:
            raise ValueError(f"no token {token}: the text has tokens 0..{self.n_tokens - 1}")
        if not cell:
            return 0, np.zeros(0, np.float32)
        at = token // cell
        here = slice(at, at + 1)
        rows, columns = (here, slice(None)) if way == "keys" else (slice(None), here)
        return cell, self._weights(layer, head, rows, columns, without).ravel().astype(np.float32)

    def _whole(self, layer: int, head: int) -> np.ndarray | None:
        trace = self.trace
        if trace.attention is None:
            return None
        if trace.heads is None:
            return trace.attention[layer, head]
        pairs = [tuple(pair) for pair in trace.heads]
        return trace.attention[0, pairs.index((layer, head))] if (layer, head) in pairs else None

    def _weights(
        self, layer: int, head: int, rows: slice, columns: slice, without: Keys
    ) -> Float[np.ndarray, "row column"]:
        """Return a part of the map in its finest cells, some keys set to nothing on demand."""
        whole = self._whole(layer, head)
        if whole is None:
            whole = np.nan_to_num(self.trace.pooled_max[layer, head])
        part = whole[rows, columns]
        if without:
            part = part * self._rescale(layer, head, tuple(without))[rows, None]
            gone = np.unique(np.array(without) // self.finest(layer, head)) - (columns.start or 0)
            part[:, gone[(gone >= 0) & (gone < part.shape[1])]] = 0
        return part

    def _rescale(self, layer: int, head: int, without: Keys) -> Float[np.ndarray, " row"]:
        """Return the factor that brings what each query gives to the others up to one."""
        if self._rest_without != without:
            self._rest, self._rest_without = {}, without
        at = layer, head
        if at not in self._rest:
            whole = self._whole(layer, head)
            if whole is not None:
                # Sums of what lies between: what is left of one minus a strong sink is inexact.
                edges = [-1, *without, self.n_tokens]
                between = [whole[:, a + 1 : b] for a, b in itertools.pairwise(edges)]
                left = sum(part.sum(-1, dtype=np.float64) for part in between)
            else:
                keys = [i for i, role in enumerate(ROLES) if role not in ("sink", "null")]
                left = self.trace.mass[layer, head][:, keys].sum(-1, dtype=np.float64)
                starts = np.arange(0, self.n_tokens, self.trace.cell)
                counts = np.diff([*starts, self.n_tokens])
                left = np.add.reduceat(left, starts) / counts
            factor = np.divide(1, left, out=np.zeros_like(left), where=left > 1e-6)
            self._rest[at] = factor.astype(np.float32)
        return self._rest[at]

    def _picture(
        self, layer: int, head: int, cell: int, top: int, left: int, size: int, without: Keys
    ) -> UInt8[np.ndarray, "high wide"]:
        finest, n = self.finest(layer, head), self.n_tokens
        rows, columns = (
            slice(start // finest, -(-min(start + size, n) // finest)) for start in (top, left)
        )
        cells = pooled(self._weights(layer, head, rows, columns, without), cell // finest)
        picture = codes(cells)
        gone = {key // finest for key in without}
        picture[~self._seen(cells.shape, cell, top, left, gone, finest)] = 0
        return picture

    def _seen(
        self,
        shape: tuple[int, int],
        cell: int,
        top: int,
        left: int,
        gone: Collection[int],
        finest: int,
    ) -> Bool[np.ndarray, "high wide"]:
        """Return in which cells some query sees some key that is not in a cell that is ``gone``."""
        last_query = np.minimum(top + cell * (1 + np.arange(shape[0])), self.n_tokens) - 1
        start = left + cell * np.arange(shape[1])
        # The first key from each on that is still there; beyond the text where there is none.
        there = np.arange(self.n_tokens + 1)
        for one in sorted(gone, reverse=True):
            there[one * finest : (one + 1) * finest] = there[min((one + 1) * finest, self.n_tokens)]
        first_key = there[start]
        return (first_key < start + cell) & (first_key <= last_query[:, None])
