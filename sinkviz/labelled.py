"""Arrays with names on their axes, as a tidy table or as labelled arrays.

Each field of a trace has its axes written here, once. Knows nothing about traces, models or files:
arrays and coordinates in, pandas or xarray out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from sinkviz.metrics import ROLES

AXES: dict[str, tuple[str, ...]] = {
    "received": ("layer", "head", "key"),
    "mass": ("layer", "head", "query", "role"),
    "entropy": ("layer", "head", "query"),
    "attention": ("layer", "head", "query", "key"),
    "scores": ("layer", "head", "query", "key"),
    "distance": ("layer", "head", "distance_from"),
    "pooled_mean": ("layer", "head", "query_cell", "key_cell"),
    "pooled_max": ("layer", "head", "query_cell", "key_cell"),
    "top_keys": ("layer", "head", "asked_query", "rank"),
    "top_attention": ("layer", "head", "asked_query", "rank"),
    "key_norm": ("layer", "kv_head", "position"),
    "value_norm": ("layer", "kv_head", "position"),
    "residual_norm": ("layer", "position"),
}
# Axes of text positions, whose tokens a table shows beside them.
IN_TEXT = ("query", "key", "position", "asked_query")


@dataclass(frozen=True)
class Labels:
    """What stands along the axes.

    Attributes:
        tokens: the text's tokens as short strings.
        cell: tokens along a side of a cell of the pooled maps.
        edges: of the bins of distances, tokens.
        queries: text positions of the queries that were asked for.
        heads: (layer, head) pairs of the maps that were kept; None for all.
    """

    tokens: tuple[str, ...]
    cell: int = 1
    edges: tuple[int, ...] = ()
    queries: tuple[int, ...] = ()
    heads: tuple[tuple[int, int], ...] | None = None

    def along(self, axis: str, size: int) -> np.ndarray:
        """Return the labels of an axis, by default numbers counted from 0.

        Roles have their names, bins of distances the least of each, cells their first token, and
        queries that were asked for their text positions.

        Args:
            axis: one of those in ``AXES``.
            size: how many labels.
        """
        named: dict[str, Sequence[Any]] = {
            "role": ROLES,
            "distance_from": self.edges[:-1],
            "asked_query": self.queries,
        }
        if axis.endswith("_cell"):
            return np.arange(size) * self.cell
        return np.array(named.get(axis, range(size)))


def to_frame(name: str, array: np.ndarray, labels: Labels) -> pd.DataFrame:
    """Return a field as a tidy table: a row per number, a column per axis.

    Args:
        name: of the field, which its column gets.
        array: its numbers.
        labels: what stands along its axes.

    Returns:
        The table. A text position has its token beside it. Pairs of a query and a later key, which
        it cannot see, are left out.
    """
    where = np.indices(array.shape).reshape(array.ndim, -1)
    if AXES[name][-2:] == ("query", "key"):
        where = where[:, where[-1] <= where[-2]]
    columns: dict[str, Any] = {}
    for axis, size, index in zip(AXES[name], array.shape, where, strict=True):
        columns[axis] = labels.along(axis, size)[index]
        if axis in IN_TEXT:
            columns[f"{axis}_token"] = np.array(labels.tokens, dtype=object)[columns[axis]]
        elif axis == "role":
            columns[axis] = pd.Categorical(columns[axis], categories=ROLES)
    if name == "attention" and labels.heads is not None:
        pairs = np.array(labels.heads).reshape(-1, 2)[where[1]]
        columns |= {"layer": pairs[:, 0], "head": pairs[:, 1]}
    return pd.DataFrame(columns | {name: array[tuple(where)]})


def to_dataset(arrays: Mapping[str, np.ndarray], labels: Labels, attributes: dict) -> Any:
    """Return fields as an ``xarray.Dataset``, with named axes and what stands along them.

    Args:
        arrays: fields by name.
        labels: what stands along their axes.
        attributes: of the data set.

    Raises:
        ImportError: xarray is not installed.
    """
    try:
        import xarray
    except ImportError:
        raise ImportError(
            "labelled arrays need xarray, which is not installed: pip install xarray; or take "
            "to_frame(name), which needs pandas alone"
        ) from None
    axes = {name: AXES[name] for name in arrays}
    coordinates: dict[str, Any] = {"token": ("position", np.array(labels.tokens, dtype=object))}
    if "attention" in arrays and labels.heads is not None:
        axes["attention"] = ("kept", "query", "key")
        arrays = {**arrays, "attention": arrays["attention"][0]}
        for i, part in enumerate(("layer", "head")):
            coordinates[f"kept_{part}"] = ("kept", np.array(labels.heads).reshape(-1, 2)[:, i])
    sizes = {
        axis: size
        for name, array in arrays.items()
        for axis, size in zip(axes[name], array.shape, strict=True)
    }
    for axis, size in sizes.items():
        coordinates[axis] = labels.along(axis, size)
    fields = {name: (axes[name], array) for name, array in arrays.items()}
    return xarray.Dataset(fields, coordinates, attributes)
