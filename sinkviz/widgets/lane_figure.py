"""The static twin of SideBySide: the nll of all lanes, and how each of their texts ends.

Knows nothing about widgets.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from matplotlib.figure import Figure

from sinkviz.plots.runs import plot_nll
from sinkviz.style import policy_name
from sinkviz.widgets.common import drawable
from sinkviz.widgets.lanes import LaneRecord


def draw_lanes(
    figure: Figure, records: Sequence[LaneRecord], reading: bool, train_length: int | None
) -> None:
    """Draw lanes as they stand into an empty figure.

    Args:
        figure: to draw in.
        records: one per lane; at least one step each.
        reading: a text is read, so that there is none to show.
        train_length: of the model, tokens; None where it is not known.
    """
    names = [f"text {index}" for index in range(len(records))]
    rows = [["nll"] * len(names)] if reading else [["nll"] * len(names), names]
    axes = figure.subplot_mosaic(rows, height_ratios=[3, 2][: len(rows)])
    plot_nll([record.run() for record in records], train_length=train_length, ax=axes["nll"])
    if reading:
        return
    width = max(12, 104 // len(names))
    for name, record in zip(names, records, strict=True):
        ax = axes[name]
        ax.set_axis_off()
        ax.set_title(policy_name(record.policy), loc="left", fontsize="medium")
        text = " ".join("".join(text for text, _ in record.tail).split())
        end = textwrap.wrap(drawable(text), width)[-10:]
        shown = ax.text(0, 1, "\n".join(end), va="top", fontsize="small", clip_on=True)
        shown.set_parse_math(False)
