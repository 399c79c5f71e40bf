"""What the papers say about kinds of softmax and the birth of sinks, and what our tables say to it.

Knows tables; measures nothing.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd

from sinkviz.experiments.judging import nats, unanimous
from sinkviz.experiments.running import Claim
from sinkviz.plots.birth import BORN, born_at
from sinkviz.recipes import SEEDS

NO_BEGIN, TOKEN, OFF_BY_ONE = "softmax-no-begin", "softmax-sink-token", "softmax-off-by-one"
STANDARD, LOGIT, GATED = "softmax-standard", "softmax-sink-logit", "softmax-gated"
CLASSROOM = "classroom-rope"
SOFTMAXES = (STANDARD, NO_BEGIN, TOKEN, OFF_BY_ONE, LOGIT, GATED)


def _perplexities(table: pd.DataFrame, model: str) -> pd.Series | None:
    """Return perplexity by number of sinks, or None where the model was not measured."""
    rows = table[(table["model"] == model) & (table["quantity"] == "perplexity")]
    return None if rows.empty else rows.set_index("n_sink")["value"]


def _listed(perplexities: pd.Series) -> str:
    return ", ".join(f"{value:.2f} with {n:.0f}" for n, value in perplexities.items())


def _missing(table: pd.DataFrame, *models: str) -> tuple[None, str]:
    return None, f"not measured: {', '.join(m for m in models if m not in set(table['model']))}"


def _value(table: pd.DataFrame, model: str, quantity: str) -> float | None:
    rows = table[(table["model"] == model) & (table["quantity"] == quantity)]
    return None if rows.empty else float(rows["value"].iloc[-1])


def _vanilla_needs_sinks(table: pd.DataFrame) -> tuple[bool | None, str]:
    found = _perplexities(table, NO_BEGIN)
    if found is None:
        return _missing(table, NO_BEGIN)
    worse, still = np.log(found[0] / found[4]), np.log(found[1] / found[4])
    return bool(worse > 0.1 and still > 0.01), (
        f"perplexity {_listed(found)} sinks: {nats(worse)} nats without any, {nats(still)} with one"
    )


def _one_token_suffices(table: pd.DataFrame) -> tuple[bool | None, str]:
    found = _perplexities(table, TOKEN)
    if found is None:
        return _missing(table, TOKEN)
    worse, still = np.log(found[0] / found[4]), np.log(found[1] / found[4])
    return bool(worse > 0.1 and still < 0.01), (
        f"perplexity {_listed(found)} sinks: {nats(worse)} nats without any, {nats(still)} with "
        "the sink token alone"
    )


def _zero_sink_is_not_enough(table: pd.DataFrame) -> tuple[bool | None, str]:
    found = _perplexities(table, OFF_BY_ONE)
    if found is None:
        return _missing(table, OFF_BY_ONE)
    worse = np.log(found[0] / found[4])
    null = _value(table, OFF_BY_ONE, "null")
    return bool(worse > 0.1), (
        f"perplexity {_listed(found)} sinks ({nats(worse)} nats without any); {null:.2f} of the "
        f"attention goes nowhere, {_value(table, OFF_BY_ONE, 'first token'):.2f} to the first token"
    )


def _gates_end_sinks(table: pd.DataFrame) -> tuple[bool | None, str]:
    gated, plain = (_value(table, name, "first token") for name in (GATED, STANDARD))
    if gated is None or plain is None:
        return _missing(table, GATED, STANDARD)
    return bool(gated < plain / 2), (
        f"the first token gets {plain:.2f} without gates and {gated:.2f} with them; sink rate "
        f"{_value(table, STANDARD, 'sink rate'):.0%} and {_value(table, GATED, 'sink rate'):.0%}"
    )


def _logits_end_sinks(table: pd.DataFrame) -> tuple[bool | None, str]:
    plain = _value(table, STANDARD, "sink rate")
    others = {name: _value(table, name, "sink rate") for name in (OFF_BY_ONE, LOGIT)}
    if plain is None or None in others.values():
        return _missing(table, STANDARD, *others)
    said = ", ".join(f"{name} {rate:.0%}" for name, rate in others.items())
    return bool(max(others.values()) < plain / 2), f"sink rate: {STANDARD} {plain:.0%}, {said}"


def _training_unhurt(table: pd.DataFrame) -> tuple[bool | None, str]:
    losses = {
        name: _value(table[table["step"].notna()], name, "loss") for name in (NO_BEGIN, TOKEN)
    }
    if None in losses.values():
        return None, "no training record of " + " or ".join(losses)
    plain, token = losses.values()
    return bool(token - plain < 0.01 * plain), (
        f"held-out loss at the end {token:.3f} nats with a sink token, {plain:.3f} without; one "
        "run each, so differences of a hundredth may be chance"
    )


TOKEN_CLAIMS = (
    Claim(
        "A model without a sink token needs several first tokens in its cache (yes if none costs "
        "more than 0.1 nats and one alone still more than 0.01)",
        "vanilla, 160 M: perplexity 27.87 with 0+1024, 18.49 with 1+1023, 18.05 with 2+1022, "
        "18.05 with 4+1020",
        "Xiao et al. 2023, arXiv 2309.17453, table 3",
        _vanilla_needs_sinks,
    ),
    Claim(
        "A model trained with a learnable sink token needs that alone (yes if none costs more than "
        "0.1 nats and one less than 0.01)",
        "learnable sink: perplexity 1235 with 0+1024, 18.01 with 1+1023, 18.01 with 2+1022, 18.02 "
        "with 4+1020",
        "Xiao et al. 2023, arXiv 2309.17453, table 3",
        _one_token_suffices,
    ),
    Claim(
        "Softmax off by one still relies on other first tokens (yes if none costs more than 0.1 "
        "nats)",
        "zero sink: perplexity 29214 with 0+1024, 19.90 with 1+1023, 18.27 with 2+1022, 18.01 with "
        "4+1020",
        "Xiao et al. 2023, arXiv 2309.17453, table 3",
        _zero_sink_is_not_enough,
    ),
    Claim(
        "Training with a sink token is as good (yes if its held-out loss is at most 1 % higher)",
        "160 M models with and without a sink token converge alike",
        "Xiao et al. 2023, arXiv 2309.17453, figure 6",
        _training_unhurt,
    ),
    Claim(
        "Gates on the heads' outputs end sinks (yes if the first token gets less than half)",
        "attention on the first token 46.7 % without gates, 4.8 % with one per coordinate",
        "Qiu et al. 2025, arXiv 2505.06708, figure 2",
        _gates_end_sinks,
    ),
    Claim(
        "Heads that need not spend all their attention grow no sinks (yes if the sink rate is less "
        "than half of the standard softmax's)",
        "sigmoid attention without normalisation: no sinks up to 1 B parameters",
        "Gu et al. 2024, arXiv 2410.10781, section 7; off-by-one and learned logits are our test "
        "of it",
        _logits_end_sinks,
    ),
)


@unanimous
def _born_in_training(table: pd.DataFrame) -> tuple[bool | None, str]:
    at, last = born_at(table), table.iloc[-1]
    if at is None:
        return False, f"no sinks in {last['step']:,} steps (sink rate {last['sink_rate']:.0%})"
    born, start = table.iloc[at], table.iloc[0]
    return bool(start["sink_rate"] <= BORN), (
        f"sink rate {start['sink_rate']:.0%} at step {start['step']:,}, above {BORN:.0%} from "
        f"step {born['step']:,} ({born['tokens'] / 1e6:.1f} M tokens), {last['sink_rate']:.0%} at "
        f"step {last['step']:,}"
    )


@unanimous
def _loss_falls_first(table: pd.DataFrame) -> tuple[bool | None, str]:
    at = born_at(table)
    if at is None:
        return None, "no sinks"
    loss = table["loss"]
    done = (loss.iloc[0] - loss.iloc[at]) / (loss.iloc[0] - loss.min())
    return bool(done > 0.5), (
        f"{done:.0%} of the fall of the loss lies before the first sinks (from "
        f"{loss.iloc[0]:.2f} to {loss.iloc[at]:.2f}; lowest {loss.min():.2f})"
    )


BIRTH_CLAIMS = (
    Claim(
        "Sinks are not there at first; training makes them",
        "60 M parameters: sinks emerge between steps 1,000 and 2,000 of 20,000",
        "Gu et al. 2024, arXiv 2410.10781, section 4",
        _born_in_training,
    ),
    Claim(
        "Sinks come after effective optimisation: most of the loss has fallen before",
        "sinks emerge after the loss has fallen",
        "Gu et al. 2024, arXiv 2410.10781, section 4",
        _loss_falls_first,
    ),
)

# Runs of one recipe -------------------------------------------------------------------------------


def _of_variants(table: pd.DataFrame, *endings: str) -> dict[str, float]:
    """Return the sink rates of a model and its variants, by ending, of those that were measured."""
    rates = {end: _value(table, STANDARD + end, "sink rate") for end in endings}
    return {end or "as it is": rate for end, rate in rates.items() if rate is not None}


def _spread(table: pd.DataFrame) -> tuple[bool | None, str]:
    cliffs, said = {}, []
    for base in (STANDARD, OFF_BY_ONE):
        names = (base, *SEEDS[base])
        found = {name: _perplexities(table, name) for name in names}
        if any(one is None for one in found.values()):
            return _missing(table, *names)
        cliffs[base] = [float(np.log(one[0] / one[4])) for one in found.values()]
        losses = [_value(table, name, "loss") for name in names]
        rates = [_value(table, name, "sink rate") for name in names]
        said.append(
            f"{base}: {', '.join(map(nats, cliffs[base]))} without sinks, sink rate "
            f"{', '.join(f'{rate:.0%}' for rate in rates)}, held-out loss {min(losses):.3f} to "
            f"{max(losses):.3f}"
        )
    return min(cliffs[STANDARD]) > max(cliffs[OFF_BY_ONE]), "; ".join(said)


def _collapse(table: pd.DataFrame) -> tuple[bool | None, str]:
    names = (CLASSROOM, *SEEDS[CLASSROOM])
    found = {name: _perplexities(table, name) for name in names}
    known = {name: one for name, one in found.items() if one is not None}
    if len(known) < 2:
        return _missing(table, *names)
    cliffs = [float(np.log(one[0] / one[4])) for one in known.values()]
    rates = [_value(table, name, "sink rate") for name in known]
    return min(cliffs) > 0.1, (
        f"{len(known)} seeds: {', '.join(map(nats, cliffs))} without sinks, perplexity with four "
        f"{', '.join(f'{one[4]:.1f}' for one in known.values())}, sink rate "
        f"{', '.join(f'{rate:.0%}' for rate in rates)}"
    )


def _rates_rise(*endings: str) -> Callable[[pd.DataFrame], tuple[bool | None, str]]:
    """Return a judge of whether the sink rate rises from each variant that was run to the next.

    Steps that are no larger than the spread of the seeds decide nothing.
    """

    def judge(table: pd.DataFrame) -> tuple[bool | None, str]:
        rates = _of_variants(table, *endings)
        if len(rates) < 2:
            return _missing(table, *(STANDARD + end for end in endings))
        said = ", ".join(f"{end.strip('-')} {rate:.0%}" for end, rate in rates.items())
        runs = (_value(table, name, "sink rate") for name in (STANDARD, *SEEDS[STANDARD]))
        seeds = [rate for rate in runs if rate is not None]
        spread, steps = max(seeds) - min(seeds), np.diff(list(rates.values()))
        said = f"sink rate: {said}; {len(seeds)} seeds of one recipe spread by {spread:.0%}"
        return None if np.abs(steps).max() <= spread else bool((steps > 0).all()), said

    return judge


VARIANT_CLAIMS = (
    Claim(
        "That window attention collapses without sinks is not chance (yes if every seed loses more "
        "than 0.1 nats)",
        "Llama-2-13B: perplexity 5158.07 with 0+1024, 5.40 with 4+1020",
        "Xiao et al. 2023, arXiv 2309.17453, table 1",
        _collapse,
    ),
    Claim(
        "What the kind of softmax changes is not chance (yes if every seed of the standard softmax "
        "loses more without sinks than every seed of off-by-one)",
        "one run of each",
        "Xiao et al. 2023, arXiv 2309.17453, table 3",
        _spread,
    ),
    Claim(
        "More weight decay makes more sinks, up to a point (yes if the sink rate rises with every "
        "step among 0, 0.1 and 0.5 that was run)",
        "sink rate 15.2 % without weight decay, 18.2 % with 0.1, 41.1 % with 0.5, 0.0 % with 5",
        "Gu et al. 2024, arXiv 2410.10781, table 3",
        _rates_rise("-decay-0", "", "-decay-0.5"),
    ),
    Claim(
        "A larger learning rate makes more sinks (yes if the sink rate rises with every step among "
        "a third, once and twice that was run)",
        "with smaller learning rates sinks come later and are fewer",
        "Gu et al. 2024, arXiv 2410.10781, section 4",
        _rates_rise("-rate-third", "", "-rate-double"),
    ),
)
