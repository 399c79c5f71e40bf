"""What the teaching widgets share: a style sheet, the figures' colour maps, a static figure.

Whatever they show is drawn in the page from their traits, so that an exported page needs no kernel.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from sinkviz.plots._parts import short
from sinkviz.style import attention_map, bias_map
from sinkviz.widgets.common import Widget, module, style_sheet

STOPS = 17  # of a colour map; the page mixes what lies between
MOST_LETTERS = 24  # of a token that a page is told


def ramps() -> str:
    """Return the figures' colour maps as a constant of JavaScript, for light and for dark paper."""
    found = {}
    for paper in ("white", "black"):
        ax = Figure(facecolor=paper).subplots()
        ax.set_facecolor(paper)
        for name, colours in (("attention", attention_map(ax)), ("bias", bias_map(ax))):
            stops = [to_hex(colours(place)) for place in np.linspace(0, 1, STOPS)]
            found.setdefault(name, []).append(stops)
    return f"const RAMPS = {json.dumps(found)};\n"


RAMPS = ramps()


def teaching_module(name: str) -> str:
    """Return the ES module of a teaching widget: colours, what they all share, its own file."""
    return RAMPS + module("teaching", name)


def as_labels(tokens: Sequence[str]) -> list[str]:
    r"""Return tokens as the page shows them: without control characters, long ones cut.

    Example:
        >>> as_labels(["Once", "upon" * 10_000, "\n"])
        ['Once', 'uponuponuponuponuponupo…', '↵']
    """
    return [short(token, MOST_LETTERS) for token in tokens]


class TeachingWidget(Widget):
    """A widget whose page computes by itself; tests hold it against the widget's Python twin."""

    _css = style_sheet("teaching")

    def figure(self) -> Figure:
        """Return the widget as it stands, as a matplotlib figure of its own."""
        figure = plt.figure(figsize=(9.5, 5), layout="constrained")
        self.draw(figure)
        return figure
