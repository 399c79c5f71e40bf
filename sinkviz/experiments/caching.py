"""What a cache must keep: how many first tokens, and how many tokens in all.

Knows models through ``score`` alone; draws nothing itself.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sinkviz.experiments import measuring
from sinkviz.experiments.judging import ALIKE, PAPER, WORSE, Verdict, of_each_model, spoken
from sinkviz.experiments.running import Cell, Claim, Experiment, Row, Setting
from sinkviz.experiments.scales import usual_cache
from sinkviz.experiments.stretches import longest_input
from sinkviz.models import LM
from sinkviz.plots.methods import plot_cache_sizes, plot_first_tokens
from sinkviz.policies import SinkWindow, parse_policy
from sinkviz.scoring import score


def _figure_of(plot: Callable[[pd.DataFrame], Axes]) -> Callable[[pd.DataFrame], Figure]:
    return lambda table: plot(table).figure


# First tokens + recent tokens -------------------------------------------------------------------


def _sums_cells(setting: Setting) -> list[Cell]:
    n_tokens = 4_000 if setting.quick else 65_536
    cells = []
    for name, lm in setting.models.items():
        cache = usual_cache(setting, lm)
        cell = {"model": name, "tokens": n_tokens}
        for policy in measuring.x_plus_y(cache):
            cells.append(cell | {"policy": str(policy), "first_tokens": "text"})
        if lm.tokenizer is not None:  # without one, nobody knows which token is a newline
            policy = str(SinkWindow(4, cache - 4))
            cells.append(cell | {"policy": policy, "first_tokens": "newlines"})
    return cells


def _newline(lm: LM) -> int:
    """Return the id of the newline token: the last, where a tokenizer puts something before it."""
    return int(lm.tokenizer("\n", add_special_tokens=False)["input_ids"][-1])


def _sums_measure(setting: Setting, cell: Cell) -> list[Row]:
    lm, policy = setting.models[cell["model"]], parse_policy(cell["policy"])
    ids = setting.ids(lm, cell["tokens"])
    if cell["first_tokens"] == "newlines":
        ids = torch.cat((torch.full_like(ids[: policy.n_sink], _newline(lm)), ids[policy.n_sink :]))
    run = score(lm, ids, policy)
    nll = run.mean_nll(policy.cache_size + 1)
    return [
        {
            "model": lm.name,
            "policy": cell["policy"],
            "n_sink": policy.n_sink or 0,
            "first_tokens": cell["first_tokens"],
            "cache": policy.cache_size,
            "tokens": cell["tokens"],
            "nll": nll,
            "perplexity": float(np.exp(nll)),
        }
    ]


def _by_sinks(table: pd.DataFrame) -> pd.Series:
    return table[table["first_tokens"] == "text"].set_index("n_sink")["nll"].sort_index()


@of_each_model
def _judge_some_sinks(table: pd.DataFrame) -> Verdict:
    nll = _by_sinks(table)
    said = f"perplexity {spoken(np.exp(nll[0]))} with none, {spoken(np.exp(nll[4]))} with four"
    return bool(nll[0] - nll[4] > WORSE), said


@of_each_model
def _judge_four_suffice(table: pd.DataFrame) -> Verdict:
    nll = _by_sinks(table)
    gain = nll[4] - nll[8]
    said = f"eight first tokens instead of four gain {gain:+.3f} nats per token"
    return bool(gain < ALIKE), said


@of_each_model
def _judge_one_falls_short(table: pd.DataFrame) -> Verdict:
    nll = _by_sinks(table)
    lost = nll[1] - nll[4]
    said = f"one first token instead of four costs {lost:+.3f} nats per token"
    return bool(lost > ALIKE), said


@of_each_model
def _judge_newlines(table: pd.DataFrame) -> Verdict:
    lines = table[table["first_tokens"] == "newlines"]["nll"]
    if not len(lines):
        return None, "no tokenizer, so nobody knows which token is a newline"
    nll, newlines = _by_sinks(table), float(lines.iloc[0])
    restored = (nll[0] - newlines) / (nll[0] - nll[4]) if nll[0] - nll[4] > WORSE else None
    said = (
        f"perplexity {spoken(np.exp(newlines))} with four newlines, {spoken(np.exp(nll[4]))} with "
        f"the text's own first tokens, {spoken(np.exp(nll[0]))} with none"
    )
    if restored is None:
        return None, f"{said}: there is no collapse to restore"
    return bool(restored > 0.9), f"{said}: {restored:.0%} of the loss in nats is restored"


X_PLUS_Y = Experiment(
    name="x_plus_y",
    question="How many first tokens must stay in a cache of one size, and must they mean anything?",
    cells=_sums_cells,
    measure=_sums_measure,
    draw=_figure_of(plot_first_tokens),
    claims=(
        Claim(
            "A few first tokens in the cache make the difference.",
            "Llama-2-13B: 5158.07 with 0+1024, 5.40 with 4+1020",
            f"{PAPER}, table 1",
            _judge_some_sinks,
        ),
        Claim(
            "They need no meaning: newlines in their place serve almost as well.",
            "Llama-2-13B: 5.60 with four newlines, 5.40 with the text's own",
            f"{PAPER}, table 1",
            _judge_newlines,
        ),
        Claim(
            "Four are enough: more bring little.",
            "4 and 8: Falcon-7B 12.12, 12.12; MPT-7B 14.99, 14.98; Pythia-12B 12.09, 12.02; "
            "Llama-2-7B 9.59, 9.54",
            f"{PAPER}, table 2",
            _judge_four_suffice,
        ),
        Claim(
            "One or two do not restore everything, in models trained without a fixed first token.",
            "1 and 4: Llama-2-7B 11.88, 9.59; but Falcon-7B 12.12, 12.12; MPT-7B 14.99, 14.99; "
            "Pythia-12B 11.95, 12.09",
            f"{PAPER}, table 2",
            _judge_one_falls_short,
        ),
    ),
)


# The size of the cache --------------------------------------------------------------------------

# Of the training length; the paper's go from an eighth of it to the whole.
SHARES = (1 / 8, 1 / 4, 3 / 8, 1 / 2, 3 / 4, 1, 3 / 2, 2)


def _sizes_cells(setting: Setting) -> list[Cell]:
    cells = []
    for name, lm in setting.models.items():
        length = min(lm.train_length or 2 * 2048, 256 if setting.quick else 4096)
        sizes = sorted({max(8, round(share * length)) for share in SHARES})
        limit = longest_input(lm) or sizes[-1]
        sizes = [size for size in sizes if size <= limit]
        n_tokens = 4_000 if setting.quick else 65_536
        if n_tokens <= 2 * sizes[-1]:
            n_tokens = 4 * sizes[-1]
        cells += [
            {
                "model": name,
                "policy": str(SinkWindow(4, size - 4)),
                "tokens": n_tokens,
                "start": sizes[-1] + 1,
            }
            for size in sizes
        ]
    return cells


def _sizes_measure(setting: Setting, cell: Cell) -> list[Row]:
    lm, policy = setting.models[cell["model"]], parse_policy(cell["policy"])
    run = score(lm, setting.ids(lm, cell["tokens"]), policy)
    nll = run.mean_nll(cell["start"])
    return [
        {
            "model": lm.name,
            "policy": cell["policy"],
            "cache": policy.cache_size,
            "train_length": lm.train_length,
            "from_token": cell["start"],
            "tokens": cell["tokens"],
            "nll": nll,
            "perplexity": float(np.exp(nll)),
        }
    ]


def _within(table: pd.DataFrame) -> pd.DataFrame:
    """Return the caches that are no longer than what the model was trained on, small to large."""
    length = table["train_length"].fillna(table["cache"].max())
    return table[table["cache"] <= length].sort_values("cache")


@of_each_model
def _judge_larger(table: pd.DataFrame) -> Verdict:
    rows = _within(table)
    rises = int((rows["perplexity"].diff().dropna() > 0).sum())
    best = rows.loc[rows["perplexity"].idxmin()]
    said = (
        f"up to the training length perplexity goes from {spoken(rows['perplexity'].iloc[0])} "
        f"({rows['cache'].iloc[0]} tokens) to {spoken(rows['perplexity'].iloc[-1])} "
        f"({rows['cache'].iloc[-1]}), rises at {rises} of {len(rows) - 1} steps, and is best at "
        f"{int(best['cache'])}"
    )
    return rises > 0, said


@of_each_model
def _judge_beyond(table: pd.DataFrame) -> Verdict:
    rows, beyond = _within(table), table[table["cache"] > table["train_length"]]
    if not len(beyond):
        return None, "no cache longer than the training length"
    lost = float(beyond["nll"].iloc[-1] - rows["nll"].iloc[-1])
    said = (
        f"a cache of {int(beyond['cache'].iloc[-1])} is {lost:+.2f} nats per token from one of "
        f"{int(rows['cache'].iloc[-1])}"
    )
    return lost > ALIKE, said


CACHE_SIZES = Experiment(
    name="cache_sizes",
    question="Does a larger cache help?",
    cells=_sizes_cells,
    measure=_sizes_measure,
    draw=_figure_of(plot_cache_sizes),
    claims=(
        Claim(
            "A larger cache does not always lower the perplexity.",
            "perplexity is not monotone in the cache size for the models of the table",
            f"{PAPER}, table 6",
            _judge_larger,
        ),
        Claim(
            "Sinks do not extend the context: the cache must stay within the training length.",
            "stated, not measured: the context window is that of the pre-training",
            f"{PAPER}, section 5 and appendix",
            _judge_beyond,
        ),
    ),
)
