"""The exercises of notebook 06."""

from __future__ import annotations

import math

import numpy as np
import torch

from sinkviz.checks.judging import by_example
from sinkviz.positions import alibi_bias, rotate, rotation_by

# 06.1: ALiBi's bias as a matrix


def _distance(n_tokens: int) -> np.ndarray:
    return np.arange(n_tokens)[:, None] - np.arange(n_tokens)


def _masked(bias: np.ndarray) -> np.ndarray:
    return np.where(_distance(len(bias)) >= 0, bias, -np.inf)


def _bias(n_tokens: int, slope: float) -> np.ndarray:
    slopes = torch.tensor([slope], dtype=torch.float64)
    return _masked(alibi_bias(slopes, torch.from_numpy(_distance(n_tokens)))[0].numpy())


_bias_matrix = by_example(
    _bias,
    [{"n_tokens": 3, "slope": 0.5}, {"n_tokens": 5, "slope": 0.2}],
    [
        (lambda n, m: _masked(m * _distance(n)), "the sign is reversed: distance is a penalty, so "
         "no bias is above 0"),
        (lambda n, m: -m * _distance(n), "the future is not masked, and even gets a bonus; a query "
         "must not see later keys, so put minus infinity there"),
        (lambda n, m: np.tril(-m * _distance(n)), "a bias of 0 does not hide the future: it is as "
         "welcome as the token itself; put minus infinity there"),
        (lambda n, m: -m * abs(_distance(n)), "the future is only penalised; a query must not see "
         "it, so put minus infinity there"),
        (lambda n, m: _bias(n, m).T, "queries are rows and keys are columns: yours is transposed"),
        (lambda n, m: _masked(-m * (_distance(n) + 1)), "one too far: the distance to oneself is "
         "0"),
        (lambda n, m: _masked(-1.0 * _distance(n)), "the slope is missing"),
        (lambda n, m: _masked(-_distance(n) / m), "divided by the slope; multiply"),
        (lambda n, m: _masked(-m * np.arange(n) + np.zeros((n, n))), "that is the key's position; "
         "take its distance from the query"),
        (lambda n, m: -m * np.arange(n), "that is the bias by distance, a row; give a matrix, "
         "(query, key)"),
        (lambda n, m: np.exp(_bias(n, m)), "that is the factor after the softmax's exponential; "
         "the bias is added before it"),
    ],
    "minus slope times distance, and nothing from the future.",
)  # fmt: skip


# 06.2: one rotary wheel


def _turned(x: np.ndarray, angle: float) -> np.ndarray:
    cos, sin = math.cos(angle), math.sin(angle)
    return np.array([cos * x[0] - sin * x[1], sin * x[0] + cos * x[1]])


def _rotated(x: np.ndarray, position: int, frequency: float) -> np.ndarray:
    cos, sin = rotation_by(position, torch.tensor([frequency], dtype=torch.float64))
    return rotate(torch.from_numpy(x), cos, sin).numpy()


_rotary_pair = by_example(
    _rotated,
    [
        {"x": np.array([1.0, 2.0]), "position": 3, "frequency": 0.4},
        {"x": np.array([-0.5, 1.5]), "position": 7, "frequency": 0.15},
    ],
    [
        (lambda x, p, f: _turned(x, -p * f), "turned clockwise: a positive angle turns the first "
         "axis towards the second"),
        (lambda x, p, f: _turned(x, math.radians(p * f)), "the angle is in radians already, not in "
         "degrees"),
        (lambda x, p, f: _turned(x, p), "the frequency is missing: the angle is position times "
         "frequency"),
        (lambda x, p, f: _turned(x, f), "the position is missing: the angle is position times "
         "frequency"),
        (lambda x, p, f: _turned(x, p / f), "divided by the frequency; the angle is position times "
         "frequency"),
        (lambda x, p, f: _turned(x, 2 * math.pi * p * f), "the frequency is in radians per token, "
         "not in turns: leave out the 2 pi"),
        (lambda x, p, f: np.array([math.cos(p * f) * x[0] + math.sin(p * f) * x[1],
                                   math.sin(p * f) * x[0] + math.cos(p * f) * x[1]]),
         "a minus is missing: that changes the vector's length, a rotation does not"),
        (lambda x, p, f: _turned(x, math.pi / 2 - p * f), "sine and cosine are swapped"),
        (lambda x, p, f: x + p * f, "the angle is added to the coordinates; turn the vector by it"),
        (lambda x, p, f: x + np.array([math.sin(p * f), math.cos(p * f)]), "that adds a position "
         "vector, as sinusoidal embeddings do; rotary positions turn the vector"),
        (lambda x, p, f: x * math.cos(p * f), "that only shrinks the vector; its coordinates must "
         "mix"),
        (lambda x, p, f: _turned(x, p * f)[0], "that is the first coordinate; give both"),
    ],
    "the same length, another direction.",
)  # fmt: skip

EXERCISES = {"06.1": _bias_matrix, "06.2": _rotary_pair}
