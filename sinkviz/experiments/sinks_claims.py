"""What the papers say about the first token as a sink, and what our tables say to it.

Knows tables; measures nothing.
"""

from __future__ import annotations

import pandas as pd

from sinkviz.experiments.judging import nats, unanimous
from sinkviz.experiments.running import Claim

FAR, COPIES = 16, 4
PLAIN, NEWLINE, WORD, REMOVED = "as it is", "newline instead", "word instead", "removed"
IN_FRONT, SWAPPED, MOVED = "word in front", "swapped with the next", f"moved to {FAR}"
COPIED = f"{COPIES} copies"
EDITS = (PLAIN, NEWLINE, WORD, REMOVED, IN_FRONT, SWAPPED, MOVED, COPIED)
ZEROED, FORBIDDEN = "value zero", "forbidden"
CHANGES = ("none", *(f"{who} {what}" for who in ("first", "other") for what in (ZEROED, FORBIDDEN)))


@unanimous
def _newline_serves(table: pd.DataFrame) -> tuple[bool, str]:
    rows = table.set_index("edit")
    plain, newline, removed = (rows.loc[edit] for edit in (PLAIN, NEWLINE, REMOVED))
    return bool(newline["position_0"] >= plain["position_0"] / 2), (
        f"position 0 gets {plain['position_0']:.2f} of the attention, with a newline there "
        f"{newline['position_0']:.2f} (nll {nats(newline['nll_change'])} nats), with the first "
        f"token removed {removed['position_0']:.2f} ({nats(removed['nll_change'])})"
    )


@unanimous
def _follows_token(table: pd.DataFrame) -> tuple[bool, str]:
    rows = table.set_index("edit")
    swapped, front = rows.loc[SWAPPED], rows.loc[IN_FRONT]
    place, token = swapped["position_0"], swapped["first_token"]
    return bool(place > token), (
        f"swapped with its neighbour, the first token gets {token:.2f} and position 0 {place:.2f}; "
        f"with a word in front, {front['first_token']:.2f} and {front['position_0']:.2f}"
    )


@unanimous
def _copies_share(table: pd.DataFrame) -> tuple[bool, str]:
    rows = table.set_index("edit")
    place, others = rows.loc[COPIED, "position_0"], rows.loc[COPIED, "first_token"]
    share = place / (place + others)
    return bool(share < 0.5), (
        f"of the {place + others:.2f} that {COPIES} copies get, the one at position 0 gets "
        f"{share:.0%} (even would be {1 / COPIES:.0%}); its sink rate falls from "
        f"{rows.loc[PLAIN, 'sink_rate']:.0%} to {rows.loc[COPIED, 'sink_rate']:.0%}"
    )


POSITION_CLAIMS = (
    Claim(
        "The position makes the sink, not the meaning: a newline in the first place does as "
        "well (yes if it gets at least half of what the first token had)",
        "Llama-2-13B: perplexity 5.40 with the first 4 tokens, 5.60 with 4 newlines in their "
        "place, 5158 with neither",
        "Xiao et al. 2023, arXiv 2309.17453, table 1",
        _newline_serves,
    ),
    Claim(
        "The sink stays at the first position when another token stands there",
        "sinks on the first token for texts of random tokens too: Llama-3-8B 91.2 % of heads, "
        "natural text 99.0 %; a token fixed to a place in training moves the sink to it",
        "Gu et al. 2024, arXiv 2410.10781, table 1 and section 5",
        _follows_token,
    ),
    Claim(
        "Copies of the first token share its attention: what makes it first is that it sees "
        "nothing else (yes if the copy at position 0 gets less than half of all copies)",
        "Llama-2-7B: sink rate 92.5 % on text, 0 % where one token is repeated throughout",
        "Gu et al. 2024, arXiv 2410.10781, table 1",
        _copies_share,
    ),
)


def _ratios(table: pd.DataFrame, quantity: str) -> pd.Series:
    """Return the first token's share of what the others have, by layer."""
    rows = table[table["quantity"] == quantity]
    wide = rows.pivot(index="layer", columns="of", values="value")
    return wide["first"] / wide["rest"]


def _said(ratios: pd.Series, what: str) -> str:
    return f"{what} {', '.join(f'{one:.2f}' for one in ratios)} times the others', by layer"


def _nll_change(table: pd.DataFrame, change: str) -> tuple[float, float]:
    """Return the mean change of the nll, and its standard error."""
    rows = table[table["change"] == change].set_index("quantity")["value"]
    return float(rows["nll change"]), float(rows["nll error"])


@unanimous
def _value_drains(table: pd.DataFrame) -> tuple[bool, str]:
    ratios = _ratios(table, "value norm")
    return bool((ratios < 1).all()), _said(ratios, "the first token's value norm is")


@unanimous
def _key_no_longer(table: pd.DataFrame) -> tuple[bool, str]:
    ratios = _ratios(table, "key norm")
    return bool((ratios < 1).all()), _said(ratios, "the first token's key norm is")


@unanimous
def _residual_peaks(table: pd.DataFrame) -> tuple[bool, str]:
    ratios = _ratios(table, "residual norm")
    return bool(ratios.max() > 2), _said(ratios, "the first token's residual norm is")


@unanimous
def _massive(table: pd.DataFrame) -> tuple[bool, str]:
    rows = table.pivot_table(index="layer", columns=["quantity", "of"], values="value")
    largest = rows["largest activation", "first"]
    ratio = largest / rows["median activation", "all"]
    at = ratio.idxmax()
    return bool(((largest > 100) & (ratio > 1000)).any()), (
        f"at most {ratio.max():.0f} times the median (layer {at:.0f}: {largest[at]:.2f} against "
        f"{largest[at] / ratio[at]:.3f}; the median token's largest is "
        f"{rows.loc[at, ('largest activation', 'rest')]:.2f})"
    )


@unanimous
def _value_is_idle(table: pd.DataFrame) -> tuple[bool | None, str]:
    zeroed, error = _nll_change(table, f"first {ZEROED}")
    control, _ = _nll_change(table, f"other {ZEROED}")
    here = f"zeroing the first token's value {nats(zeroed)} ± {error:.3f} nats"
    here += f" (another token's {nats(control)})"
    if f"first {FORBIDDEN}" not in set(table["change"]):
        return None, here + "; attention to it could not be forbidden"
    removed, error = _nll_change(table, f"first {FORBIDDEN}")
    here += f"; forbidding attention to it {nats(removed)} ± {error:.3f}"
    return bool(zeroed < removed / 10), here


@unanimous
def _removal_hurts(table: pd.DataFrame) -> tuple[bool | None, str]:
    if f"first {FORBIDDEN}" not in set(table["change"]):
        return None, "attention to a token cannot be forbidden in this model"
    removed, error = _nll_change(table, f"first {FORBIDDEN}")
    control, _ = _nll_change(table, f"other {FORBIDDEN}")
    rows = table[table["quantity"] == "attention"]
    shares = rows.pivot_table(index="change", columns="of", values="value")
    plain, blind = shares.loc["none"], shares.loc[f"first {FORBIDDEN}"]
    grown = (blind - plain).drop("sink").sort_values(ascending=False)
    went = ", ".join(f"{role} {gain:+.2f}" for role, gain in grown.items() if abs(gain) >= 0.005)
    return bool(removed > max(3 * error, control)), (
        f"without the first token {nats(removed)} ± {error:.3f} nats, without another one "
        f"{nats(control)}; its {plain['sink']:.2f} of the attention goes to: {went}"
    )


INSIDE_CLAIMS = (
    Claim(
        "Value-state drain: the sink's value is shorter than others' (yes if so in every layer)",
        "Llama-2, Llama-3.1, OLMo: much smaller value norms on the first token",
        "Guo et al. 2024, arXiv 2410.13835, figures 1 and 2; Gu et al. 2024, arXiv 2410.10781",
        _value_drains,
    ),
    Claim(
        "The sink's key is not long but well aimed: shorter than others' (yes if so in every "
        "layer)",
        "Llama-3-8B: smaller key norm on the first token, large cosine with all queries",
        "Gu et al. 2024, arXiv 2410.10781, section 3",
        _key_no_longer,
    ),
    Claim(
        "Residual-state peak: the sink's residual vector is far longer than others' (yes if "
        "twice as long somewhere)",
        "Llama and OLMo: norms far above all other tokens in the middle layers",
        "Guo et al. 2024, arXiv 2410.13835, figure 1",
        _residual_peaks,
    ),
    Claim(
        "The sink carries massive activations: above 100 and above 1000 times the median",
        "Llama-2-7B: up to 2622 against a median of 0.2",
        "Sun et al. 2024, arXiv 2402.17762, table 1",
        _massive,
    ),
    Claim(
        "A sink takes attention and says nothing (yes if zeroing its value in the trained model "
        "costs less than a tenth of forbidding attention to it)",
        "with sinks as key biases whose value is zero from the start, models train to the same "
        "loss",
        "Gu et al. 2024, arXiv 2410.10781, section 7",
        _value_is_idle,
    ),
    Claim(
        "Without its sink a model breaks (yes if nll rises by more than three standard errors "
        "and by more than without another token)",
        "Llama-2-13B: perplexity 5.40 with the first tokens in the cache, 5158 without",
        "Xiao et al. 2023, arXiv 2309.17453, table 1",
        _removal_hurts,
    ),
)
