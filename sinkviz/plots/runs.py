"""What a policy costs: nll along a text, perplexity against the number of sinks.

Knows nothing about models.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int
from matplotlib.axes import Axes

from sinkviz.plots._labels import label_ends
from sinkviz.plots._parts import (
    axes_or_new,
    log_positions,
    narrow,
    number,
    points,
    size_in_points,
    title,
)
from sinkviz.policies import Dense, Policy, Recompute, SinkWindow, Window, first_eviction
from sinkviz.records import StreamRun
from sinkviz.style import ink, paper, policy_name, policy_styles

MOST_POINTS = 4000
LEAST_START = 4
EVENT_SIZE = 0.85  # of the letters of a legend


def running_mean(
    nll: Float[np.ndarray, " token"], window: int | None
) -> Float[np.ndarray, " token"]:
    """Return the mean of the last ``window`` predicted tokens at each position, NaN without any.

    Looking back only, a change shows after its cause and not before. Without ``window`` the mean
    takes the last half of the text so far.
    """
    known = np.isfinite(nll)
    sums = np.concatenate(([0.0], np.cumsum(np.where(known, nll, 0.0), dtype=float)))
    counts = np.concatenate(([0], np.cumsum(known)))
    end = np.arange(1, len(nll) + 1)
    width = (end + 1) // 2 if window is None else window
    start = np.maximum(0, end - width)
    count = counts[end] - counts[start]
    total = sums[end] - sums[start]
    return np.divide(total, count, out=np.full(len(nll), np.nan), where=count > 0)


def _shown(position: Int[np.ndarray, " point"], log: bool) -> Int[np.ndarray, " shown"]:
    """Return at most ``MOST_POINTS`` of the positions, evenly spaced on the axis, with the last."""
    if len(position) <= MOST_POINTS:
        return position
    spaced = np.geomspace if log else np.linspace
    return position[np.unique(spaced(1, len(position), MOST_POINTS).astype(int) - 1)]


def _checked(runs: StreamRun | Sequence[StreamRun]) -> list[StreamRun]:
    runs = [runs] if isinstance(runs, StreamRun) else list(runs)
    if not runs:
        raise ValueError("no runs to draw; give at least one, such as [score(lm, text, policy)]")
    for run in runs:
        if run.nll.ndim != 1 or not np.isfinite(run.nll).any():
            raise ValueError(
                f"nll must be (token,) with a predicted token, got shape {run.nll.shape} of "
                f"{policy_name(run.policy)}"
            )
    return runs


def _names(runs: Sequence[StreamRun], ax: Axes) -> list[str]:
    """Return a label per run: the policy, and the model where there are several."""
    models = [str(run.provenance.get("model", "?")) for run in runs]
    several = len(set(models)) > 1
    return [
        _name(run.policy, ax) + (f", {model}" if several else "")
        for run, model in zip(runs, models, strict=True)
    ]


def _name(policy: Policy, ax: Axes) -> str:
    """Return a policy's name; the paper's notation, 4+60, where there is little room."""
    return str(policy) if narrow(ax) else policy_name(policy)


def plot_nll(
    runs: StreamRun | Sequence[StreamRun],
    *,
    window: int | None = None,
    train_length: int | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw in one Axes the running mean of the nll along the text, one curve per run.

    Thin lines mark where the first token is evicted and where the training length ends. Labels
    give the perplexity of the whole text. Without ``window`` each point is the mean of the last
    half of the text so far, on a logarithmic axis that begins shortly before the first eviction:
    one figure shows both where a policy breaks and how it goes on.

    Args:
        runs: of the same text, under different policies.
        window: tokens that a point is the mean of, the current and earlier ones, on a linear
            axis; fewer at the beginning.
        train_length: training length of the model, tokens.
        ax: where to draw; a new figure where not given.

    Returns:
        The Axes.

    Raises:
        ValueError: there is no run, a run predicts no token, or ``window`` is below 1.

    Example:
        >>> from sinkviz.policies import Window
        >>> run = StreamRun(Window(2), np.arange(4), np.array([np.nan, 1.0, 2.0, 6.0]))
        >>> plot_nll([run], window=2).lines[0].get_ydata().tolist()
        [1.0, 1.5, 4.0]
    """
    runs = _checked(runs)
    if window is not None and window < 1:
        raise ValueError(f"window must be at least 1 token, got {window}")
    longest = max(len(run.nll) for run in runs)
    firsts = {first_eviction(run.policy, len(run.nll)) for run in runs}
    evictions = sorted(firsts - {None})
    log = window is None and longest > 2 * LEAST_START
    # Until the first eviction all policies see the same.
    begin = max(LEAST_START, evictions[0] // 2 if evictions else 0) if log else 0
    ax = axes_or_new(ax)
    styles = policy_styles([run.policy for run in runs], ax)
    ends, steady = [], []
    for nth, (run, style, name) in enumerate(zip(runs, styles, _names(runs, ax), strict=True)):
        mean = running_mean(run.nll, window)
        position = _shown(np.flatnonzero(np.isfinite(mean)), log)
        last = position[-1]
        # Seven markers per curve, a little further along on each, so that none hides another.
        spaced = np.geomspace if log else np.linspace
        marks = spaced(max(1, begin), longest, 64)[6 + 2 * nth % 9 :: 9]
        at = np.unique(np.searchsorted(position, marks[marks < last]))
        ax.plot(position, mean[position], label=name, markevery=at.tolist(), **style)
        ends.append((float(mean[last]), f"{name}: {number(run.perplexity)}", style))
        # The first few means are of a handful of tokens each, and would set the scale.
        first = begin or min(window or 1, longest // 4)
        steady.append(mean[position[position >= min(first, last)]])
    events = [(one, f"first eviction ({one})") for one in evictions]
    if train_length is not None and begin < train_length < longest:
        events.append((train_length, f"training length ({train_length})"))
    low, high = np.min(np.concatenate(steady)), np.max(np.concatenate(steady))
    row = _row(ax)
    room = max(high - low, 0.1) / (1 - row * len(events))
    ax.set_ylim(low - 0.06 * room, high + (0.06 + row * len(events)) * room)
    if log:
        log_positions(ax, begin, longest)
    else:
        ax.set_xlim(0, longest)
    _mark(ax, sorted(events))
    ax.set_xlabel("text position (tokens)")
    ax.set_ylabel("nll (nats per token)")
    ax.spines[["top", "right"]].set_visible(False)
    span = "half of the text so far" if window is None else f"{window} tokens"
    above = label_ends(ax, ends, header="perplexity, whole text")
    title(ax, f"running mean of nll (last {span})", above)
    return ax


def _row(ax: Axes) -> float:
    """Return the height of a row of event names, as a share of the Axes."""
    return min(0.15, EVENT_SIZE * points("legend.fontsize") * 1.3 / (0.7 * size_in_points(ax)[1]))


def _mark(ax: Axes, events: Sequence[tuple[int, str]]) -> None:
    """Draw a thin line at each text position and name it, one row per name above the curves."""
    for nth, (place, label) in enumerate(events):
        ax.axvline(place, color=ink(ax), linewidth=0.8, linestyle=":", zorder=1.5)
        across = ax.transAxes.inverted().transform(ax.transData.transform((place, 0)))[0]
        ax.annotate(
            label,
            (place, 1 - _row(ax) * nth),
            xycoords=("data", "axes fraction"),
            xytext=(3 if across < 0.6 else -3, -2),
            textcoords="offset points",
            ha="left" if across < 0.6 else "right",
            va="top",
            fontsize=EVENT_SIZE * points("legend.fontsize"),
            bbox={"facecolor": paper(ax), "edgecolor": "none", "pad": 0.5},
        )


def plot_sink_sizes(
    runs: Sequence[StreamRun], *, start: int | None = None, ax: Axes | None = None
) -> Axes:
    """Draw in one Axes the perplexity after eviction against the number of sinks.

    Window attention counts as no sink. ``Dense`` and ``Recompute`` are horizontal lines where
    they are among the runs, and no more than a label where they are far off the scale.

    Args:
        runs: of the same text; several of one policy are averaged.
        start: first text position that counts, tokens; the largest cache where not given, so that
            all runs are judged by the same tokens.
        ax: where to draw; a new figure where not given.

    Returns:
        The Axes.

    Raises:
        ValueError: no run has a Window or SinkWindow policy, or none goes on after ``start``.

    Source: Xiao et al. 2023, arXiv 2309.17453, table 2.

    Example:
        >>> from sinkviz.policies import SinkWindow, Window
        >>> nll = np.log([1.0, 1.0, 1.0, 8.0])
        >>> runs = [StreamRun(Window(2), np.arange(4), nll),
        ...         StreamRun(SinkWindow(1, 1), np.arange(4), nll / 3)]
        >>> plot_sink_sizes(runs, start=3).lines[0].get_ydata().round(6).tolist()
        [8.0, 2.0]
    """
    runs = _checked(runs)
    sized = [run for run in runs if isinstance(run.policy, Window | SinkWindow)]
    if not sized:
        raise ValueError("no run with a Window or SinkWindow policy; its sinks are the x axis")
    if start is None:
        start = max(run.policy.cache_size for run in sized)
    found: dict[Policy, list[float]] = {}
    for run in runs:
        found.setdefault(run.policy, []).append(run.mean_nll(start))
    perplexities = {policy: float(np.exp(np.mean(nlls))) for policy, nlls in found.items()}
    line_of: dict[int, list[Policy]] = {}
    for policy in sorted({run.policy for run in sized}, key=lambda policy: policy.n_sink):
        line_of.setdefault(policy.cache_size, []).append(policy)
    counts = sorted({run.policy.n_sink for run in sized})
    ax = axes_or_new(ax)
    ends = []
    styles = policy_styles([SinkWindow()] * len(line_of), ax)
    for (size, line), style in zip(sorted(line_of.items()), styles, strict=True):
        x = [counts.index(policy.n_sink) for policy in line]
        y = [perplexities[policy] for policy in line]
        ax.plot(x, y, label=f"cache of {size}", **style)
        if isinstance(line[0], Window):
            (look,) = policy_styles(line[:1], ax)
            look |= {"marker": "X", "markersize": 1.8 * style["markersize"], "zorder": 3}
            ax.plot(x[:1], y[:1], label=policy_name(line[0]), **look)
        if len(line_of) > 1:
            ends.append((y[-1], f"cache of {size}", style))
            continue
        neighbours = zip([y[0], *y[:-1]], [*y[1:], y[-1]], strict=True)
        for place, value, (before, after) in zip(x, y, neighbours, strict=True):
            _value(ax, place, value, rises=after > before)
    shown = [perplexities[run.policy] for run in sized]
    low, high = min(shown), max(shown)
    room = max(high - low, 0.05 * high)
    references = [policy for policy in found if isinstance(policy, Dense | Recompute)]
    for policy, style in zip(references, policy_styles(references, ax), strict=True):
        value = perplexities[policy]
        style = {k: style[k] for k in ("color", "linestyle", "linewidth")}
        name = f"{_name(policy, ax)}: {number(value)}"
        if low - room <= value <= high + room:
            ax.axhline(value, label=policy_name(policy), zorder=1.5, **style)
            low, high = min(low, value), max(high, value)
        else:
            name += " (off scale)"
        ends.append((value, name, style))
    ax.set_ylim(low - 0.12 * room, high + 0.2 * room)
    ax.set_xlim(-0.4, len(counts) - 0.6)
    if len(line_of) == 1:
        ax.set_xticks(range(len(counts)), [f"{n}+{size - n}" for n in counts])
        ax.set_xlabel("cache: sinks + recent (tokens)")
    else:
        ax.set_xticks(range(len(counts)), counts)
        ax.set_xlabel("sinks (tokens)")
    ax.set_ylabel(f"perplexity from token {start} on")
    ax.spines[["top", "right"]].set_visible(False)
    above = label_ends(ax, ends) if ends else 0.0
    title(ax, _sink_title(perplexities, line_of), above)
    return ax


def _sink_title(perplexities: dict[Policy, float], line_of: dict[int, list[Policy]]) -> str:
    line = next(iter(line_of.values()))
    said = [
        f"{number(perplexities[policy])} with {policy.n_sink} sink{'s' * (policy.n_sink != 1)}"
        for policy in dict.fromkeys((line[0], line[-1]))
    ]
    return "perplexity " + ", ".join(said) if len(line_of) == 1 else "perplexity and sinks"


def _value(ax: Axes, place: int, value: float, rises: bool) -> None:
    """Write a value above its point, on the side where the curve is lower."""
    ax.annotate(
        number(value),
        (place, value),
        xytext=(-2 if rises else 2, 7),
        textcoords="offset points",
        ha="right" if rises else "left",
        va="bottom",
        fontsize=points("legend.fontsize"),
    )
