"""A slider over training: when sinks are born, head by head, beside the loss."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import traitlets
from jaxtyping import Float
from matplotlib.figure import Figure

from sinkviz.metrics import SINK_EPSILON
from sinkviz.models import assets_folder, bundled
from sinkviz.plots.birth import plot_birth
from sinkviz.plots.first_token import plot_first_token
from sinkviz.style import ink
from sinkviz.widgets.common import as_bytes
from sinkviz.widgets.teaching import TeachingWidget, as_labels, teaching_module

Snapshot = Mapping[str, Any]
One = str | Path | Sequence[Snapshot]
NEEDED = ("step", "loss", "sink_rate", "first_token")
MOST_MODELS = 6
MOST_NUMBERS = 22_000  # shares of heads that a saved notebook holds
STEPS = 65_535  # of a share, from 0 to 1


def load_growth(source: One) -> list[Snapshot]:
    """Return the snapshots of a training, in the order of its steps.

    Args:
        source: name of a bundled model, the path of a ``growth.jsonl`` or of its folder, or the
            snapshots themselves.

    Raises:
        FileNotFoundError: there is no such model or file.
        ValueError: a snapshot lacks something, or they do not fit together.

    Example:
        >>> snapshots = [{"step": 10, "loss": 7.5, "sink_rate": 0.0, "first_token": [[0.01]]}]
        >>> load_growth(snapshots)[0]["step"]
        10
    """
    if isinstance(source, str | Path):
        lines = _growth_file(source).read_text(encoding="utf-8").splitlines()
        snapshots = [json.loads(line) for line in lines if line.strip()]
    else:
        snapshots = [dict(one) for one in source]
    if not snapshots:
        raise ValueError("there is no snapshot of growth; give at least one")
    for one in snapshots:
        if missing := [name for name in NEEDED if name not in one]:
            raise ValueError(
                f"a snapshot of growth lacks {', '.join(missing)}; it has {sorted(one)}"
            )
    # A training that went on from a checkpoint may have measured a step twice: the later counts.
    snapshots = [one for _, one in sorted({one["step"]: one for one in snapshots}.items())]
    shapes = {np.shape(one["first_token"]) for one in snapshots}
    if len(shapes) > 1 or len(next(iter(shapes))) != 2:
        raise ValueError(
            f"first_token must be (layer, head) throughout, got shapes {sorted(shapes)}"
        )
    return snapshots


def _growth_file(source: str | Path) -> Path:
    for path in (assets_folder() / "models" / str(source), Path(source)):
        found = path / "growth.jsonl" if path.is_dir() else path
        if found.is_file():
            return found
    raise FileNotFoundError(
        f"no growth of {str(source)!r}: bundled models are {', '.join(bundled()) or 'none'}; "
        "otherwise give the path of a growth.jsonl"
    )


def _named(growth: Any) -> dict[str, list[Snapshot]]:
    """Return snapshots by name, from whatever stands for one model or several."""
    if isinstance(growth, Mapping):
        return {str(name): load_growth(one) for name, one in growth.items()}
    if isinstance(growth, str | Path):
        growth = [growth]
    growth = list(growth)
    if growth and isinstance(growth[0], Mapping):
        return {"model": load_growth(growth)}
    found = {}
    for nth, one in enumerate(growth):
        name = f"model {nth + 1}"
        if isinstance(one, str | Path):
            path = Path(one)
            name = path.parent.name if path.name == "growth.jsonl" else path.name
        found[f"{name} ({nth + 1})" if name in found else name] = load_growth(one)
    return found


def _thinned(snapshots: list[Snapshot], most: int) -> list[Snapshot]:
    """Return at most ``most`` snapshots, evenly spaced on the logarithm of the step."""
    if len(snapshots) <= most:
        return snapshots
    steps = np.log([max(1, one["step"]) for one in snapshots])
    wanted = np.linspace(steps[0], steps[-1], most)
    return [snapshots[i] for i in np.unique(np.abs(steps[:, None] - wanted).argmin(0))]


class SinkBirth(TeachingWidget):
    """Move through training and see sinks appear: a map of all heads, linked with the curves.

    Maps are of the queries in the second half of a text, as they are recorded in training; the sink
    rate is of all queries.

    Args:
        growth: a bundled model's name, a path of a ``growth.jsonl``, or its snapshots; or several
            of these, in a list or by name, to see side by side.
        step: training step at the start; the last where not given.

    Raises:
        FileNotFoundError: there is no such model or file.
        ValueError: there is none or more than six, or a snapshot lacks something.

    Example:
        >>> snapshots = [
        ...     {"step": 10, "loss": 7.5, "sink_rate": 0.0, "first_token": [[0.01, 0.02]]},
        ...     {"step": 900, "loss": 4.5, "sink_rate": 0.5, "first_token": [[0.01, 0.52]]},
        ... ]
        >>> birth = SinkBirth({"tiny": snapshots})
        >>> birth.first_token("tiny").tolist(), birth.sink_rate("tiny")
        ([[0.01, 0.52]], 0.5)
    """

    _esm = teaching_module("sink_birth")

    step = traitlets.Int(help="training step").tag(sync=True)
    layer = traitlets.Int(0, help="of the chosen head").tag(sync=True)
    head = traitlets.Int(0, help="the chosen one").tag(sync=True)
    epsilon = traitlets.Float(SINK_EPSILON).tag(sync=True)
    models = traitlets.List(help="name, layers, heads, steps and tokens of each").tag(sync=True)
    losses = traitlets.List(traitlets.Bytes(), help="per model, float32 per step").tag(sync=True)
    rates = traitlets.List(traitlets.Bytes(), help="likewise").tag(sync=True)
    firsts = traitlets.List(traitlets.Bytes(), help="per model, uint16 (step, layer, head)").tag(
        sync=True
    )

    def __init__(self, growth: Any = "classroom-rope", *, step: int | None = None) -> None:
        named = _named(growth)
        if not 1 <= len(named) <= MOST_MODELS:
            raise ValueError(f"give the growth of 1 to {MOST_MODELS} models, got {len(named)}")
        heads = sum(np.size(snapshots[0]["first_token"]) for snapshots in named.values())
        self._growth = {
            name: _thinned(snapshots, max(2, MOST_NUMBERS // heads))
            for name, snapshots in named.items()
        }
        models, losses, rates, firsts = [], [], [], []
        for shown, snapshots in zip(self._labels(), self._growth.values(), strict=True):
            maps = np.array([one["first_token"] for one in snapshots], dtype=float)
            models.append(
                {
                    "name": shown,
                    "layers": maps.shape[1],
                    "heads": maps.shape[2],
                    "steps": [int(one["step"]) for one in snapshots],
                    "tokens": [int(one.get("tokens", 0)) for one in snapshots],
                }
            )
            losses.append(as_bytes([one["loss"] for one in snapshots]))
            rates.append(as_bytes([one["sink_rate"] for one in snapshots]))
            firsts.append(np.round(maps.clip(0, 1) * STEPS).astype("<u2").tobytes())
        # The head that ends as the strongest is the one to watch.
        last = np.array(next(iter(self._growth.values()))[-1]["first_token"])
        layer, head = np.unravel_index(last.argmax(), last.shape)
        self._steps = sorted({step for model in models for step in model["steps"]})
        super().__init__(
            models=models,
            losses=losses,
            rates=rates,
            firsts=firsts,
            step=self._steps[-1] if step is None else step,
            layer=int(layer),
            head=int(head),
        )

    @traitlets.validate("step", "layer", "head")
    def _within(self, proposal: traitlets.Bunch) -> int:
        name, value = proposal["trait"].name, proposal["value"]
        least, most = self._steps[0], self._steps[-1]
        if name != "step":
            least, most = 0, max(model[f"{name}s"] for model in self.models) - 1
        if not least <= value <= most:
            raise ValueError(f"{name} must be in {least}..{most}, got {value}")
        return value

    def _snapshot(self, name: str) -> Snapshot:
        if name not in self._growth:
            raise ValueError(f"no model {name!r}; known are {', '.join(self._growth)}")
        snapshots = self._growth[name]
        past = [one for one in snapshots if one["step"] <= self.step]
        return past[-1] if past else snapshots[0]

    def first_token(self, name: str) -> Float[np.ndarray, "layer head"]:
        """Return what the heads of a model give to the first token, as of the chosen step."""
        return np.array(self._snapshot(name)["first_token"], dtype=float)

    def sink_rate(self, name: str) -> float:
        """Return the sink rate of a model as of the chosen step, in [0, 1]."""
        return float(self._snapshot(name)["sink_rate"])

    def _labels(self) -> list[str]:
        """Return the models' names as they are shown; names cut alike are told apart by number."""
        cut = as_labels(list(self._growth))
        alike = len(set(cut)) < len(cut)
        return [f"{nth}: {name}" if alike else name for nth, name in enumerate(cut, start=1)]

    def draw(self, figure: Figure) -> None:
        """Draw maps and curves at the chosen step into an empty figure."""
        names, labels = list(self._growth), self._labels()
        # One map has the curves beside it, several have them below.
        several = len(names) > 1
        shape, ratios = ((2, 1), "height_ratios") if several else ((1, 2), "width_ratios")
        above, below = figure.subfigures(*shape, **{ratios: [1.15, 1]})
        panels = np.atleast_1d(above.subplots(1, len(names)))
        for name, label, ax in zip(names, labels, panels, strict=True):
            plot_first_token(self.first_token(name), ax=ax)
            if len(names) > 1:
                said = f"{label}: {self.sink_rate(name):.0%}"
                ax.set_title(said, loc="left", fontsize="small").set_parse_math(False)
        above.suptitle(f"step {self.step:,}: late queries on the first token", fontsize="medium")
        rows = [
            {"model": label, **one}
            for name, label in zip(names, labels, strict=True)
            for one in self._growth[name]
        ]
        table = pd.DataFrame(rows, columns=["model", "step", "loss", "sink_rate"])
        for what, ax in zip(("loss", "sink_rate"), below.subplots(*shape[::-1]), strict=True):
            plot_birth(table, what, ax=ax)
            ax.axvline(self.step, color=ink(ax), linestyle=":", linewidth=1)

    def __repr__(self) -> str:
        found = ", ".join(f"{m['name']}: {len(m['steps'])} snapshots" for m in self.models)
        return f"SinkBirth({found})"
