"""Self-checks of the exercises: an answer in, a sentence out that names the likely mistake.

What is right is computed by the package itself, on examples made here. Takes functions and
arrays; knows nothing about models.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from sinkviz.metrics import perplexity, received_attention
from sinkviz.policies import SinkWindow

STRICT = "SINKVIZ_STRICT"

Verdict = tuple[bool, str]
Mistake = tuple[Callable[..., Any], str]


@dataclass(frozen=True, repr=False)
class CheckResult:
    """What a self-check found; it reads as one sentence, and is true where the answer is right.

    Attributes:
        exercise: id of the exercise.
        passed: whether the answer is right; None where there is no answer yet.
        message: what is right, or what the likely mistake is.
    """

    exercise: str
    passed: bool | None
    message: str

    def __bool__(self) -> bool:
        return bool(self.passed)

    def __repr__(self) -> str:
        sign = {True: "\u2713 right", False: "\u2717 not yet", None: "\u25cb not attempted yet"}
        return f"Exercise {self.exercise} {sign[self.passed]}: {self.message}"


def check(exercise: str, answer: Any) -> CheckResult:
    """Check an answer to an exercise of the course.

    A function is tried on a few examples. Whatever it raises is reported and never stops the
    notebook, unless the environment variable ``SINKVIZ_STRICT`` is 1.

    Args:
        exercise: id, as printed on the exercise card, such as ``08.1``.
        answer: what the card asks for, most often the function itself.

    Returns:
        The result; as the last line of a cell it is printed.

    Raises:
        ValueError: there is no such exercise.
        NotImplementedError: in strict mode, the answer is still the stub.
        AssertionError: in strict mode, the answer is wrong.

    Example:
        >>> check("08.1", lambda n, n_sink, n_recent: list(range(n))[-n_recent:])
        Exercise 08.1 ✗ not yet: the sinks are missing: this is window attention.
        For (n=7, n_sink=2, n_recent=3) expected [0, 1, 4, 5, 6], got [4, 5, 6]
    """
    if exercise not in EXERCISES:
        raise ValueError(f"no exercise {exercise!r}; known are {', '.join(EXERCISES)}")
    strict = os.environ.get(STRICT) == "1"
    try:
        passed, message = EXERCISES[exercise](answer)
    except NotImplementedError:
        if strict:
            raise
        return CheckResult(exercise, None, "write your answer in place of the line with raise")
    if strict and not passed:
        raise AssertionError(f"exercise {exercise}: {message}")
    return CheckResult(exercise, passed, message)


def _by_example(
    right: Callable[..., Any],
    examples: Sequence[dict[str, Any]],
    mistakes: Sequence[Mistake],
    praise: str,
) -> Callable[[Any], Verdict]:
    """Return a check that tries a function on examples and looks a wrong one up among mistakes.

    Args:
        right: a function of the package that gives the right answer.
        examples: its arguments, by name; together they must tell the mistakes apart.
        mistakes: wrong functions and what to say, the likely ones first.
        praise: what to say of a right answer.
    """

    def judge(answer: Any) -> Verdict:
        if not callable(answer):
            return False, f"give the function itself, without brackets, not {_shown(answer)}"
        given = []
        for example in examples:
            try:
                # Positional, so that the names of the student's arguments do not matter.
                value = answer(*(_copied(one) for one in example.values()))
            except NotImplementedError:
                raise
            except Exception as error:
                kind = type(error).__name__
                return False, f"for {_call(example)} your function stops with {kind}: {error}"
            given.append(value)
        expected = [right(*example.values()) for example in examples]
        wrong = [n for n in range(len(examples)) if not _agree(given[n], expected[n])]
        if not wrong:
            return True, praise
        example, want, got = examples[wrong[0]], expected[wrong[0]], given[wrong[0]]
        mismatch = f"For {_call(example)} expected {_shown(want)}, got {_shown(got)}"
        if got is None:
            return False, f"your function returns nothing: is the return missing? {mismatch}"
        if any(_has_nan(one) for one in given):
            return False, f"NaN: the first token has no prediction, so no nll. {mismatch}"
        for mistaken, what in mistakes:
            wrongly = [mistaken(*(_copied(one) for one in each.values())) for each in examples]
            if all(map(_agree, given, wrongly)):
                return False, f"{what}. {mismatch}"
        return False, mismatch

    return judge


def _copied(value: Any) -> Any:
    return value.copy() if isinstance(value, np.ndarray) else value


def _array(value: Any) -> np.ndarray | None:
    """Return numbers as an array of floats, None where they are no numbers."""
    if isinstance(value, set | frozenset | range):
        value = sorted(value)
    try:
        return np.asarray(value, dtype=float)
    except (TypeError, ValueError, RuntimeError):
        return None


def _agree(one: Any, other: Any) -> bool:
    one, other = _array(one), _array(other)
    if one is None or other is None or one.shape != other.shape:
        return False
    return bool(np.allclose(one, other, rtol=1e-4, atol=1e-9))


def _has_nan(value: Any) -> bool:
    array = _array(value)
    return array is not None and bool(np.isnan(array).any())


def _shown(value: Any) -> str:
    """Return a value as short text."""
    array = _array(value)
    if value is None or array is None:
        text = repr(value)
        return text if len(text) <= 60 else text[:59] + "…"
    if array.ndim == 0:
        return f"{float(array):.4g}"
    if array.ndim == 1 and len(array) <= 12:
        return "[" + ", ".join("nan" if math.isnan(x) else f"{x:.4g}" for x in array) + "]"
    return f"numbers of shape {array.shape}"


def _call(example: dict[str, Any]) -> str:
    return "(" + ", ".join(f"{name}={_shown(value)}" for name, value in example.items()) + ")"


# 00.1: the attention that the first token receives ----------------------------------------------


def _made_up_map(length: int, seed: int) -> np.ndarray:
    """Return a causal attention map, (query, key).

    Rows sum to less than one, as with an off-by-one softmax: otherwise the first row is always
    (1, 0, 0 ...), and several mistakes give the same number.
    """
    weights = np.tril(np.random.default_rng(seed).uniform(0.1, 1, (length, length)))
    weights /= weights.sum(-1, keepdims=True)
    weights[0] *= 0.2
    return 0.9 * weights


def _first_received(attention: np.ndarray) -> float:
    return float(received_attention(torch.from_numpy(attention))[0])


_first_token = _by_example(
    _first_received,
    [{"attention": _made_up_map(3, seed=0)}, {"attention": _made_up_map(5, seed=1)}],
    [
        (lambda a: a[0].mean(), "that is the first row, what the first *query* gives; a key is a "
         "column"),
        (lambda a: a[0, 0], "that is one cell, the first token looking at itself; take the whole "
         "column"),
        (lambda a: a[:, 0], "that is the whole column; take its mean over the queries"),
        (lambda a: a[:, 0].sum(), "that is the sum of the column; divide by the number of queries"),
        (lambda a: a[:, 0].max(), "that is the largest share; take the mean"),
        (lambda a: a[:, -1].mean(), "that is the last key, which only one query sees; the first "
         "key is column 0"),
        (lambda a: a[1:, 0].mean(), "the first query is missing; received attention counts every "
         "query that sees the key"),
        (lambda a: a.mean(), "that is the mean of the whole map; take only column 0"),
        (lambda a: np.diag(a).mean(), "that is the diagonal, each token looking at itself"),
    ],
    "rows are queries, columns are keys, and a sink is a column.",
)  # fmt: skip


# 08.1: which tokens a sink window keeps ---------------------------------------------------------


def _keep(n: int, n_sink: int, n_recent: int) -> list[int]:
    return SinkWindow(n_sink, n_recent).keep(n)


def _glued(n: int, n_sink: int, n_recent: int) -> list[int]:
    return [*range(n_sink), *range(n - n_recent, n)]


def _glued_inside(n: int, n_sink: int, n_recent: int) -> list[int]:
    return [*range(min(n, n_sink)), *range(max(0, n - n_recent), n)]


_keep_of_a_sink_window = _by_example(
    _keep,
    [
        {"n": 7, "n_sink": 2, "n_recent": 3},
        {"n": 9, "n_sink": 1, "n_recent": 4},
        {"n": 6, "n_sink": 3, "n_recent": 5},
        {"n": 4, "n_sink": 3, "n_recent": 3},
        {"n": 2, "n_sink": 4, "n_recent": 3},
    ],
    [
        (lambda n, s, r: [*range(max(0, n - r), n)], "the sinks are missing: this is window "
         "attention"),
        (lambda n, s, r: [*range(n)], "nothing is evicted: this is dense attention"),
        (lambda n, s, r: [*range(min(s, n))], "the recent tokens are missing"),
        (_glued, "while the text is short, sinks and window overlap: some positions come twice or "
         "do not exist; give each token of range(n) once"),
        (_glued_inside, "while the text is short, sinks and window overlap: some positions come "
         "twice; give each once"),
        (lambda n, s, r: sorted({*_glued(n, s, r)}), "while the text is short, some positions do "
         "not exist yet, or no more; keep those in range(n)"),
        (lambda n, s, r: _keep(n, s, r)[::-1], "right tokens, "
         "wrong order; give the oldest first"),
        (lambda n, s, r: _keep(n, s, r + 1), "one recent token too many: n_recent counts the "
         "current token too"),
        (lambda n, s, r: _keep(n, s, r)[:-1], "the current token is missing: it is number n, at "
         "position n - 1, and sees itself"),
        (lambda n, s, r: _keep(n + 1, s, r), "position n is not written yet: the n-th token is at "
         "position n - 1"),
        (lambda n, s, r: _keep(n, s, max(1, r - s)), "the sinks come on top of the recent tokens, "
         "not out of them: the cache holds n_sink + n_recent"),
        (lambda n, s, r: _keep(n, r, s), "n_sink and n_recent are swapped"),
        (lambda n, s, r: len(_keep(n, s, r)), "that is how many are kept; give their positions"),
    ],
    "the first tokens and the latest ones, each once, the current one included.",
)  # fmt: skip


# 08.2: perplexity after eviction ----------------------------------------------------------------


def _made_up_nll(length: int, seed: int) -> np.ndarray:
    """Return nll per token, nats; NaN for the first, which nothing predicts."""
    nll = np.random.default_rng(seed).gamma(2.0, 0.7, length)
    nll[0] = np.nan
    return nll


_perplexity_after_eviction = _by_example(
    lambda nll, start: perplexity(torch.from_numpy(nll[start:])),
    [
        {"nll": _made_up_nll(9, seed=2), "start": 4},
        {"nll": _made_up_nll(30, seed=3), "start": 12},
    ],
    [
        (lambda nll, start: nll[start:].mean(), "that is the mean nll in nats; perplexity is its "
         "exponential"),
        (lambda nll, start: np.exp(nll[start:]).mean(), "mean of exponentials; take the mean "
         "first, then the exponential"),
        (lambda nll, start: np.exp(np.nanmean(nll)), "that is the perplexity of the whole text; "
         "leave out the tokens before start"),
        (lambda nll, start: np.exp(np.nanmean(nll[:start])), "that is the perplexity before "
         "eviction; take the tokens from start on"),
        (lambda nll, start: np.exp(nll[start + 1 :].mean()), "the token at start itself is "
         "missing"),
        (lambda nll, start: 2 ** nll[start:].mean(), "base 2 belongs to bits; our nll is in nats, "
         "base e"),
        (lambda nll, start: np.exp(nll[start:].sum()), "that is the exponential of the sum; divide "
         "by the number of tokens first"),
        (lambda nll, start: np.exp(-nll[start:].mean()), "the sign is reversed: nll is already "
         "*minus* the log probability"),
        (lambda nll, start: np.exp(np.median(nll[start:])), "that is built on the median; "
         "perplexity takes the mean"),
        (lambda nll, start: np.exp(nll[start:]), "that is one number per token; take the mean nll "
         "first"),
    ],
    "exp of the mean nll, over the tokens that count.",
)  # fmt: skip


# 08.3: the cliff in nats ------------------------------------------------------------------------


def _cliff(window: float, sinks: float) -> float:
    return math.log(window) - math.log(sinks)


_cliff_in_nats = _by_example(
    _cliff,
    [{"window": 8.0, "sinks": 2.0}, {"window": 30.0, "sinks": 12.0}],
    [
        (lambda w, s: w - s, "that is a difference of perplexities; nats are differences of their "
         "logarithms"),
        (lambda w, s: w / s, "that is how many times larger the perplexity is; its logarithm is "
         "the cliff in nats"),
        (lambda w, s: -_cliff(w, s), "the sign is reversed: the window is the worse one, so the "
         "cliff is above 0"),
        (lambda w, s: _cliff(w, s) / math.log(2), "those are bits (log2); nats are natural "
         "logarithms"),
        (lambda w, s: _cliff(w, s) / math.log(10), "that is log10; nats are natural logarithms"),
        (lambda w, s: math.log(w - s), "logarithm of the difference; take the difference of the "
         "logarithms"),
        (lambda w, s: math.log(w) / math.log(s), "a ratio of logarithms; take their difference"),
        (lambda w, s: math.exp(w) - math.exp(s), "perplexity is already an exponential; go back "
         "with the logarithm"),
    ],
    "a difference of mean nll is the logarithm of a ratio of perplexities.",
)  # fmt: skip


EXERCISES: dict[str, Callable[[Any], Verdict]] = {
    "00.1": _first_token,
    "08.1": _keep_of_a_sink_window,
    "08.2": _perplexity_after_eviction,
    "08.3": _cliff_in_nats,
}
