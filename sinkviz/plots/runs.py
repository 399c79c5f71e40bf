"""What a policy costs: nll along a text, perplexity against the number of sinks.

Knows nothing about models.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from sinkviz.plots._parts import axes_or_new, label_ends, log_positions, number, points, title
from sinkviz.policies import Dense, Policy, Recompute, SinkWindow, Window
from sinkviz.records import StreamRun
from sinkviz.style import ink, paper, policy_name, policy_styles

MOST_POINTS = 4000


def _running_mean(nll: np.ndarray, window: int) -> np.ndarray:
    """Return the mean of the last ``window`` predicted tokens at each position, NaN without any.

    Looking back only, a change shows after its cause and not before.
    """
    known = np.isfinite(nll)
    sums = np.concatenate(([0.0], np.cumsum(np.where(known, nll, 0.0), dtype=float)))
    counts = np.concatenate(([0], np.cumsum(known)))
    end = np.arange(1, len(nll) + 1)
    start = np.maximum(0, end - window)
    count = counts[end] - counts[start]
    total = sums[end] - sums[start]
    return np.divide(total, count, out=np.full(len(nll), np.nan), where=count > 0)


def _first_eviction(run: StreamRun) -> int | None:
    """Return the first text position whose token no longer sees the whole text."""
    size = run.policy.cache_size
    return size if size is not None and size < len(run.nll) else None


def _checked(runs: Sequence[StreamRun]) -> list[StreamRun]:
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


def _names(runs: Sequence[StreamRun]) -> list[str]:
    """Return a label per run: the policy, and the model where there are several."""
    models = [str(run.provenance.get("model", "?")) for run in runs]
    several = len(set(models)) > 1
    return [
        policy_name(run.policy) + (f", {model}" if several else "")
        for run, model in zip(runs, models, strict=True)
    ]


def plot_nll(
    runs: Sequence[StreamRun],
    *,
    window: int | None = None,
    train_length: int | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw in one Axes the running mean of the nll along the text, one curve per run.

    Thin lines mark where the first token is evicted and where the training length ends. The
    position axis is logarithmic where the text is more than 8 times as long as the cache. Labels
    give the perplexity of the whole run.

    Args:
        runs: of the same text, under different policies.
        window: tokens that a point is the mean of, the current and earlier ones; fewer at the
            beginning. A sixteenth of the text where not given, between 16 and 1024.
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
    longest = max(len(run.nll) for run in runs)
    if window is None:
        window = int(np.clip(longest // 16, 16, 1024))
    if window < 1:
        raise ValueError(f"window must be at least 1 token, got {window}")
    ax = axes_or_new(ax)
    evictions = sorted({e for run in runs if (e := _first_eviction(run)) is not None})
    log = bool(evictions) and longest > 8 * evictions[0]
    styles = policy_styles([run.policy for run in runs], ax)
    ends, steady = [], []
    for run, style, name in zip(runs, styles, _names(runs), strict=True):
        mean = _running_mean(run.nll, window)
        position = np.flatnonzero(np.isfinite(mean))
        if len(position) > MOST_POINTS:
            spaced = np.geomspace if log else np.linspace
            chosen = spaced(1, len(position), MOST_POINTS).astype(int) - 1
            position = position[np.unique(chosen)]
        ax.plot(position, mean[position], label=name, markevery=0.12, **style)
        ends.append((mean[position[-1]], f"{name}: {number(run.perplexity)}", style))
        # The first few means are of a handful of tokens each, and would set the scale.
        steady.append(mean[position[position >= min(window, len(mean) // 8)]])
    low, high = np.min(np.concatenate(steady)), np.max(np.concatenate(steady))
    events = [(one, f"first eviction ({one})") for one in evictions]
    if train_length is not None:
        events.append((train_length, f"training length ({train_length})"))
    room = max(high - low, 0.1)
    ax.set_ylim(low - 0.06 * room, high + (0.06 + 0.09 * len(events)) * room)
    if log:
        log_positions(ax, 4, longest)
    else:
        ax.set_xlim(0, longest)
    for row, (place, label) in enumerate(sorted(events)):
        ax.axvline(place, color=ink(ax), linewidth=0.8, linestyle=":", zorder=1.5)
        ax.annotate(
            label,
            (place, 1 - 0.085 * row),
            xycoords=("data", "axes fraction"),
            xytext=(3, -2),
            textcoords="offset points",
            va="top",
            fontsize=0.85 * points("legend.fontsize"),
        )
    ax.set_xlabel("text position (tokens)")
    ax.set_ylabel("nll (nats per token)")
    ax.spines[["top", "right"]].set_visible(False)
    title(ax, f"nll along the text, mean of the last {window} tokens")
    label_ends(ax, ends, header="perplexity")
    return ax


def plot_sink_sizes(
    runs: Sequence[StreamRun], *, start: int | None = None, ax: Axes | None = None
) -> Axes:
    """Draw in one Axes the perplexity after eviction against the number of sinks.

    Window attention counts as no sink. ``Dense`` and ``Recompute`` are horizontal lines where
    they are among the runs, and an arrow where they are far off the scale.

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
        >>> from sinkviz.policies import Dense, Policy, Recompute, SinkWindow, Window
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
        style |= {"markersize": 7}
        x = [counts.index(policy.n_sink) for policy in line]
        y = [perplexities[policy] for policy in line]
        ax.plot(x, y, label=f"cache of {size}", **style)
        for place, value in zip(x, y, strict=True):
            _value(ax, place, value)
        if len(line_of) > 1:
            ends.append((y[-1], f"cache of {size}", style))
    shown = [perplexities[run.policy] for run in sized]
    low, high = min(shown), max(shown)
    room = max(high - low, 0.05 * high)
    references = [policy for policy in found if isinstance(policy, Dense | Recompute)]
    for policy, style in zip(references, policy_styles(references, ax), strict=True):
        value = perplexities[policy]
        style = {k: style[k] for k in ("color", "linestyle", "linewidth")}
        name = f"{policy_name(policy)}: {number(value)}"
        if low - room <= value <= high + room:
            ax.axhline(value, label=policy_name(policy), zorder=1.5, **style)
            low, high = min(low, value), max(high, value)
        else:
            name += " (off scale)"
        ends.append((value, name, style))
    ax.set_ylim(low - 0.12 * room, high + 0.2 * room)
    ax.set_xlim(-0.4, len(counts) - 0.6)
    if len(line_of) == 1:
        ax.set_xticks(range(len(counts)), [str(policy) for policy in line])
        ax.set_xlabel("cache: sinks + recent (tokens)")
    else:
        ax.set_xticks(range(len(counts)), counts)
        ax.set_xlabel("sinks (tokens)")
    ax.set_ylabel(f"perplexity from token {start} on")
    ax.spines[["top", "right"]].set_visible(False)
    title(ax, "what the first tokens are worth")
    if ends:
        label_ends(ax, ends)
    return ax


def _value(ax: Axes, place: float, value: float) -> None:
    """Write a value above its point, on a patch of paper so that no line runs through it."""
    ax.annotate(
        number(value),
        (place, value),
        xytext=(0, 8),
        textcoords="offset points",
        ha="center",
        va="bottom",
        fontsize=points("legend.fontsize"),
        bbox={"facecolor": paper(ax), "edgecolor": "none", "pad": 1, "alpha": 0.8},
    )
