"""Two sliders, the sinks and the recent tokens, and at once what a text costs under that cache."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import traitlets
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sinkviz.metrics import ROLES
from sinkviz.models import LM, Text, few_threads
from sinkviz.plots.runs import plot_nll, running_mean
from sinkviz.policies import Dense, Policy, SinkWindow, Window
from sinkviz.records import StreamRun
from sinkviz.scoring import score
from sinkviz.style import COLOURS, STACK, faint, ink, role_style
from sinkviz.widgets.common import Widget, as_bytes, finite, module, sentence

POINTS = 1500  # of a curve at most; a mean over a sixteenth of the text is smooth between them


def policy_of(n_sink: int, n_recent: int) -> Policy:
    """Return the policy of a setting; no sink at all is window attention.

    Example:
        >>> policy_of(4, 60), policy_of(0, 64)
        (SinkWindow(n_sink=4, n_recent=60), Window(n_recent=64))
    """
    return SinkWindow(n_sink, n_recent) if n_sink else Window(n_recent)


class SinkSlider(Widget):
    """Move ``n_sink`` and ``n_recent`` and see how well the model still predicts a text.

    Shows the running mean of the nll along the text beside full attention and the setting it
    began with, the perplexity after eviction for every ``n_sink`` tried so far, and where the
    attention goes by role. Every setting is scored once and remembered; ``to_html`` makes a page
    that carries the answers to all numbers of sinks.

    Args:
        lm: the language model; it is left exactly as it was.
        text: text or ids; the first ``n_tokens`` of it are used.
        n_sink: first tokens kept, at the start; 0 is window attention.
        n_recent: most recent tokens kept, at the start.
        max_sink: end of the sinks' slider, tokens.
        max_recent: end of the other slider, tokens; the training length where not given.
        n_tokens: longest text to score, tokens; more takes longer to answer.

    Raises:
        ValueError: the text is empty or has one token, a number is out of its range, or the model
            has absolute positions, for which no window is defined.

    Example:
        >>> import sinkviz as sv
        >>> sv.SinkSlider(sv.load("classroom-rope"), "Once upon a time " * 50)  # doctest: +SKIP
    """

    _esm = module("sink_slider")

    n_sink = traitlets.Int().tag(sync=True)
    n_recent = traitlets.Int().tag(sync=True)
    max_sink = traitlets.Int().tag(sync=True)
    max_recent = traitlets.Int().tag(sync=True)
    lm_name = traitlets.Unicode().tag(sync=True)
    n_tokens = traitlets.Int(help="length of the text").tag(sync=True)
    train_length = traitlets.Int(help="of the model; 0 is unknown").tag(sync=True)
    window = traitlets.Int(help="tokens that a point of a curve is the mean of").tag(sync=True)
    roles = traitlets.List(traitlets.Unicode(), help="order of mass").tag(sync=True)
    every = traitlets.Int(help="tokens from point to point of a curve").tag(sync=True)
    # The answer to a setting. Curves are float32, and their last point is the text's last token.
    shown = traitlets.List(traitlets.Int(), help="the n_sink and n_recent answered").tag(sync=True)
    start = traitlets.Int(help="first position that the perplexity counts").tag(sync=True)
    perplexity = traitlets.Float(allow_none=True).tag(sync=True)
    seen = traitlets.Bytes(help="perplexity per n_sink, NaN where not tried").tag(sync=True)
    mass = traitlets.Bytes(help="share per role after start").tag(sync=True)
    curve = traitlets.Bytes().tag(sync=True)
    first = traitlets.List(traitlets.Int(), help="the setting it began with").tag(sync=True)
    first_curve = traitlets.Bytes().tag(sync=True)
    dense_curve = traitlets.Bytes().tag(sync=True)
    limits = traitlets.List(traitlets.Float(), help="of the curves so far, nats").tag(sync=True)

    def __init__(
        self,
        lm: LM,
        text: Text,
        *,
        n_sink: int = 4,
        n_recent: int = 60,
        max_sink: int = 8,
        max_recent: int | None = None,
        n_tokens: int = 1000,
    ) -> None:
        self._lm, self._ids = lm, lm.encode(text)[:n_tokens]
        if len(self._ids) < 2:
            raise ValueError("SinkSlider needs a text of two tokens at least, and n_tokens above 1")
        if max_recent is None:
            max_recent = max(n_recent, lm.train_length or 128)
        for name, value, least, most in (
            ("n_sink", n_sink, 0, max_sink),
            ("n_recent", n_recent, 1, max_recent),
        ):
            if not least <= value <= most:
                raise ValueError(f"{name} must be in {least}..{most}, got {value}")
        self._asked = False
        self._runs: dict[tuple[int, int], StreamRun] = {}
        first_run = self._run(n_sink, n_recent)
        self._dense = score(lm, self._ids, Dense())
        super().__init__(
            n_sink=n_sink,
            n_recent=n_recent,
            max_sink=max_sink,
            max_recent=max_recent,
            lm_name=lm.name,
            n_tokens=len(self._ids),
            train_length=lm.train_length or 0,
            window=int(np.clip(len(self._ids) // 16, 16, 1024)),
            every=-(-len(self._ids) // POINTS),
            roles=list(STACK),
            first=[n_sink, n_recent],
        )
        self.dense_curve = as_bytes(self._curve(self._dense))
        self.first_curve = as_bytes(self._curve(first_run))
        self.limits = self._limits(self._dense)
        self._answer()
        self.observe(self._on_setting, names=["n_sink", "n_recent"])

    @traitlets.validate("n_sink", "n_recent")
    def _within(self, proposal: Any) -> int:
        name, value = proposal["trait"].name, proposal["value"]
        least = 0 if name == "n_sink" else 1
        most = self.max_sink if name == "n_sink" else self.max_recent
        if not least <= value <= most:
            raise traitlets.TraitError(f"{name} must be in {least}..{most}, got {value}")
        return value

    def _on_setting(self, change: Any) -> None:
        # Of moves that come in while one is answered, only the newest counts.
        if not self._asked:
            self._asked = True
            self.at_home(self._answer_safely)

    def _answer_safely(self) -> None:
        self._asked = False
        try:
            self._answer()
            self.error = ""
        except Exception as error:  # an exception would end in the server's log, unseen
            self.error = sentence(error)

    def _run(self, n_sink: int, n_recent: int) -> StreamRun:
        setting = (n_sink, n_recent)
        if setting not in self._runs:
            with few_threads(self._lm):
                self._runs[setting] = score(self._lm, self._ids, policy_of(*setting), mass=True)
        return self._runs[setting]

    def _curve(self, run: StreamRun) -> np.ndarray:
        means = running_mean(run.nll, self.window)
        return means[(len(means) - 1) % self.every :: self.every]

    def _limits(self, *runs: StreamRun) -> list[float]:
        """Return limits for the curves of these runs and of all that has been shown, nats."""
        # The first few means are of a handful of tokens each, and would set the scale.
        first = min(self.window, self.n_tokens // 8)
        curves = [running_mean(run.nll, self.window)[first:] for run in runs]
        low, high = self.limits or (math.inf, -math.inf)
        lows, highs = map(np.nanmin, curves), map(np.nanmax, curves)
        return [float(min(low, *lows)), float(max(high, *highs))]

    def _frame(self, n_sink: int, n_recent: int) -> dict[str, Any]:
        """Return the answer to a setting: the values of the traits that depend on it."""
        run = self._run(n_sink, n_recent)
        # The first position at which every setting of the sinks' slider has evicted.
        start = n_recent + self.max_sink
        start = start if start < self.n_tokens - 1 else 0
        tried = np.full(self.max_sink + 1, np.nan)
        for (other_sink, other_recent), other in self._runs.items():
            if other_recent == n_recent:
                tried[other_sink] = np.exp(other.mean_nll(start))
        shares = np.nanmean(run.mass[start:], axis=0, dtype=float)
        return {
            "start": start,
            "perplexity": finite(tried[n_sink]),
            "seen": as_bytes(tried),
            "mass": as_bytes([shares[ROLES.index(role)] for role in self.roles]),
            "curve": as_bytes(self._curve(run)),
        }

    def _answer(self) -> None:
        setting = self.n_sink, self.n_recent
        frame = self._frame(*setting)
        with self.hold_sync():
            self.limits = self._limits(self._run(*setting))
            for name, value in frame.items():
                self.set_trait(name, value)
            self.shown = list(setting)

    def page_state(self, *, n_recent: Sequence[int] = ()) -> dict[str, Any]:
        """Return what a page needs to answer without a kernel.

        Settings that have not been tried yet are scored now, each for as long as the slider takes
        to answer. A setting takes 6 kB of the page at most, however long the text is.

        Args:
            n_recent: further stops of the page's slider for recent tokens. The page has the present
                value and the one it began with, each with every number of sinks.

        Raises:
            ValueError: a stop is beyond the slider.
        """
        stops = sorted({self.first[1], self.n_recent, *n_recent})
        if not 1 <= stops[0] <= stops[-1] <= self.max_recent:
            raise ValueError(f"n_recent must be in 1..{self.max_recent}, got {list(n_recent)}")
        settings = [(n_sink, stop) for stop in stops for n_sink in range(self.max_sink + 1)]
        runs = [self._run(*setting) for setting in settings]
        frames = {f"{a}+{b}": self._frame(a, b) for a, b in settings}
        state = super().page_state() | self._frame(self.n_sink, self.n_recent)
        return state | {"limits": self._limits(*runs), "stops": stops, "frames": frames}

    @property
    def policy(self) -> Policy:
        """The policy that the sliders stand for."""
        return policy_of(self.n_sink, self.n_recent)

    @property
    def run(self) -> StreamRun:
        """The text's run under that policy, with its mass by role."""
        return self._run(self.n_sink, self.n_recent)

    def figure(self) -> Figure:
        """Return the widget as it stands, as a matplotlib figure of its own."""
        figure = plt.figure(figsize=(9.5, 5.5), layout="constrained")
        self.draw(figure)
        return figure

    def draw(self, figure: Figure) -> None:
        """Draw the widget as it stands into an empty figure."""
        axes = figure.subplot_mosaic(
            [["nll", "nll"], ["mass", "sizes"]], height_ratios=[2, 1], width_ratios=[1, 1]
        )
        first = self._runs[tuple(self.first)]
        runs = [self._dense, first, self.run] if self.run is not first else [self._dense, first]
        plot_nll(
            runs,
            window=self.window,
            train_length=self.train_length or None,
            ax=axes["nll"],
        )
        self._draw_mass(axes["mass"])
        self._draw_sizes(axes["sizes"])

    def _draw_mass(self, ax: Axes) -> None:
        left = 0.0
        for role, share in zip(self.roles, np.frombuffer(self.mass, "<f4").tolist(), strict=True):
            if share >= 5e-4:
                label = f"{role} {share:.0%}"
                ax.barh([0], [share], left=left, label=label, **role_style(role, ax))
                left += share
        ax.set(xlim=(0, 1), ylim=(-1.4, 0.5), yticks=[], xlabel="share of attention")
        ax.spines[["left", "top", "right"]].set_visible(False)
        ax.set_title("where the attention goes", loc="left")
        ax.legend(loc="lower left", ncols=4, frameon=False, handlelength=1.2, columnspacing=1.2)

    def _draw_sizes(self, ax: Axes) -> None:
        tried = np.frombuffer(self.seen, "<f4")
        for n_sink, value in enumerate(tried):
            if np.isfinite(value):
                colour = COLOURS["sink" if n_sink else "evicted"]
                now = n_sink == self.n_sink
                ax.bar([n_sink], [value], color=colour if now else faint(ax, 0.25))
                ax.annotate(
                    f"{value:.1f}",
                    (n_sink, value),
                    (0, 2),
                    ha="center",
                    textcoords="offset points",
                    fontsize="small",
                    color=ink(ax),
                )
        ax.set(xlim=(-0.6, self.max_sink + 0.6), xticks=range(self.max_sink + 1))
        ax.set(xlabel="sinks (tokens)", ylabel="perplexity")
        ax.spines[["top", "right"]].set_visible(False)
        ax.margins(y=0.2)
        ax.set_title(f"perplexity from token {self.start} on", loc="left")

    def __repr__(self) -> str:
        return f"SinkSlider({self.lm_name}: {self.n_tokens} tokens, {self.policy!r})"
