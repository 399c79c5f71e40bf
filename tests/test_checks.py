"""Self-checks: the stub, the solution, and wrong answers that are called by their name."""

from __future__ import annotations

import re

import numpy as np
import pytest
from answers import RIGHT, WRONG

from sinkviz.checks import EXERCISES, CheckResult, check

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
    with pytest.raises(ValueError, match=r"no exercise '8.1'; known are 00.1, "):
        check("8.1", stub)


def test_results_read_as_a_sentence():
    assert repr(CheckResult("00.1", True, "good.")) == "Exercise 00.1 \u2713 right: good."
    assert repr(CheckResult("00.1", False, "no.")) == "Exercise 00.1 \u2717 not yet: no."
