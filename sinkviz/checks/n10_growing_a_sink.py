"""The exercises of notebook 10."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sinkviz.checks.judging import by_example

# 10.1: the learning rate of a schedule


def _rate(seen: int, first: float, tokens: Sequence[int], ends: Sequence[float]) -> float:
    # Here, since it brings transformers along, which takes seconds.
    from sinkviz.recipes import Recipe

    recipe = Recipe(
        model={"max_position_embeddings": 1},  # with one text a step, a token is a step
        batch=1,
        warmup_steps=1,
        learning_rate=first,
        phases=tuple((n, end, 0.0) for n, end in zip(tokens, ends, strict=True)),
    )
    return recipe.at(seen)[0]


def _phase_of(seen: int, tokens: Sequence[int]) -> int:
    return int(np.searchsorted(np.cumsum(tokens), seen, side="right"))


def _within(seen: int, start: float, tokens: Sequence[int], end: float) -> float:
    """Return the rate inside a phase that goes straight from start to end."""
    phase = _phase_of(seen, tokens)
    return start + (end - start) * (seen - sum(tokens[:phase])) / tokens[phase]


_rate_of_a_schedule = by_example(
    _rate,
    [
        {"seen": 3, "first": 3.0, "tokens": [10, 5], "ends": [1.0, 0.2]},
        {"seen": 12, "first": 3.0, "tokens": [10, 5], "ends": [1.0, 0.2]},
        {"seen": 9, "first": 4.0, "tokens": [4, 8, 8], "ends": [2.0, 1.0, 0.5]},
    ],
    [
        (lambda s, f, t, e: f, "that is the first rate, for ever; it changes on the way"),
        (lambda s, f, t, e: e[_phase_of(s, t)], "that is the rate at the *end* of the phase; on "
         "the way it lies between the two ends"),
        (lambda s, f, t, e: [f, *e][_phase_of(s, t)], "that is the rate where the phase *begins*; "
         "from there it moves towards the phase's end"),
        (lambda s, f, t, e: _within(s, f, t, e[_phase_of(s, t)]), "every phase starts from the "
         "first rate here; it starts where the one before it ended"),
        (lambda s, f, t, e: f + (e[-1] - f) * s / sum(t), "that is one line from the first rate to "
         "the last; there is a line for each phase"),
        (lambda s, f, t, e: np.interp(s, [0, *t], [f, *e]), "tokens are those of each phase alone; "
         "add them up to find where a phase begins"),
        (lambda s, f, t, e: _within(s, e[_phase_of(s, t)], t, [f, *e][_phase_of(s, t)]), "start "
         "and end of the phase are swapped"),
        (lambda s, f, t, e: np.interp(s, np.cumsum(t), e), "the first phase has no beginning: "
         "there the rate is `first`, at token 0"),
        (lambda s, f, t, e: np.exp(np.interp(s, np.cumsum([0, *t]), np.log([f, *e]))), "that moves "
         "in equal *ratios*; ours moves in a straight line"),
    ],
    "straight lines between the corners of the schedule.",
)  # fmt: skip


# 10.2: when sinks are born for good


def _birth(steps: np.ndarray, rates: np.ndarray, born: float) -> int:
    not_yet = [n for n, rate in enumerate(rates) if rate <= born]
    return int(steps[not_yet[-1] + 1 if not_yet else 0])


def _first_above(rates: np.ndarray, born: float) -> int:
    return int((rates > born).argmax())


_birth_for_good = by_example(
    _birth,
    [
        {
            "steps": np.array([10, 100, 1000, 2000, 3000, 4000]),
            "rates": np.array([0.0, 0.0, 0.0625, 0.0, 0.125, 0.3125]),
            "born": 0.05,
        },
        {
            "steps": np.array([10, 30, 100, 300, 1000, 3000]),
            "rates": np.array([0.0, 0.03, 0.125, 0.25, 0.75, 0.5]),
            "born": 0.25,
        },
    ],
    [
        (lambda s, r, b: s[_first_above(r, b)], "that is the first step above; afterwards the rate "
         "falls back once more, so it is not for good"),
        (lambda s, r, b: int(np.where(s == _birth(s, r, b))[0][0]), "that is an index; give "
         "the step"),
        (lambda s, r, b: s[np.where(r <= b)[0][-1]], "that is the last step *without* sinks; the "
         "next one recorded is asked for"),
        (lambda s, r, b: s[r.argmax()], "that is the step with the highest rate"),
        (lambda s, r, b: s[-1], "that is the last step; go back to where the rate last rose "
         "above born"),
        (lambda s, r, b: r[list(s).index(_birth(s, r, b))], "that is the rate at birth; give the "
         "step"),
        (lambda s, r, b: _birth(s, r, np.nextafter(b, -1)), "a rate equal to born is not *above* "
         "it"),
        (lambda s, r, b: _birth(s, r, 0.0), "born is 0 here whatever is given; use the argument"),
        (lambda s, r, b: _birth(s, r, 0.05), "born is 0.05 here whatever is given; use the "
         "argument"),
        (lambda s, r, b: s[r > b], "these are all steps above; give the one from which on every "
         "step is"),
    ],
    "look for the last step that is not above, and take the next.",
)  # fmt: skip


# 10.3: how much had been learned by then


def _fallen(losses: np.ndarray, birth: int) -> float:
    return float((losses[0] - losses[birth]) / (losses[0] - losses.min()))


_share_of_the_fall = by_example(
    _fallen,
    [
        {"losses": np.array([7.0, 5.0, 4.5, 3.0, 3.2]), "birth": 2},
        {"losses": np.array([6.0, 4.0, 3.0, 2.0, 2.4, 2.2]), "birth": 1},
    ],
    [
        (lambda x, n: x[0] - x[n], "that is the fall in nats; divide by the whole fall"),
        (lambda x, n: (x[0] - x[n]) / x[0], "that divides by the first loss; no model gets to 0, "
         "so divide by the whole fall, from first to lowest"),
        (lambda x, n: x[n] / x[0], "that is a ratio of losses; take differences"),
        (lambda x, n: (x[0] - x[n]) / (x[0] - x[-1]), "that takes the last loss for the lowest; a "
         "loss may rise again"),
        (lambda x, n: 1 - _fallen(x, n), "that is the share that falls *after* the birth"),
        (lambda x, n: -_fallen(x, n), "the sign is reversed: a fall is earlier minus later"),
        (lambda x, n: 100 * _fallen(x, n), "that is in per cent; give a share"),
        (lambda x, n: 1 / _fallen(x, n), "that is upside down"),
        (lambda x, n: n / (len(x) - 1), "that is a share of the *snapshots*; ask how far the loss "
         "has fallen"),
        (lambda x, n: _fallen(np.exp(x), n), "those are perplexities; our loss is in nats already"),
    ],
    "the fall so far, over the whole fall.",
)  # fmt: skip

EXERCISES = {
    "10.1": _rate_of_a_schedule,
    "10.2": _birth_for_good,
    "10.3": _share_of_the_fall,
}
