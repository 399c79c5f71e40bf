"""Softmax and its variants: where the mass goes when no key is worth looking at.

Knows nothing about models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter

from sinkviz.plots._labels import legend
from sinkviz.plots._parts import axes_or_new, check_width, plain, points, size_in_points, title
from sinkviz.plots._stack import LEAST_SHARE
from sinkviz.style import contrast, ink, paper, role_style

SINK_LOGIT, GATE = 2.0, 0.25

Shares = Mapping[str, Float[np.ndarray, " key"]]
Logits = Sequence[float] | Float[np.ndarray, " key"]


def softmax_variants(
    logits: Logits, *, sink_logit: float = SINK_LOGIT, gate: float = GATE
) -> dict[str, Float[np.ndarray, " key"]]:
    """Return the share of every key under four variants of softmax.

    Args:
        logits: one score per key, nats.
        sink_logit: a learned score without a key.
        gate: factor in [0, 1] on the output of the head.

    Returns:
        Variant -> shares in [0, 1]; what is missing to one goes nowhere.

    Raises:
        ValueError: there is no key, a logit is not a number, or the gate is not in [0, 1].

    Source: Miller 2023, "Attention is off by one"; OpenAI 2025, gpt-oss model card; Qiu et al.
        2025, arXiv 2505.06708 (gated attention).

    Example:
        >>> softmax_variants([0.0, 0.0, 0.0])["off by one"].tolist()
        [0.25, 0.25, 0.25]
    """
    logits = np.asarray(logits, dtype=float)
    if logits.ndim != 1 or not len(logits) or not np.isfinite(logits).all():
        raise ValueError("logits must be one finite number per key, such as [2.0, 0.5, 0.1]")
    if not np.isfinite(sink_logit):
        raise ValueError(f"sink_logit must be a finite number, got {sink_logit}")
    if not 0 <= gate <= 1:
        raise ValueError(f"gate must be in [0, 1], got {gate:g}")

    def shares(null: float) -> np.ndarray:
        top = max(logits.max(), null)
        weights = np.exp(logits - top)
        return weights / (weights.sum() + np.exp(null - top))

    return {
        "standard": shares(-np.inf),
        "off by one": shares(0.0),
        f"sink logit {sink_logit:g}": shares(sink_logit),
        f"gate {gate:g}": gate * shares(-np.inf),
    }


def _checked(shares: Shares) -> dict[str, np.ndarray]:
    """Return the shares with what goes nowhere as the last of each row."""
    if not shares:
        raise ValueError("no shares to draw; give at least one row, such as {'standard': [1.0]}")
    rows = {}
    for name, found in shares.items():
        found = np.asarray(found, dtype=float)
        if not (found >= 0).all() or found.sum() > 1 + 1e-6:
            raise ValueError(
                f"shares must be at least 0 and sum to at most 1, got {found.sum():.3f} in all "
                f"for {name!r}"
            )
        rows[name] = np.append(found, max(0.0, 1 - found.sum()))
    if len({len(row) for row in rows.values()}) > 1:
        raise ValueError("every row of shares must have the same keys")
    return rows


def _draw(ax: Axes, rows: dict[str, np.ndarray], names: Sequence[str]) -> list[Patch]:
    """Draw a bar per row, cut into keys; return the handles of a legend."""
    wide, high = size_in_points(ax)
    size = min(points("legend.fontsize"), 0.3 * high / len(rows))
    looks = {role: role_style(role, ax) for role in ("sink", "recent", "null")}
    for y, row in enumerate(rows.values()):
        left = 0.0
        for key, share in enumerate(row):
            null = key == len(row) - 1
            if null and share < LEAST_SHARE:
                continue
            look = dict(looks["null" if null else "recent" if key else "sink"])
            if not null:
                look |= {"edgecolor": paper(ax), "linewidth": 0.6}
            ax.barh(y, share, left=left, height=0.72, **look)
            percent = f"{100 * share:.0f} %"
            for text in (f"{'nowhere' if null else names[key]}\n{percent}", percent):
                if 0.8 * wide * share > 0.62 * size * (max(map(len, text.split("\n"))) + 1):
                    _write(ax, left + share / 2, y, text, size, null)
                    break
            left += share
    ax.set_yticks(range(len(rows)), list(rows))
    ax.set(xlim=(0, 1), ylim=(len(rows) - 0.5, -0.5), xlabel="share of attention")
    ax.xaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.0f} %"))
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.tick_params(axis="y", length=0)
    named = {"sink": "first key", "recent": "other keys", "null": "nowhere"}
    return [Patch(label=label, **looks[role]) for role, label in named.items()]


def _write(ax: Axes, x: float, y: float, text: str, size: float, null: bool) -> None:
    """Write on a segment: white or black, whichever is further from its colour."""
    colour = ax.patches[-1].get_facecolor()
    dark = contrast("black", colour) > contrast("white", colour)
    back = {"facecolor": paper(ax), "edgecolor": "none", "pad": 1.0} if null else None
    colour = ink(ax) if null else "black" if dark else "white"
    how = {"ha": "center", "va": "center", "fontsize": size, "linespacing": 1.1, "bbox": back}
    plain(ax.text(x, y, text, color=colour, **how))


def plot_softmax(
    data: Shares | Logits,
    *,
    sink_logit: float = SINK_LOGIT,
    gate: float = GATE,
    labels: Sequence[str] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw in one Axes where the mass of a row of attention goes, a bar per variant of softmax.

    Given logits, the variants are: standard, off by one (a further logit of zero), a learned sink
    logit, and a gate on the head's output. Keys stand in their order, the first one orange, the
    others blue; what goes nowhere is hatched.

    Args:
        data: logits, one per key, nats; or the shares themselves, in [0, 1] per key, by name of
            the variant, where what is missing to one goes nowhere.
        sink_logit: a learned score without a key, for logits.
        gate: factor in [0, 1] on the output of the head, for logits.
        labels: names of the keys; their numbers where not given.
        ax: where to draw; a new figure where not given.

    Returns:
        The Axes.

    Raises:
        ValueError: there is no key, a logit is not a number, the gate is not in [0, 1], shares
            sum to more than one, or there are not as many labels as keys.

    Source: Miller 2023, "Attention is off by one"; OpenAI 2025, gpt-oss model card; Qiu et al.
        2025, arXiv 2505.06708 (gated attention).

    Example:
        >>> ax = plot_softmax({"off by one": np.array([0.25, 0.5])})
        >>> [float(bar.get_width()) for bar in ax.patches]
        [0.25, 0.5, 0.25]
    """
    if not isinstance(data, Mapping):
        data = softmax_variants(data, sink_logit=sink_logit, gate=gate)
    rows = _checked(data)
    count = len(next(iter(rows.values()))) - 1
    if labels is not None and len(labels) != count:
        raise ValueError(f"labels must be one per key, {count}, got {len(labels)}")
    ax = axes_or_new(ax)
    above = legend(ax, _draw(ax, rows, labels or [str(key) for key in range(count)]))
    nowhere = ", ".join(f"{100 * row[-1]:.0f}" for row in rows.values())
    title(ax, f"mass that goes nowhere: {nowhere} %", above)
    return ax


def grid_softmax(
    cases: Mapping[str, Sequence[float] | Float[np.ndarray, " key"]],
    *,
    sink_logit: float = SINK_LOGIT,
    gate: float = GATE,
    width: float | None = None,
) -> Figure:
    """Draw the variants of softmax for several sets of logits, in a figure of its own.

    Args:
        cases: name -> one score per key, nats.
        sink_logit: a learned score without a key.
        gate: factor in [0, 1] on the output of the head.
        width: of the figure, inches; 9 where not given. Below 7 the panels stand one above the
            other.

    Returns:
        The figure, with one legend above the panels.

    Raises:
        ValueError: there is no case, or logits or gate are out of range.

    Example:
        >>> cases = {"one good key": [4.0, 0.0, 0.0], "no good key": [-2.0, -2.0, -2.0]}
        >>> [ax.get_title(loc="left") for ax in grid_softmax(cases).axes]
        ['one good key', 'no good key']
    """
    if not cases:
        raise ValueError("no cases to draw; give at least one, such as {'even': [0.0, 0.0]}")
    drawn = {
        name: _checked(softmax_variants(logits, sink_logit=sink_logit, gate=gate))
        for name, logits in cases.items()
    }
    width = 9.0 if width is None else check_width(width)
    beside = width >= 7
    shape = (1, len(cases)) if beside else (len(cases), 1)
    high = 0.4 * width if beside else 0.4 + 0.6 * width * len(cases)
    figure, axes = plt.subplots(
        *shape, sharex=True, sharey=True, squeeze=False, figsize=(width, high), layout="constrained"
    )
    for ax, (name, rows) in zip(axes.flat, drawn.items(), strict=True):
        keys = range(len(rows["standard"]) - 1)
        handles = _draw(ax, rows, [str(key) for key in keys])
        title(ax, name)
        if not beside and ax is not axes.flat[-1]:
            ax.set_xlabel("")
    figure.legend(handles=handles, loc="outside upper center", ncols=3, frameon=False)
    return figure
