"""What the ALiBi paper claims about length, speed and memory, and what our table says to it.

Knows tables; runs nothing.
"""

from __future__ import annotations

from dataclasses import replace

import pandas as pd

from sinkviz.experiments.judging import Absent, Verdict, decided, unanimous
from sinkviz.experiments.running import Claim
from sinkviz.plots._parts import number

PAPER = "Press et al. 2021, arXiv 2108.12409"
WORSE, SAME = 1.05, 0.05  # a perplexity counts as worse, a speed as equal, within five per cent


def _curve(table: pd.DataFrame, position: str, kind: str = "quality") -> tuple[pd.Series, int]:
    """Return perplexity by length of one scheme, and its training length."""
    rows = table[(table.kind == kind) & (table.position == position)]
    rows = rows[rows.perplexity.notna() & rows.train_length.notna()]
    curve = rows.groupby("length").perplexity.mean().astype(float)
    trained = None if rows.empty else int(rows.train_length.iloc[0])
    if trained not in curve.index or curve.index.max() <= trained:
        raise Absent(f"no {position} model was read at its training length and beyond")
    return curve, trained


def _growth(table: pd.DataFrame, position: str, kind: str = "quality") -> pd.Series:
    """Return perplexity beyond the training length as a multiple of the one there."""
    curve, trained = _curve(table, position, kind)
    return curve[curve.index > trained] / curve[trained]


def _told(table: pd.DataFrame, position: str, kind: str = "quality") -> str:
    curve, trained = _curve(table, position, kind)
    most = int(curve.index.max())
    return f"{position} {number(curve[trained])} at {trained}, {number(curve[most])} at {most:,}"


@decided
def _sinusoidal(table: pd.DataFrame) -> Verdict:
    growth = _growth(table, "sinusoidal")
    curve, trained = _curve(table, "sinusoidal")
    near = f"{number(curve[growth.index[0]])} already at {growth.index[0]}"
    return bool(growth.iloc[-1] > WORSE), f"{_told(table, 'sinusoidal')}; {near}"


def _further(table: pd.DataFrame, position: str, others: tuple[str, ...]) -> Verdict:
    """Judge that one scheme's perplexity grows less than others' at every length beyond."""
    growth = {one: _growth(table, one) for one in (position, *others)}
    agrees = all((growth[position] < growth[one]).all() for one in others)
    told = (
        f"{one} {', '.join(f'{x:.2f} at {length:,}' for length, x in values.items())}"
        for one, values in growth.items()
    )
    return agrees, f"perplexity as a multiple of that at the training length: {'; '.join(told)}"


@decided
def _rotary(table: pd.DataFrame) -> Verdict:
    further, told = _further(table, "rope", ("sinusoidal",))
    return bool(further and _growth(table, "rope").iloc[-1] > WORSE), told


@decided
def _t5(table: pd.DataFrame) -> Verdict:
    return _further(table, "t5", ("sinusoidal", "rope"))


@decided
def _alibi(table: pd.DataFrame) -> Verdict:
    curve, trained = _curve(table, "alibi")
    growth = _growth(table, "alibi")
    best = int(curve.idxmin())
    return bool((growth <= 1.01).all()), (
        f"{_told(table, 'alibi')}; best {number(curve[best])} at {best:,}, "
        f"{best / trained:g} times the training length"
    )


@decided
def _alibi_at_home(table: pd.DataFrame) -> Verdict:
    values = {}
    for position in ("alibi", "sinusoidal"):
        curve, trained = _curve(table, position)
        values[position] = curve[trained]
    better = values["alibi"] < values["sinusoidal"]
    return bool(better), ", ".join(f"{name} {value:.2f}" for name, value in values.items())


@decided
def _no_positions(table: pd.DataFrame) -> Verdict:
    none, trained = _curve(table, "none")
    sinusoidal, _ = _curve(table, "sinusoidal")
    behind = none[trained] / sinusoidal[trained] - 1
    return bool(behind < WORSE - 1), (
        f"none {none[trained]:.2f}, sinusoidal {sinusoidal[trained]:.2f} at {trained}: "
        f"{behind:+.1%}; none {number(none.iloc[-1])} at {none.index[-1]:,}"
    )


@decided
def _sliding(table: pd.DataFrame) -> Verdict:
    growth = _growth(table, "alibi", "sliding")
    return bool((growth - 1).abs().max() < 0.02), (
        f"with every prediction seeing the whole length: {_told(table, 'alibi', 'sliding')}, "
        f"{growth.iloc[-1] - 1:+.1%}; non-overlapping {_growth(table, 'alibi').iloc[-1] - 1:+.1%}"
    )


def _speeds(
    table: pd.DataFrame, position: str, phase: str, attention: str = "eager"
) -> pd.DataFrame:
    """Return rows of one scheme beside those of the sinusoidal one, by length."""
    if "phase" not in table:
        raise Absent("no speed was measured")
    rows = table[(table.kind == "speed") & (table.phase == phase) & (table.attention == attention)]
    columns = ["words_per_second", "peak_mb", "speed_ratio"]
    ours, base = (
        rows[rows.position == one].set_index("length")[columns].astype(float)
        for one in (position, "sinusoidal")
    )
    found = ours.join(base.add_suffix("_base"), how="inner")
    if found.empty:
        raise Absent(f"speeds of {position} and sinusoidal were not measured together")
    # Both ratios are to the same model, and of the same turns.
    found["faster"] = found.speed_ratio / found.speed_ratio_base
    found["memory"] = found.peak_mb / found.peak_mb_base
    return found.sort_index()


def _in_words(found: pd.DataFrame, column: str) -> str:
    return ", ".join(f"{value:.2f} at {length:,}" for length, value in found[column].items())


@decided
def _alibi_speed(table: pd.DataFrame) -> Verdict:
    training = _speeds(table, "alibi", "training")
    inference = _speeds(table, "alibi", "inference")
    apart = (pd.concat([training.faster, inference.faster]) - 1).abs().max()
    return bool(apart <= SAME), (
        f"speed as a multiple of sinusoidal's, training {_in_words(training, 'faster')}; "
        f"inference {_in_words(inference, 'faster')} tokens{_fused(table)}"
    )


def _fused(table: pd.DataFrame) -> str:
    """Say what fused attention, which needs a mask for a bias only, makes of the comparison."""
    try:
        fused = _speeds(table, "alibi", "inference", "sdpa")
    except Absent:
        return ""
    return f"; inference with fused attention {_in_words(fused, 'faster')}"


@decided
def _alibi_memory(table: pd.DataFrame) -> Verdict:
    training = _speeds(table, "alibi", "training")
    return bool((training.memory - 1).abs().max() <= SAME), (
        f"peak of a training step as a multiple of sinusoidal's: {_in_words(training, 'memory')} "
        "tokens"
    )


@decided
def _t5_speed(table: pd.DataFrame) -> Verdict:
    training, inference = (_speeds(table, "t5", phase) for phase in ("training", "inference"))
    return bool((training.faster < 1 - SAME).all()), (
        f"speed as a multiple of sinusoidal's, training {_in_words(training, 'faster')}; "
        f"inference {_in_words(inference, 'faster')} tokens"
    )


CLAIMS = (
    Claim(
        "Sinusoidal positions do not extrapolate: perplexity rises right past the training length.",
        "trained on 512 tokens, better up to some 20 more, then ever worse",
        f"{PAPER}, section 2.2 and figure 1",
        _sinusoidal,
    ),
    Claim(
        "Rotary positions extrapolate further than sinusoidal ones (grow less at every length), "
        "and then degrade too.",
        "trained on 512 tokens, better up to some 200 more, then worse",
        f"{PAPER}, section 2.2 and figure 1",
        _rotary,
    ),
    Claim(
        "The T5 bias extrapolates further than both (grows less at every length).",
        "trained on 512 tokens, better up to some 600 more",
        f"{PAPER}, section 2.2 and figure 1",
        _t5,
    ),
    Claim(
        "ALiBi gets no worse on longer texts than it was trained on, and at first better.",
        "trained on 512 tokens: perplexity 19.73 at 512, 18.40 at 3,072; best at about twice the "
        "training length, strong up to 10,000 tokens and more",
        f"{PAPER}, section 4.1 and figures 1 and 4",
        _alibi,
    ),
    Claim(
        "At its own training length ALiBi is better than sinusoidal positions.",
        "19.73 against 20.05 at 512 tokens",
        f"{PAPER}, section 4.1",
        _alibi_at_home,
    ),
    Claim(
        "ALiBi is as fast as sinusoidal positions, in training and inference.",
        "28.3 against 28.5 thousand words per second in training (0.99), 85.8 against 82.1 in "
        "inference (1.05), 512 tokens, one V100",
        f"{PAPER}, figure 2 and table 1",
        _alibi_speed,
    ),
    Claim(
        "ALiBi needs as much memory as sinusoidal positions.",
        "15.3 GB both at 512 tokens, 19.3 against 19.2 GB at 1,024; 100 MB more at most",
        f"{PAPER}, figure 2 and table 1",
        _alibi_memory,
    ),
    Claim(
        "The T5 bias is slower than sinusoidal positions.",
        "14.4 against 28.5 thousand words per second in training (0.51), 21.8 against 82.1 in "
        "inference (0.27), 512 tokens",
        f"{PAPER}, figure 2 and table 1",
        _t5_speed,
    ),
    Claim(
        "What ALiBi gains on longer texts is fewer tokens with little context: with a sliding "
        "window, perplexity stays flat beyond the training length.",
        "flat with a sliding window of stride 1",
        f"{PAPER}, appendix B.2",
        _sliding,
    ),
    Claim(
        "A model without any positions is nearly as good as one with sinusoidal positions.",
        "WikiText-103 perplexity 20.97 without, 20.16 with sinusoidal positions (4 % more)",
        "Haviv et al. 2022, arXiv 2203.16634, table 1",
        _no_positions,
    ),
)

# The same of each seed by itself: yes or no where all seeds say so.
_OF_RUNS = (_sinusoidal, _rotary, _alibi, _alibi_at_home, _sliding)
RUN_CLAIMS = tuple(
    replace(claim, judge=unanimous(claim.judge, by="run"))
    for claim in CLAIMS
    if claim.judge in _OF_RUNS
)
