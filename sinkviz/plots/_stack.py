"""Shares of the roles, stacked to one: bars or areas, from bottom to top as in the text.

Knows nothing about models.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Shaped
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from sinkviz.metrics import ROLES
from sinkviz.style import STACK, role_style

LEAST_SHARE = 5e-4  # a role that never has more is left out, and so is its name


def role_labels(n_sink: int, n_recent: int) -> dict[str, str]:
    """Return what a legend says of each role."""
    return {
        "sink": "sink (first token)" if n_sink == 1 else f"sink (first {n_sink})",
        "recent": f"recent (last {n_recent})",
        "middle": "middle",
        "self": "self",
        "null": "null (nowhere)",
    }


def draw_stack(
    ax: Axes,
    places: Shaped[np.ndarray, " place"],
    shares: Float[np.ndarray, "place role"],
    labels: dict[str, str],
    *,
    bars: bool,
) -> list[Patch]:
    """Stack the shares of the roles and return the handles of a legend, in the order seen.

    Args:
        ax: where to draw.
        places: along the x axis.
        shares: in [0, 1], roles in the order of ``sinkviz.metrics.ROLES``.
        labels: what the legend says of each role.
        bars: draw bars; otherwise areas.
    """
    bottom = np.zeros(len(shares))
    handles = []
    for role in STACK:
        height = shares[:, ROLES.index(role)]
        if not (height > LEAST_SHARE).any():
            continue
        look = role_style(role, ax)
        if bars:
            ax.bar(places, height, width=0.86, bottom=bottom, label=labels[role], **look)
        else:
            ax.fill_between(places, bottom, bottom + height, label=labels[role], **look)
        handles.append(Patch(label=labels[role], **look))
        bottom = bottom + height
    ax.set(ylim=(0, 1), yticks=np.linspace(0, 1, 6), ylabel="mean share of attention")
    ax.spines[["top", "right"]].set_visible(False)
    return handles[::-1]
