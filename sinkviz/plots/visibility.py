"""Who sees whom: the visibility of keys under a cache policy.

Knows nothing about models.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from sinkviz.plots._labels import legend
from sinkviz.plots._parts import (
    axes_or_new,
    bare,
    hatched_ground,
    panels,
    points,
    size_in_points,
    title,
)
from sinkviz.policies import Policy, visibility
from sinkviz.style import COLOURS, paper, policy_name, role_style

ROLES_SEEN = ("sink", "recent", "evicted", "future")


def _roles(policy: Policy, length: int) -> Int[np.ndarray, "query key"]:
    """Return the role of each key for each query, as an index into ``ROLES_SEEN``."""
    if length < 1:
        raise ValueError(f"length must be at least 1 token, got {length}")
    seen = visibility(policy, length).numpy()
    query, key = np.indices(seen.shape)
    return np.where(key > query, 3, np.where(~seen, 2, np.where(key < policy.n_sink, 0, 1)))


def _draw(ax: Axes, roles: Int[np.ndarray, "query key"]) -> None:
    length = len(roles)
    hatched_ground(ax, "evicted")
    future = role_style("future", ax)["facecolor"]
    # Evicted cells are left out, so that the hatch shows.
    colours = [COLOURS["sink"], COLOURS["recent"], (0, 0, 0, 0), (*future, 1)]
    edges = np.arange(length + 1) - 0.5
    cell = min(size_in_points(ax)) / length
    ax.pcolormesh(
        edges,
        edges,
        roles,
        cmap=ListedColormap(colours),
        norm=BoundaryNorm(np.arange(5) - 0.5, 4),
        edgecolors=[(*paper(ax), 1)] if cell > 3.5 else "none",
        linewidth=min(0.6, 0.1 * cell),
    )
    ax.set(aspect="equal", xlim=(-0.5, length - 0.5), ylim=(length - 0.5, -0.5))
    bare(ax)
    for axis in (ax.xaxis, ax.yaxis):
        fits = int(min(size_in_points(ax)) / (2.6 * points("xtick.labelsize")))
        axis.set_major_locator(MaxNLocator(min(6, max(2, fits)), integer=True))
    ax.set(xlabel="key (text position, tokens)", ylabel="query (text position, tokens)")


def _handles(ax: Axes, codes: set[int], dense: bool = False) -> list[Patch]:
    names = {"recent": "seen"} if dense else {}
    return [
        Patch(label=names.get(role, role), **role_style(role, ax))
        for code, role in enumerate(ROLES_SEEN)
        if code in codes
    ]


def plot_visibility(policy: Policy, length: int = 24, *, ax: Axes | None = None) -> Axes:
    """Draw in one Axes which query (row) sees which key (column) under a policy.

    Sinks and recent keys are filled, evicted ones hatched, the future is blank.

    Args:
        policy: the policy.
        length: tokens of the text, at least 1.
        ax: where to draw; a new figure where not given.

    Returns:
        The Axes.

    Raises:
        ValueError: ``length`` is below 1.

    Example:
        >>> from sinkviz.policies import SinkWindow
        >>> ax = plot_visibility(SinkWindow(n_sink=1, n_recent=1), length=3)
        >>> ax.collections[0].get_array().reshape(3, 3).tolist()  # 0 sink, 1 recent, 2 evicted
        [[0, 3, 3], [0, 1, 3], [0, 2, 1]]
    """
    roles = _roles(policy, length)
    ax = axes_or_new(ax)
    _draw(ax, roles)
    most = policy.cache_size
    holds = "every earlier key" if most is None else f"at most {most} keys"
    above = legend(ax, _handles(ax, set(roles.ravel().tolist()), most is None))
    title(ax, f"{policy_name(policy)}: sees {holds}", above)
    return ax


def grid_visibility(
    policies: Sequence[Policy], length: int = 24, *, width: float | None = None
) -> Figure:
    """Draw the visibility of several policies side by side in a figure of its own.

    Args:
        policies: at least one; four to a row.
        length: tokens of the text, at least 1.
        width: of the figure, inches; as wide as its panels need where not given.

    Returns:
        The figure, with one legend above the panels.

    Raises:
        ValueError: there is no policy, or ``length`` is below 1.

    Example:
        >>> from sinkviz.policies import Dense, Window
        >>> figure = grid_visibility([Dense(), Window(4)], length=8)
        >>> [ax.get_title(loc="left") for ax in figure.axes]
        ['Dense', 'Window 0+4']
    """
    if not policies:
        raise ValueError("no policies to draw; give at least one, such as [Dense(), Window(8)]")
    drawn = [_roles(policy, length) for policy in policies]
    figure, axes = panels(len(policies), columns=min(4, len(policies)), width=width)
    for ax, policy, roles in zip(axes, policies, drawn, strict=True):
        _draw(ax, roles)
        title(ax, policy_name(policy))
        ax.set(xlabel="", ylabel="")
    figure.supxlabel("key (text position, tokens)", fontsize=points("axes.labelsize"))
    figure.supylabel("query (text position, tokens)", fontsize=points("axes.labelsize"))
    figure.legend(
        handles=_handles(axes[0], set(np.concatenate(drawn).ravel().tolist())),
        loc="outside upper center",
        ncols=4 if figure.get_figwidth() > 5 else 2,
        frameon=False,
    )
    return figure
