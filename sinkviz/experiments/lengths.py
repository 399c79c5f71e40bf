"""Train short, test long: perplexity, speed and memory of position schemes against length.

Source: Press et al. 2021, arXiv 2108.12409, figures 1, 2, 4 and 5.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import Tensor

from sinkviz.bench.measure import alternate, ratio, setting, steps
from sinkviz.experiments.expense import (
    can_train,
    inference_step,
    peak_bytes_of,
    training_step,
    words_per_token,
)
from sinkviz.experiments.lengths_claims import CLAIMS, RUN_CLAIMS
from sinkviz.experiments.running import Cell, Experiment, Row, Setting
from sinkviz.experiments.stretches import longest_input, position_of, reach_nll, stretch_nll
from sinkviz.models import LM
from sinkviz.plots.lengths import plot_lengths
from sinkviz.recipes import RECIPES, SEEDS

MODELS = tuple(
    f"position-{name}" for name in ("sinusoidal", "learned", "rope", "t5", "alibi", "none")
)
RECIPE = RECIPES["position-alibi"]


def _lengths(setting: Setting) -> list[int]:
    return [64, 128, 256, 512] if setting.quick else [64, 128, 256, 512, 1024, 2048]


def _n_tokens(setting: Setting) -> int:
    """Tokens of the text; with the one in front, a whole number of stretches of any length."""
    return 1 + (2048 if setting.quick else 32_768)


def _quality_cells(setting: Setting) -> list[Cell]:
    return [{"kind": "quality", "model": name} for name in setting.models]


def cells(setting: Setting) -> list[Cell]:
    """Return one cell per model, and one per length for what must be timed in turns."""
    lengths = [64, 256] if setting.quick else [64, 256, 1024]
    speeds: list[Cell] = [{"kind": "speed", "length": length} for length in lengths]
    return _quality_cells(setting) + speeds


def measure(setting: Setting, cell: Cell) -> list[Row]:
    """Return the rows of a cell."""
    if cell["kind"] == "quality":
        return _quality(setting, setting.models[cell["model"]])
    return _speed(setting, cell["length"])


def _measure_run(setting: Setting, cell: Cell) -> list[Row]:
    """Return the rows of a model, and by which seed it was trained; the bundled ones by 0."""
    seed = cell["model"].partition("-seed-")[2] or "0"
    return [{"run": f"seed {seed}"} | row for row in measure(setting, cell)]


def _about(lm: LM, length: int, kind: str) -> Row:
    return {
        "model": lm.name,
        "position": position_of(lm),
        "length": length,
        "kind": kind,
        "train_length": lm.train_length,
    }


def _quality(setting: Setting, lm: LM) -> list[Row]:
    ids = setting.ids(lm, _n_tokens(setting))
    lengths, end = _lengths(setting), longest_input(lm)
    places = {
        "longest": lengths[-1],
        "n_stretches": 8 if setting.quick else 64,
        "n_last": min(32, lengths[0]),
    }
    rows = []
    for length in lengths:
        readable = end is None or length <= end
        for kind in ("quality", "sliding"):
            row = _about(lm, length, kind) | {"nll": None, "perplexity": None, "note": ""}
            if not readable:
                row |= {"n_predicted": 0, "note": f"positions end at {end} tokens"}
            else:
                if kind == "quality":
                    nll = stretch_nll(lm, ids, length)
                else:
                    nll = reach_nll(lm, ids, length, **places)
                mean = float(nll.double().mean())
                row |= {
                    "nll": mean,
                    "perplexity": math.exp(min(mean, 700.0)),
                    "n_predicted": len(nll),
                }
            rows.append(row)
    return rows


@dataclass(frozen=True)
class _Turn:
    """What is timed in one turn: a phase of a model under an attention implementation."""

    lm: LM
    phase: str
    attention: str
    words_per_token: float
    call: Callable[[], None]

    @property
    def name(self) -> str:
        return f"{self.lm.name} {self.phase} {self.attention}"


def _speed(how: Setting, length: int) -> list[Row]:
    """Time all models in turns: words per second of training and inference, and peak memory."""
    n_rows = max(1, (512 if how.quick else RECIPE.tokens_per_step) // length)
    repeat = 3 if how.quick else 7
    turns = [
        turn
        for lm in how.models.values()
        if length <= (longest_input(lm) or length)
        for turn in _turns(lm, how.ids(lm, 4096), n_rows, length)
    ]
    if not turns:
        return []
    times = alternate(repeat, **{turn.name: steps(turn.call) for turn in turns})
    rows = []
    for turn in turns:
        # The first model is what the others are compared with, at the same work.
        work = (turn.phase, turn.attention)
        first = next(one for one in turns if (one.phase, one.attention) == work)
        tokens = n_rows * length / float(np.median(times[turn.name]))
        rows.append(
            _about(turn.lm, length, "speed")
            | {
                "phase": turn.phase,
                "attention": turn.attention,
                "batch": n_rows,
                "tokens_per_second": tokens,
                "words_per_second": tokens * turn.words_per_token,
                # Of times from the same turns, which steadies it.
                "speed_ratio": ratio(times[first.name], times[turn.name]),
                "speed_ratio_to": first.lm.name,
                "peak_mb": peak_bytes_of(turn.call, turn.lm.device) / 1e6,
                "timing": f"median of {repeat} alternating turns; {setting()}",
            }
        )
    return rows


def _turns(lm: LM, ids: Tensor, n_rows: int, length: int) -> list[_Turn]:
    """Return what is timed of a model.

    Eager attention is as in the paper: all scores are written out and a mask is added to them,
    whatever the scheme. The model's own, fused, is another comparison: it needs no mask, unless
    there is a bias.
    """
    batch, share = _batch(ids, n_rows, length), words_per_token(lm, ids)
    own = lm.model.config._attn_implementation
    found = [
        _Turn(lm, "inference", attention, share, inference_step(lm, batch, attention))
        for attention in dict.fromkeys((own, "eager"))
    ]
    if can_train(lm):
        found.append(_Turn(lm, "training", "eager", share, training_step(lm, batch, RECIPE)))
    return found


def _batch(ids: Tensor, n_rows: int, length: int) -> Tensor:
    """Return rows of the text, each one token longer than what is read."""
    starts = torch.linspace(0, len(ids) - length - 1, n_rows).long()
    rows = torch.stack([ids[start : start + length + 1] for start in starts.tolist()])
    rows[:, 0] = ids[0]
    return rows


def draw(table: pd.DataFrame) -> Figure:
    """Draw perplexity against length, and beside it words per second of training."""
    training = table[table.kind == "speed"]
    training = training[training.phase == "training"] if len(training) else training
    figure, axes = plt.subplots(
        1, 1 + bool(len(training)), figsize=(12 if len(training) else 6.5, 4.2),
        squeeze=False, layout="constrained",
    )  # fmt: skip
    plot_lengths(table[table.kind == "quality"], ax=axes[0, 0])
    if len(training):
        plot_lengths(training, value="words_per_second", ax=axes[0, 1])
        axes[0, 1].set_title("a training step, words per second", loc="left")
    return figure


TRAIN_SHORT_TEST_LONG = Experiment(
    name="train_short_test_long",
    question="Trained on 64 tokens at a time: which position schemes can read more than that, and "
    "what does each cost?",
    cells=cells,
    measure=measure,
    draw=draw,
    models=MODELS,
    claims=CLAIMS,
)

RETRAINED_LENGTHS = Experiment(
    name="retrained_lengths",
    question="Trained again with other seeds: do position schemes differ by more than chance?",
    cells=_quality_cells,
    measure=_measure_run,
    draw=draw,
    models=tuple(
        run
        for name in ("position-sinusoidal", "position-rope", "position-alibi")
        for run in (name, *SEEDS[name])
    ),
    claims=RUN_CLAIMS,
)
