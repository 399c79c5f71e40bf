"""Answers to the exercises of notebook 00: right ones as students write them, and wrong ones."""

import numpy as np

RIGHT = {
    "00.1": [lambda attention: sum(row[0] for row in attention) / len(attention)],
}

# With a part of what the check says to each.
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
}
