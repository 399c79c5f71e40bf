"""Answers to the exercises of notebook 06: right ones as students write them, and wrong ones."""

import cmath

import numpy as np
import torch


def _distance(n):
    return np.subtract.outer(np.arange(n), np.arange(n))


def _loops(n, slope):
    rows = [[-float("inf")] * n for _ in range(n)]
    for query in range(n):
        for key in range(query + 1):
            rows[query][key] = -slope * (query - key)
    return rows


def _complex(x, position, frequency):
    turned = complex(*x) * cmath.exp(1j * position * frequency)
    return [turned.real, turned.imag]


def _matrix(x, angle):
    cos, sin = np.cos(angle), np.sin(angle)
    return np.array([[cos, -sin], [sin, cos]]) @ x


RIGHT = {
    "06.1": [
        _loops,
        lambda n, slope: torch.tensor(_loops(n, slope)),
        lambda n, slope: -slope * np.tril(_distance(n)) + np.triu(np.full((n, n), -np.inf), 1),
    ],
    "06.2": [
        _complex,
        lambda x, position, frequency: _matrix(x, position * frequency),
        lambda x, position, frequency: tuple(_complex(x, position, frequency)),
    ],
}

# With a part of what the check says to each.
WRONG = {
    "06.1": [
        (lambda n, slope: np.where(_distance(n) >= 0, slope * _distance(n), -np.inf), "sign is"),
        (lambda n, slope: slope * _distance(n).T, "even gets a bonus"),
        (lambda n, slope: -slope * np.maximum(_distance(n), 0), "does not hide the future"),
        (lambda n, slope: -slope * np.abs(_distance(n)), "only penalised"),
        (lambda n, slope: np.transpose(_loops(n, slope)), "transposed"),
        (lambda n, slope: np.array(_loops(n, slope)) - slope, "one too far"),
        (lambda n, slope: _loops(n, 1), "slope is missing"),
        (lambda n, slope: _loops(n, 1 / slope), "divided by the slope"),
        (lambda n, slope: np.where(_distance(n) < 0, -np.inf, -slope * np.arange(n)), "position;"),
        (lambda n, slope: [-slope * i for i in range(n)], "give a matrix"),
        (lambda n, slope: np.exp(_loops(n, slope)), "exponential"),
    ],
    "06.2": [
        (lambda x, position, frequency: _matrix(x, -position * frequency), "clockwise"),
        (lambda x, position, frequency: _matrix(x, np.deg2rad(position * frequency)), "degrees"),
        (lambda x, position, frequency: _matrix(x, position), "frequency is missing"),
        (lambda x, position, frequency: _matrix(x, frequency), "position is missing"),
        (lambda x, position, frequency: _matrix(x, position / frequency), "divided by the freq"),
        (lambda x, position, frequency: _matrix(x, 2 * np.pi * position * frequency), "in turns"),
        (
            lambda x, position, frequency: np.array(
                [
                    x[0] * np.cos(position * frequency) + x[1] * np.sin(position * frequency),
                    x[0] * np.sin(position * frequency) + x[1] * np.cos(position * frequency),
                ]
            ),
            "a minus is missing",
        ),
        (
            lambda x, position, frequency: np.array(
                [
                    x[0] * np.sin(position * frequency) - x[1] * np.cos(position * frequency),
                    x[0] * np.cos(position * frequency) + x[1] * np.sin(position * frequency),
                ]
            ),
            "swapped",
        ),
        (lambda x, position, frequency: x + position * frequency, "added to the coordinates"),
        (
            lambda x, position, frequency: [
                x[0] + np.sin(position * frequency),
                x[1] + np.cos(position * frequency),
            ],
            "sinusoidal",
        ),
        (lambda x, position, frequency: x * np.cos(position * frequency), "only shrinks"),
        (lambda x, position, frequency: _complex(x, position, frequency)[0], "give both"),
    ],
}
