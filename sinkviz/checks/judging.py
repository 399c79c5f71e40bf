"""How an answer is judged: by examples, and wrong ones by looking them up among mistakes.

Takes functions and arrays; knows nothing about models, nor about any one exercise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Verdict = tuple[bool, str]
Mistake = tuple[Callable[..., Any], str]
Check = Callable[[Any], Verdict]


def by_example(
    right: Callable[..., Any],
    examples: Sequence[dict[str, Any]],
    mistakes: Sequence[Mistake],
    praise: str,
    nan: str = "somewhere a number is missing, or divided by zero",
) -> Check:
    """Return a check that tries a function on examples and looks a wrong one up among mistakes.

    Args:
        right: a function of the package that gives the right answer.
        examples: its arguments, by name; together they must tell the mistakes apart.
        mistakes: wrong functions and what to say, the likely ones first.
        praise: what to say of a right answer.
        nan: what to say of an answer that is not a number.
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
            return False, f"NaN: {nan}. {mismatch}"
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
