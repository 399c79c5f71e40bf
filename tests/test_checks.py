"""Self-checks: the stub, the solution, and wrong answers that are called by their name."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from sinkviz.checks import EXERCISES, CheckResult, check
from sinkviz.policies import SinkWindow

# As students write them, in a way of their own and not as the package does.
RIGHT = {
    "00.1": [lambda attention: sum(row[0] for row in attention) / len(attention)],
    "08.1": [
        lambda n, s, r: sorted({*range(min(n, s)), *range(max(0, n - r), n)}),
        lambda n, s, r: np.array([i for i in range(n) if i < s or n - i <= r]),
        lambda n, s, r: tuple(SinkWindow(s, r).keep(n)),
        lambda n, s, r: {i for i in range(n) if i < s or n - i <= r},
        lambda n, s, r: torch.tensor(SinkWindow(s, r).keep(n)),
    ],
    "08.2": [
        lambda nll, start: float(np.exp(np.sum(nll[start:]) / (len(nll) - start))),
        lambda nll, start: torch.from_numpy(nll)[start:].mean().exp(),
    ],
    "08.3": [lambda window, sinks: np.log(window / sinks)],
}

WRONG = {
    "00.1": [
        (lambda a: a[0].mean(), "first row"),
        (lambda a: a[:, 0], "whole column; take its mean"),
        (lambda a: a[:, 0].sum(), "sum of the column"),
        (lambda a: a[:, -1].mean(), "last key"),
        (lambda a: a[0, 0], "one cell"),
        (lambda a: a[:, 0].max(), "largest share"),
        (lambda a: a[1:, 0].mean(), "first query is missing"),
        (lambda a: a.mean(), "mean of the whole map"),
        (lambda a: np.trace(a) / len(a), "diagonal"),
    ],
    "08.1": [
        (lambda n, s, r: list(range(n))[-r:], "sinks are missing"),
        (lambda n, s, r: list(range(n)), "nothing is evicted"),
        (lambda n, s, r: list(range(n))[:s], "recent tokens are missing"),
        (lambda n, s, r: list(range(s)) + list(range(n - r, n)), "twice or do not exist"),
        (lambda n, s, r: list(range(n))[:s] + list(range(n))[-r:], "come twice"),
        (lambda n, s, r: sorted(set(range(s)) | set(range(n - r, n))), "do not exist"),
        (lambda n, s, r: [i for i in range(n) if i < s or i >= n - r - 1], "one recent token too"),
        (lambda n, s, r: [i for i in range(n - 1) if i < s or i >= n - r], "current token is miss"),
        (lambda n, s, r: [i for i in range(n + 1) if i < s or i > n - r], "position n is not"),
        (lambda n, s, r: [i for i in range(n) if i < s or i >= n - max(1, r - s)], "on top of"),
        (lambda n, s, r: [i for i in range(n) if i < r or i >= n - s], "swapped"),
        (lambda n, s, r: [i for i in range(n)[::-1] if i < s or i >= n - r], "oldest first"),
        (lambda n, s, r: min(n, s + r), "how many"),
    ],
    "08.2": [
        (lambda nll, start: np.nanmean(nll[start:]), "its exponential"),
        (lambda nll, start: np.exp(nll[start:]).mean(), "mean of exponentials"),
        (lambda nll, start: np.exp(np.nanmean(nll)), "whole text"),
        (lambda nll, start: np.exp(nll.mean()), "NaN: the first token has no prediction"),
        (lambda nll, start: np.exp(nll[1:start].mean()), "before eviction"),
        (lambda nll, start: np.exp(nll[start + 1 :].mean()), "token at start itself"),
        (lambda nll, start: 2 ** np.mean(nll[start:]), "base 2"),
        (lambda nll, start: np.exp(nll[start:].sum()), "exponential of the sum"),
        (lambda nll, start: np.exp(-nll[start:].mean()), "sign is reversed"),
        (lambda nll, start: np.exp(np.median(nll[start:])), "median"),
        (lambda nll, start: np.exp(nll[start:]), "one number per token"),
    ],
    "08.3": [
        (lambda window, sinks: window - sinks, "difference of perplexities"),
        (lambda window, sinks: window / sinks, "how many times"),
        (lambda window, sinks: np.log(sinks / window), "sign is reversed"),
        (lambda window, sinks: np.log2(window / sinks), "bits"),
        (lambda window, sinks: np.log10(window / sinks), "log10"),
        (lambda window, sinks: np.log(window - sinks), "logarithm of the difference"),
        (lambda window, sinks: np.log(window) / np.log(sinks), "ratio of logarithms"),
        (lambda window, sinks: np.exp(window) - np.exp(sinks), "already an exponential"),
    ],
}

CASES = [(name, answer, what) for name, wrong in WRONG.items() for answer, what in wrong]


def stub(*arguments):
    raise NotImplementedError("exercise")


def test_every_exercise_is_tested():
    assert set(RIGHT) == set(WRONG) == set(EXERCISES)
    assert all(len(wrong) >= 3 for wrong in WRONG.values())


@pytest.mark.parametrize("exercise", EXERCISES)
def test_the_solution_passes(exercise, monkeypatch):
    monkeypatch.setenv("SINKVIZ_STRICT", "1")
    for answer in RIGHT[exercise]:
        result = check(exercise, answer)
        assert result and result.passed is True
        assert repr(result).startswith(f"Exercise {exercise} \u2713 right: ")


@pytest.mark.parametrize("exercise", EXERCISES)
def test_the_stub_is_not_attempted_yet(exercise, monkeypatch):
    monkeypatch.delenv("SINKVIZ_STRICT", raising=False)
    result = check(exercise, stub)
    assert not result and result.passed is None
    assert "not attempted yet" in repr(result)


@pytest.mark.parametrize(("exercise", "answer", "what"), CASES)
def test_a_wrong_answer_is_called_by_its_name(exercise, answer, what, monkeypatch):
    monkeypatch.delenv("SINKVIZ_STRICT", raising=False)
    result = check(exercise, answer)
    assert result.passed is False
    assert what in result.message
    assert re.search(r"For \(\w+=.+\) expected .+, got ", result.message)


@pytest.mark.parametrize("exercise", EXERCISES)
def test_a_mistake_without_a_name_shows_the_mismatch(exercise):
    assert "expected" in check(exercise, lambda *arguments: -17).message
    assert "got 'seven'" in check(exercise, lambda *arguments: "seven").message


@pytest.mark.parametrize("exercise", EXERCISES)
def test_nothing_that_a_student_writes_stops_the_notebook(exercise):
    assert "is the return missing" in check(exercise, lambda *arguments: None).message
    assert "stops with ZeroDivisionError" in check(exercise, lambda *arguments: 1 / 0).message
    assert "stops with TypeError" in check(exercise, lambda: 0).message
    assert "the function itself" in check(exercise, 0.5).message
    ragged = check(exercise, lambda *arguments: [[1], [1, 2]])
    assert ragged.passed is False and "expected" in ragged.message


def test_the_examples_are_the_students_to_spoil():
    def spoils(nll, start):
        mean = nll[start:].mean()
        nll[:] = 0
        return np.exp(mean)

    assert check("08.2", spoils) and check("08.2", spoils)


@pytest.mark.parametrize("exercise", EXERCISES)
def test_strict_mode_raises(exercise, monkeypatch):
    monkeypatch.setenv("SINKVIZ_STRICT", "1")
    with pytest.raises(NotImplementedError):
        check(exercise, stub)
    with pytest.raises(AssertionError, match=f"exercise {exercise}: "):
        check(exercise, WRONG[exercise][0][0])
    monkeypatch.setenv("SINKVIZ_STRICT", "0")
    assert check(exercise, stub).passed is None


def test_an_unknown_exercise_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"no exercise '8.1'; known are 00.1, 08.1, 08.2, 08.3"):
        check("8.1", stub)


def test_results_read_as_a_sentence():
    assert repr(CheckResult("00.1", True, "good.")) == "Exercise 00.1 \u2713 right: good."
    assert repr(CheckResult("00.1", False, "no.")) == "Exercise 00.1 \u2717 not yet: no."
