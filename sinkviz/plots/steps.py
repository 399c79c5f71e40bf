"""Where attention goes while a text is read or written: the mass of every role, step by step.

Knows nothing about models.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol, runtime_checkable

import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from sinkviz.metrics import ROLES
from sinkviz.plots._labels import legend
from sinkviz.plots._parts import axes_or_new, check_width, fitting, points, title
from sinkviz.plots._stack import draw_stack, role_labels
from sinkviz.plots.runs import running_mean
from sinkviz.policies import Policy, first_eviction
from sinkviz.records import StreamRun
from sinkviz.style import ink, paper, policy_name

SMOOTH = 8  # steps that a point is the mean of
COUNTED = (4, 64)  # sinks and recent tokens that steps and runs count by


@runtime_checkable
class Looked(Protocol):
    """A step that tells where its attention went, such as ``sinkviz.Step``."""

    position: int
    mass: dict[str, float] | None


Steps = StreamRun | Iterable[Looked]


def _table(
    steps: Steps, window: int
) -> tuple[Int[np.ndarray, " step"], Float[np.ndarray, "step role"]]:
    """Return the text position of each query, and its shares, mean of the last ``window``."""
    if window < 1:
        raise ValueError(f"window must be at least 1 step, got {window}")
    if isinstance(steps, StreamRun):
        if steps.mass is None:
            raise ValueError(f"the run of {steps.policy} recorded no mass; score with capture=True")
        known = np.isfinite(steps.mass).all(-1)
        position, shares = np.flatnonzero(known), np.asarray(steps.mass[known], dtype=float)
    else:
        steps = list(steps)
        if not steps or any(step.mass is None for step in steps):
            raise ValueError("no step tells its mass; stream or compare with capture=True")
        # The query is the token before the one that a step predicts.
        position = np.array([step.position - 1 for step in steps])
        shares = np.array([[step.mass[role] for role in ROLES] for step in steps])
    if not len(shares):
        raise ValueError("no step tells its mass; give at least one")
    return position, np.stack([running_mean(share, window) for share in shares.T], 1)


def _draw(ax: Axes, steps: Steps, policy: Policy | None, window: int) -> tuple[list[Patch], float]:
    """Draw one lane; return the handles of its legend, and the mean share of its sinks."""
    position, shares = _table(steps, window)
    handles = draw_stack(ax, position, shares, role_labels(*COUNTED), bars=False)
    ax.set_xlim(position[0], max(position[-1], position[0] + 1))
    ax.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
    ax.set_ylabel("share of attention")
    evicted = None if policy is None else first_eviction(policy, int(position[-1]) + 1)
    if evicted is not None and position[0] < evicted < position[-1]:
        ax.axvline(evicted, color="black", linewidth=1.6)
        ax.axvline(evicted, color="white", linewidth=1.0, linestyle=(0, (3, 3)))
        late = evicted > position.mean()
        ax.annotate(
            f"first eviction ({evicted})",
            (evicted, 1),
            xycoords=("data", "axes fraction"),
            xytext=(-4 if late else 4, -4),
            textcoords="offset points",
            ha="right" if late else "left",
            va="top",
            fontsize=0.85 * points("legend.fontsize"),
            color=ink(ax),
            bbox={"facecolor": paper(ax), "edgecolor": "none", "pad": 1.0, "alpha": 0.85},
        )
    return handles, float(shares[:, ROLES.index("sink")].mean())


def plot_mass_steps(
    steps: StreamRun | Iterable[Looked],
    *,
    policy: Policy | None = None,
    window: int = SMOOTH,
    ax: Axes | None = None,
) -> Axes:
    """Draw in one Axes how attention divides among the roles while a text is read or written.

    Areas are stacked as in ``plot_mass``; sinks are the first 4 tokens of the text, recent keys
    the last 64. What goes nowhere ends the stack, hatched. A line marks the first eviction.

    Args:
        steps: a lane of ``stream`` or ``compare`` with ``capture=True``, or a run that recorded
            its mass.
        policy: that the steps were made under; that of a run is known.
        window: steps that a point is the mean of, the current and earlier ones.
        ax: where to draw; a new figure where not given.

    Returns:
        The Axes.

    Raises:
        ValueError: no step tells its mass, or ``window`` is below 1.

    Example:
        >>> from types import SimpleNamespace as Step
        >>> parts = {"sink": 0.75, "recent": 0.25, "middle": 0.0, "self": 0.0, "null": 0.0}
        >>> ax = plot_mass_steps([Step(position=n, mass=parts) for n in range(1, 9)])
        >>> ax.get_title(loc="left")
        'mass by role: sinks take 75 %'
    """
    if isinstance(steps, StreamRun):
        policy = steps.policy
    else:
        steps = list(steps)
    _table(steps, window)  # an error leaves no figure behind
    ax = axes_or_new(ax)
    handles, sink = _draw(ax, steps, policy, window)
    ax.set_xlabel("query (text position, tokens)")
    whose = "mass by role" if policy is None else policy_name(policy)
    title(ax, f"{whose}: sinks take {sink * 100:.0f} %", legend(ax, handles))
    return ax


def grid_mass_steps(
    lanes: Mapping[Policy, StreamRun | Iterable[Looked]],
    *,
    window: int = SMOOTH,
    width: float | None = None,
) -> Figure:
    """Draw the mass by role of several policies, one above the other, in a figure of its own.

    Args:
        lanes: policy -> its steps, such as ``dict(zip(policies, zip(*compare(...))))``; or its run.
        window: steps that a point is the mean of, the current and earlier ones.
        width: of the figure, inches; 8 where not given.

    Returns:
        The figure, with one legend above the panels.

    Raises:
        ValueError: there is no lane, or a step does not tell its mass.

    Example:
        >>> from types import SimpleNamespace as Step
        >>> from sinkviz.policies import SinkWindow, Window
        >>> parts = {"sink": 0.75, "recent": 0.25, "middle": 0.0, "self": 0.0, "null": 0.0}
        >>> steps = [Step(position=n, mass=parts) for n in range(1, 9)]
        >>> figure = grid_mass_steps({Window(64): steps, SinkWindow(4, 60): steps})
        >>> [ax.get_title(loc="left") for ax in figure.axes]
        ['Window 0+64: sinks take 75 %', 'SinkWindow 4+60: sinks take 75 %']
    """
    if not lanes:
        raise ValueError("no lanes to draw; give at least one policy with its steps")
    given = {
        policy: steps if isinstance(steps, StreamRun) else list(steps)
        for policy, steps in lanes.items()
    }
    for steps in given.values():
        _table(steps, window)
    width = 8.0 if width is None else check_width(width)
    high = fitting(width, 0.7 + (0.6 + 0.15 * width) * len(given))
    figure, axes = plt.subplots(
        len(given), 1, sharex=True, squeeze=False, figsize=(width, high), layout="constrained"
    )
    named: dict[str, Patch] = {}
    for ax, (policy, steps) in zip(axes.flat, given.items(), strict=True):
        handles, sink = _draw(ax, steps, policy, window)
        named |= {handle.get_label(): handle for handle in handles}
        title(ax, f"{policy_name(policy)}: sinks take {sink * 100:.0f} %")
        ax.set_ylabel("")
    figure.supylabel("share of attention", fontsize=points("axes.labelsize"))
    axes.flat[-1].set_xlabel("query (text position, tokens)")
    columns = len(named) if width > 5 else 2
    figure.legend(
        handles=list(named.values()), loc="outside upper center", ncols=columns, frameon=False
    )
    return figure
