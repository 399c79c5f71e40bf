"""What each head gives to the first token, as a map of all heads.

Knows nothing about models.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes

from sinkviz.metrics import SINK_EPSILON
from sinkviz.plots._heads import draw_shares
from sinkviz.plots._parts import axes_or_new, title
from sinkviz.style import ATTENTION_SCALE


def plot_first_token(shares: Float[np.ndarray, "layer head"], *, ax: Axes | None = None) -> Axes:
    """Draw in one Axes what each head gives to the first token: layers down, heads across.

    Heads above 0.3 are framed, and the title counts them.

    Args:
        shares: received attention of the first token, in [0, 1].
        ax: where to draw; a new figure where not given.

    Returns:
        The Axes.

    Example:
        >>> plot_first_token(np.array([[0.9, 0.1]])).get_title(loc="left")
        '1 of 2 heads above 0.3'
    """
    ax = axes_or_new(ax)
    above = shares > SINK_EPSILON
    draw_shares(ax, shares, SINK_EPSILON, f"first token's share ({ATTENTION_SCALE})")
    title(ax, f"{above.sum()} of {above.size} heads above {SINK_EPSILON:g}")
    return ax
