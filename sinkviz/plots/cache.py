"""A cache at one moment: what of a text it holds, and where.

Knows nothing about models.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Patch, Rectangle

from sinkviz.plots._parts import axes_or_new, plain, short, size_in_points, title
from sinkviz.policies import Policy
from sinkviz.style import COLOURS, ink, policy_name, role_style

TEXT, CACHE = 1.9, 0.0  # heights of the two rows
MOST_CELLS = 96


def plot_cache(policy: Policy, tokens: Sequence[str], step: int, *, ax: Axes | None = None) -> Axes:
    """Draw in one Axes what a cache holds when ``step`` tokens of a text have been read.

    Text positions are above, the cache below with the position that the model sees of each token;
    lines join the two. Sinks and other tokens held are filled, evicted ones are hatched.

    Args:
        policy: the policy; not one by attention.
        tokens: of the text, at least ``step``; empty strings are not written. Of more than 96 the
            last ones before ``step`` are drawn, and the sinks.
        step: tokens read, at least 1.
        ax: where to draw; a new figure where not given.

    Returns:
        The Axes.

    Raises:
        ValueError: there is no such step.

    Example:
        >>> from sinkviz.policies import SinkWindow
        >>> ax = plot_cache(SinkWindow(n_sink=1, n_recent=2), ["a", "b", "c", "d", "e"], 5)
        >>> ax.get_title(loc="left")
        'SinkWindow 1+2, step 5: 3 tokens held, 2 evicted'
    """
    if not 1 <= step <= len(tokens):
        raise ValueError(f"step must be in 1..{len(tokens)}, got {step}")
    kept = policy.keep(step)
    ax = axes_or_new(ax)
    shown = _shown(len(tokens), step, policy.n_sink)
    slots = min(policy.cache_size or len(tokens), len(shown))
    left = len(kept) - slots  # of a cache larger than the figure the newest places are drawn
    across = {position: x for x, position in enumerate(shown)}
    size = float(np.clip(0.55 * size_in_points(ax)[0] / max(len(shown), slots), 4, 9))
    for position, x in across.items():
        role = "future" if position >= step else _role(position, position in kept, policy)
        new = position == step - 1
        _cell(ax, x, TEXT, role, position, tokens[position] if position < step else "", size, new)
    for rank in range(max(0, left), max(0, left) + slots):
        position = kept[rank] if rank < len(kept) else None
        x = rank - max(0, left)
        if position is None:
            box = Rectangle((x - 0.45, CACHE), 0.9, 0.6, fill=False, linestyle=":")
            ax.add_patch(box).set_edgecolor(ink(ax))
            continue
        role = _role(position, True, policy)
        said = position if policy.positions == "text" else rank
        _cell(ax, x, CACHE, role, said, tokens[position], size, False, below=True)
        if position in across:
            colour = COLOURS["sink" if role == "sink" else "recent"]
            ax.plot([across[position], x], [TEXT, CACHE + 0.6], color=colour, lw=1, alpha=0.7)
    ax.set(xlim=(-0.7, max(len(shown), slots) - 0.3), ylim=(-1.1, TEXT + 1.7))
    ax.set_xticks([])
    ax.set_yticks([TEXT + 0.3, CACHE + 0.3], ["text\nposition", "cache:\nas seen"])
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    roles = [("sink", "sink")] * bool(policy.n_sink) + [("recent", "held"), ("evicted", "evicted")]
    handles = [Patch(label=label, **role_style(role, ax)) for role, label in roles]
    ax.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, 0), ncols=3, frameon=False)
    held, gone = len(kept), step - len(kept)
    title(ax, f"{policy_name(policy)}, step {step}: {held} tokens held, {gone} evicted")
    return ax


def _shown(length: int, step: int, n_sink: int) -> list[int]:
    """Return the text positions that are drawn."""
    if length <= MOST_CELLS:
        return list(range(length))
    head = min(n_sink, MOST_CELLS // 3)
    start = max(head, min(step + 3, length) - (MOST_CELLS - head))
    return [*range(head), *range(start, start + MOST_CELLS - head)]


def _role(position: int, held: bool, policy: Policy) -> str:
    if not held:
        return "evicted"
    return "sink" if position < policy.n_sink else "recent"


def _cell(
    ax: Axes,
    x: float,
    y: float,
    role: str,
    number: int,
    token: str,
    size: float,
    new: bool,
    below: bool = False,
) -> None:
    ax.add_patch(Rectangle((x - 0.45, y), 0.9, 0.6, **role_style(role, ax)))
    if new:
        edge = {"edgecolor": ink(ax), "linewidth": 1.6}
        ax.add_patch(Rectangle((x - 0.45, y), 0.9, 0.6, fill=False, zorder=4, **edge))
    colour = {"sink": "#111111", "recent": "white"}.get(role, ink(ax))
    back = None
    if role == "evicted":  # a number on a hatch cannot be read
        back = {"facecolor": role_style(role, ax)["facecolor"], "pad": 0.8, "linewidth": 0}
    ax.text(x, y + 0.3, str(number), ha="center", va="center", size=size, color=colour, bbox=back)
    if token:
        place = (x, y - 0.12) if below else (x, y + 0.72)
        written = {"size": size, "rotation": 90, "ha": "center", "va": "top" if below else "bottom"}
        plain(ax.text(*place, short(token, 9), color=ink(ax), **written))
