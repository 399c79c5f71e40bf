"""Drag the logits of a row of attention, and see where its mass goes under four softmaxes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import traitlets
from matplotlib.figure import Figure

from sinkviz.attention import null_softmax
from sinkviz.plots.softmax import plot_softmax
from sinkviz.style import COLOURS, ink
from sinkviz.widgets.teaching import TeachingWidget, teaching_module

LIMIT = 8.0  # of a logit, to either side
FEWEST, MOST = 2, 12  # keys
VARIANTS = ("standard", "off by one", "sink logit", "gated")

# name -> logits, logit of the sink, factor of the gate
PRESETS: dict[str, tuple[list[float], float, float]] = {
    "one good key": ([0.0, -1.0, 4.0, -0.5, 0.5, -1.0], 1.0, 0.9),
    "no good key": ([-4.0, -4.5, -3.5, -4.0, -5.0, -4.0], 1.0, 0.05),
    "the first key as a sink": ([5.0, -0.5, 0.0, -1.0, 0.5, 0.0], 1.0, 0.9),
    "all alike": ([0.0] * 6, 0.0, 0.5),
}


def shares(
    logits: Sequence[float], sink_logit: float = 0.0, gate: float = 0.5
) -> dict[str, np.ndarray]:
    """Return where the mass of a row goes under each softmax; what is missing to 1 goes nowhere.

    The gate multiplies what a head puts out, which is as if all its attention were that much less.

    Args:
        logits: scores of the keys, nats.
        sink_logit: the further logit that takes mass to nowhere, nats; 0 is off by one.
        gate: factor in [0, 1] on the output of the head.

    Returns:
        A share per key for ``standard``, ``off by one``, ``sink logit`` and ``gated``.

    Source: Miller 2023, "Attention is off by one"; OpenAI 2025, gpt-oss model card; Qiu et al.
        2025, arXiv 2505.06708 (one gate per head).

    Example:
        >>> {name: row.sum().round(2).item() for name, row in shares([0.0, 0.0]).items()}
        {'standard': 1.0, 'off by one': 0.67, 'sink logit': 0.67, 'gated': 0.5}
    """
    scores = torch.tensor([[list(logits)]], dtype=torch.float64)
    nulls = [None, torch.zeros(1), torch.tensor([sink_logit], dtype=torch.float64)]
    rows = [null_softmax(scores, null)[0, 0].numpy() for null in nulls]
    return dict(zip(VARIANTS, [*rows, gate * rows[0]], strict=True))


class SoftmaxBench(TeachingWidget):
    """Drag the logits of the keys and see where the mass goes, under four kinds of softmax.

    Standard softmax gives all its mass to some key, even where none is any good. The other three
    may give it to nowhere: off by one, with a learned sink logit, and with a gate.

    Args:
        logits: scores of 2 to 12 keys, nats in [-8, 8]; the preset ``one good key`` where not
            given.
        sink_logit: nats in [-8, 8].
        gate: factor in [0, 1] on the output of the head.

    Raises:
        ValueError: there are too few or too many keys, or a number is out of its range.

    Example:
        >>> bench = SoftmaxBench([0.0, 0.0, 0.0])
        >>> bench.shares["off by one"].tolist()
        [0.25, 0.25, 0.25]
    """

    _esm = teaching_module("softmax_bench")

    logits = traitlets.List(traitlets.Float()).tag(sync=True)
    sink_logit = traitlets.Float().tag(sync=True)
    gate = traitlets.Float().tag(sync=True)
    limit = traitlets.Float(LIMIT).tag(sync=True)
    presets = traitlets.List(help="name, logits, sink logit, gate").tag(sync=True)

    def __init__(
        self, logits: Sequence[float] | None = None, *, sink_logit: float = 1.0, gate: float = 0.9
    ) -> None:
        found = next(iter(PRESETS.values()))[0] if logits is None else [float(x) for x in logits]
        presets = [[name, *values] for name, values in PRESETS.items()]
        super().__init__(logits=found, sink_logit=sink_logit, gate=gate, presets=presets)

    @traitlets.validate("logits", "sink_logit", "gate")
    def _within(self, proposal: traitlets.Bunch) -> Any:
        name, value = proposal["trait"].name, proposal["value"]
        numbers = value if name == "logits" else [value]
        if name == "logits" and not FEWEST <= len(numbers) <= MOST:
            raise ValueError(f"logits must be of {FEWEST} to {MOST} keys, got {len(numbers)}")
        least, most = (0, 1) if name == "gate" else (-LIMIT, LIMIT)
        if wrong := [one for one in numbers if not least <= one <= most]:
            raise ValueError(f"{name} must be in {least:g}..{most:g}, got {wrong[0]:g}")
        return value

    def preset(self, name: str) -> None:
        """Set the logits, the sink logit and the gate to a preset.

        Raises:
            ValueError: there is no such preset.
        """
        if name not in PRESETS:
            raise ValueError(f"no preset {name!r}; known are {', '.join(PRESETS)}")
        with self.hold_sync():
            self.logits, self.sink_logit, self.gate = PRESETS[name]

    @property
    def shares(self) -> dict[str, np.ndarray]:
        """Where the mass goes: a share per key for each softmax."""
        return shares(self.logits, self.sink_logit, self.gate)

    def draw(self, figure: Figure) -> None:
        """Draw the bench as it stands into an empty figure."""
        above, below = figure.subplots(2, 1, height_ratios=[2, 3])
        colours = [COLOURS["sink"], *[COLOURS["recent"]] * (len(self.logits) - 1)]
        above.bar(range(len(self.logits)), self.logits, color=colours, width=0.7)
        above.axhline(0, color=ink(above), linewidth=0.8)
        above.set(xlabel="key", ylabel="logit (nats)", xticks=range(len(self.logits)))
        above.spines[["top", "right"]].set_visible(False)
        above.set_title(
            f"logits of the keys; sink logit {self.sink_logit:.1f}, gate {self.gate:.2f}",
            loc="left",
        )
        plot_softmax(self.shares, ax=below)

    def __repr__(self) -> str:
        written = ", ".join(f"{one:g}" for one in self.logits)
        return f"SoftmaxBench([{written}], sink_logit={self.sink_logit:g}, gate={self.gate:g})"
