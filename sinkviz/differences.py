"""What is different between two traces of one text, number by number.

Knows nothing about models or files.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from sinkviz.labelled import AXES, Labels, to_dataset, to_frame

# What is no quantity: ranks of keys can be compared, but not subtracted.
NOT_SUBTRACTED = ("top_keys", "top_attention")


@dataclass(frozen=True, repr=False)
class TraceDifference:
    """One trace less another of the same text, such as with and without an intervention.

    Attributes:
        arrays: differences by name of the field, for all fields that both have; axes are theirs.
        labels: what stands along the axes.
        names: of the two models.
        sink_rates: of the two.
    """

    arrays: dict[str, np.ndarray]
    labels: Labels
    names: tuple[str, str]
    sink_rates: tuple[float, float]

    def __getattr__(self, name: str) -> np.ndarray:
        if name in AXES and name in self.__dict__.get("arrays", {}):
            return self.arrays[name]
        raise AttributeError(
            f"no {name!r} in this difference"
            + (": not both traces have it" if name in AXES else "")
        )

    def largest(self, name: str = "received") -> dict[str, Any]:
        """Return the number that is furthest from zero, with what stands along its axes.

        Args:
            name: of a field.

        Raises:
            ValueError: not both traces have it, or it has no numbers.
        """
        frame = self.to_frame(name)
        if not frame[name].notna().any():
            raise ValueError(f"{name} has no numbers to compare; it was not asked for")
        return frame.loc[frame[name].abs().idxmax()].to_dict()

    def to_frame(self, name: str = "received") -> pd.DataFrame:
        """Return a field as a tidy table, see ``Trace.to_frame``.

        Raises:
            ValueError: not both traces have it.
        """
        return to_frame(name, _named(self.arrays, name, "not both traces have"), self.labels)

    def to_xarray(self) -> Any:
        """Return all fields as an ``xarray.Dataset``.

        Raises:
            ImportError: xarray is not installed.
        """
        return to_dataset(self.arrays, self.labels, {"difference": " - ".join(self.names)})

    def __repr__(self) -> str:
        text = f"of {', '.join(self.arrays)}"
        if np.isfinite(self.arrays["received"]).any():
            (after, before), most = self.sink_rates, self.largest()
            text = (
                f"sink rate {before:.2f} -> {after:.2f}, received at most {most['received']:+.2f} "
                f"(layer {most['layer']}, head {most['head']}, key {most['key']})"
            )
        tokens = len(self.labels.tokens)
        return f"TraceDifference({' - '.join(self.names)}: {tokens} tokens, {text})"


def difference(trace: Any, other: Any) -> TraceDifference:
    """Return a trace less another.

    Args:
        trace: the one.
        other: the other, which is subtracted.

    Raises:
        ValueError: they are of different texts, or of models of different sizes, or divide the text
            in different ways.
    """
    if not np.array_equal(trace.token_ids, other.token_ids):
        raise ValueError(
            f"these traces are of different texts ({len(trace.tokens)} and {len(other.tokens)} "
            "tokens); a difference needs the same tokens at the same positions"
        )
    sizes = [f"{one.n_layers} layers x {one.n_heads} heads" for one in (trace, other)]
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"these traces are of models of {sizes[0]} and {sizes[1]}, whose heads do not "
            "correspond; compare numbers such as sink_rate instead"
        )
    for name in ("n_sink", "n_recent"):
        counts = getattr(trace, name), getattr(other, name)
        if counts[0] != counts[1]:
            raise ValueError(
                f"these traces have {name} {counts[0]} and {counts[1]}, so their roles differ; "
                f"capture both with the same {name}"
            )
    arrays = {}
    for name, left in kept(trace).items():
        right = kept(other).get(name)
        alike = right is not None and left.shape == right.shape
        if name == "attention":
            alike = alike and trace.heads == other.heads
        if name.startswith("pooled"):
            alike = alike and trace.cell == other.cell
        if alike and name not in NOT_SUBTRACTED:
            arrays[name] = left - right
    names = tuple(str(one.provenance.get("model", "?")) for one in (trace, other))
    return TraceDifference(arrays, labels_of(trace), names, (trace.sink_rate, other.sink_rate))


def kept(trace: Any) -> dict[str, np.ndarray]:
    """Return the fields that a trace has, by name."""
    names = (one.name for one in dataclasses.fields(trace) if one.name in AXES)
    return {name: x for name in names if (x := getattr(trace, name)) is not None}


def labels_of(trace: Any) -> Labels:
    """Return what stands along the axes of a trace."""
    return Labels(
        trace.tokens, trace.cell, trace.distance_edges or (), trace.queries or (), trace.heads
    )


def frame_of(trace: Any, name: str) -> pd.DataFrame:
    """Return a field of a trace as a tidy table.

    Raises:
        ValueError: the trace has no such field.
    """
    return to_frame(name, _named(kept(trace), name, "this trace does not have"), labels_of(trace))


def _named(arrays: dict[str, np.ndarray], name: str, lack: str) -> np.ndarray:
    if name not in AXES:
        raise ValueError(f"no field {name!r}; known are {', '.join(AXES)}")
    if name not in arrays:
        raise ValueError(f"{lack} {name!r}; there are {', '.join(arrays)}")
    return arrays[name]
