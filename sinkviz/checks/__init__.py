"""Self-checks of the exercises: an answer in, a sentence out that names the likely mistake.

What is right is computed by the package itself, on examples made here; one module per notebook.
Takes functions and arrays; knows nothing about models.
"""

from __future__ import annotations

import os
import pkgutil
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from sinkviz.checks.judging import Check

STRICT = "SINKVIZ_STRICT"

# Every module nNN_... has the exercises of notebook NN, by id.
EXERCISES: dict[str, Check] = {}
for _module in sorted(module.name for module in pkgutil.iter_modules(__path__)):
    if _module.startswith("n"):
        EXERCISES |= import_module(f"{__name__}.{_module}").EXERCISES


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
