"""Train short, test long: a position scheme, a length, the perplexity and what stands behind it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
import traitlets
from matplotlib.figure import Figure

from sinkviz.models import assets_folder
from sinkviz.plots.lengths import plot_lengths
from sinkviz.plots.positions import DIMENSION, N_HEADS, SCHEMES, plot_scheme
from sinkviz.positions import alibi_slopes, rotary_frequencies, t5_bucket
from sinkviz.widgets.common import as_bytes, sentence
from sinkviz.widgets.teaching import TeachingWidget, teaching_module

EXPERIMENT = "train_short_test_long"
COLUMNS = ("model", "position", "length", "nll", "perplexity", "train_length")
MOST_ROWS = 2000
BARE_LENGTHS = (32, 64, 128, 256, 512, 1024, 2048)  # where there is no table
BARE_TRAINING = 128
MOST_BUCKETS = 4096  # distances that are tried for the edges of T5's buckets

Row = dict[str, Any]


def bundled_rows() -> list[Row]:
    """Return the bundled record of ``train_short_test_long``.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: it holds no rows.
    """
    path = assets_folder() / "runs" / f"{EXPERIMENT}.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no bundled record of {EXPERIMENT}, and so no curve; run the experiment and "
            "give its table, PositionLab(table)"
        )
    found = json.loads(path.read_text(encoding="utf-8"))
    return checked_rows(found["rows"] if isinstance(found, Mapping) else found)


def checked_rows(table: Any) -> list[Row]:
    """Return the rows of a table that the lab shows, in order: one per model and length.

    Where a length was measured several times, the mean nll counts.

    Args:
        table: a DataFrame, or rows with ``model position length nll perplexity train_length``.

    Raises:
        ValueError: there is no row or too many, a column is missing, or a scheme is unknown.

    Example:
        >>> row = {"model": "tiny", "position": "rope", "train_length": 64, "length": 64}
        >>> rows = checked_rows([{**row, "nll": nll, "perplexity": 0.0} for nll in (1.0, 3.0)])
        >>> len(rows), rows[0]["nll"], round(rows[0]["perplexity"], 2)
        (1, 2.0, 7.39)
    """
    rows = table.to_dict("records") if isinstance(table, pd.DataFrame) else list(table)
    # The experiment also has rows of speed, and of windows that slide.
    rows = [row for row in rows if row.get("kind", "quality") == "quality"]
    if not 1 <= len(rows) <= MOST_ROWS:
        raise ValueError(f"the table must have 1 to {MOST_ROWS} rows, got {len(rows)}")
    measured: dict[tuple[str, str, int, int], list[float]] = {}
    for row in rows:
        if missing := [name for name in COLUMNS if name not in row]:
            raise ValueError(f"the table lacks the columns {', '.join(missing)}")
        if row["position"] not in SCHEMES:
            raise ValueError(
                f"no position scheme {row['position']!r}; known are {', '.join(SCHEMES)}"
            )
        names = str(row["position"]), str(row["model"])
        key = (*names, int(row["train_length"]), int(row["length"]))
        # A model that cannot read a text of that length has no nll for it.
        nll = math.nan if row["nll"] is None else float(row["nll"])
        measured.setdefault(key, []).append(nll)
    found = []
    ordered = sorted(measured.items(), key=lambda one: (SCHEMES.index(one[0][0]), one[0][1:]))
    for (position, model, train_length, length), values in ordered:
        mean = sum(values) / len(values)
        if math.isfinite(mean):
            row = {"model": model, "position": position, "train_length": train_length}
            row |= {"length": length, "nll": mean, "perplexity": math.exp(min(mean, 80.0))}
            found.append(row)
    if not found:
        raise ValueError("the table has no finite nll")
    return found


def bucket_edges(n_tokens: int = MOST_BUCKETS) -> list[int]:
    """Return the first distance of each of T5's buckets, tokens.

    Example:
        >>> bucket_edges()[14:19]
        [14, 15, 16, 19, 21]
    """
    buckets = t5_bucket(torch.arange(n_tokens))
    return torch.searchsorted(buckets, torch.arange(int(buckets[-1]) + 1)).tolist()


class PositionLab(TeachingWidget):
    """Choose a position scheme and a test length; see the perplexity and what stands behind it.

    Args:
        table: results of ``train_short_test_long``, a DataFrame or rows with ``model position
            length nll perplexity train_length``; the bundled record where not given. Without one
            the lab says so, and shows the schemes alone.
        position: scheme at the start.
        length: test length at the start, tokens; the longest of the table where not given.

    Raises:
        ValueError: the table is not such a table, or there is no such scheme or length.

    Example:
        >>> row = {"model": "tiny", "position": "alibi", "train_length": 64}
        >>> table = [{**row, "length": n, "nll": 2.0, "perplexity": 7.4} for n in (64, 128)]
        >>> lab = PositionLab(table, position="alibi", length=64)
        >>> round(lab.perplexity, 2)
        7.39
    """

    _esm = teaching_module("position_lab")

    position = traitlets.Unicode().tag(sync=True)
    length = traitlets.Int(help="of the text, tokens").tag(sync=True)
    lengths = traitlets.List(traitlets.Int(), help="those there are").tag(sync=True)
    train_length = traitlets.Int(help="where a curve has none of its own").tag(sync=True)
    curves = traitlets.List(help="model, position, train_length of each").tag(sync=True)
    points = traitlets.Bytes(help="float32 rows: curve, length, nll").tag(sync=True)
    schemes = traitlets.List(traitlets.Unicode()).tag(sync=True)
    frequencies = traitlets.List(traitlets.Float(), help="radians per token").tag(sync=True)
    slopes = traitlets.List(traitlets.Float(), help="nats per token").tag(sync=True)
    buckets = traitlets.List(traitlets.Int(), help="first distance of each").tag(sync=True)
    notice = traitlets.Unicode(help="what is missing").tag(sync=True)

    def __init__(
        self, table: Any = None, *, position: str = "rope", length: int | None = None
    ) -> None:
        notice = ""
        try:
            self._rows = bundled_rows() if table is None else checked_rows(table)
        except FileNotFoundError as error:
            self._rows, notice = [], sentence(error)
        names = {(r["model"], r["position"], r["train_length"]): None for r in self._rows}
        keys = list(names)
        points = [
            [keys.index((r["model"], r["position"], r["train_length"])), r["length"], r["nll"]]
            for r in self._rows
        ]
        lengths = sorted({row["length"] for row in self._rows}) or list(BARE_LENGTHS)
        present = {row["position"] for row in self._rows}
        if present and position not in present and position == "rope":
            position = next(one for one in SCHEMES if one in present)
        super().__init__(
            schemes=list(SCHEMES),
            lengths=lengths,
            position=position,
            length=lengths[-1] if length is None else length,
            train_length=self._rows[0]["train_length"] if self._rows else BARE_TRAINING,
            curves=[{"model": m, "position": p, "train_length": t} for m, p, t in keys],
            points=as_bytes(points),
            frequencies=rotary_frequencies(DIMENSION).tolist(),
            slopes=alibi_slopes(N_HEADS).tolist(),
            buckets=bucket_edges(),
            notice=notice,
        )

    @traitlets.validate("position", "length")
    def _within(self, proposal: traitlets.Bunch) -> Any:
        name, value = proposal["trait"].name, proposal["value"]
        known: Sequence[Any] = SCHEMES if name == "position" else self.lengths
        if value not in known:
            raise ValueError(f"{name} must be one of {', '.join(map(str, known))}, got {value!r}")
        return value

    @property
    def rows(self) -> list[Row]:
        """The table that is shown; empty without one."""
        return self._rows

    @property
    def perplexity(self) -> float | None:
        """Of the chosen scheme at the chosen length, mean nll over models; None without."""
        found = [
            row["nll"]
            for row in self._rows
            if row["position"] == self.position and row["length"] == self.length
        ]
        return float(np.exp(np.mean(found))) if found else None

    def draw(self, figure: Figure) -> None:
        """Draw the curves and the chosen scheme into an empty figure."""
        if self._rows:
            left, right = figure.subplots(1, 2, width_ratios=[1.2, 1])
            plot_lengths(pd.DataFrame(self._rows), ax=left)
        else:
            right = figure.subplots()
        own = [row["train_length"] for row in self._rows if row["position"] == self.position]
        train_length = own[0] if own else self.train_length
        plot_scheme(self.position, max(2, self.length), train_length=train_length, ax=right)

    def __repr__(self) -> str:
        found = (
            f"{len(self.curves)} curves, {len(self.lengths)} lengths" if self.curves else "no table"
        )
        return f"PositionLab({found}: {self.position}, {self.length} tokens)"
