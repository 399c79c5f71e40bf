"""The exercises of notebook 09."""

from __future__ import annotations

import numpy as np

from sinkviz.checks.judging import by_example
from sinkviz.policies import SinkWindow

# 09.1: distances within the cache


def _kept(n: int, n_sink: int, n_recent: int) -> np.ndarray:
    return np.array(SinkWindow(n_sink, n_recent).keep(n))


def _distances(n: int, n_sink: int, n_recent: int) -> np.ndarray:
    return np.arange(len(_kept(n, n_sink, n_recent)))[::-1]


_distances_within = by_example(
    _distances,
    [
        {"n": 20, "n_sink": 2, "n_recent": 4},
        {"n": 9, "n_sink": 1, "n_recent": 3},
        {"n": 4, "n_sink": 3, "n_recent": 5},
    ],
    [
        (lambda n, s, r: n - 1 - _kept(n, s, r), "those are distances in the text; within the "
         "cache the sinks stand right before the window, so there is no gap"),
        (lambda n, s, r: _kept(n, s, r), "those are text positions; count places from the newest "
         "token back"),
        (lambda n, s, r: _distances(n, s, r)[::-1], "those are places, or the newest comes first; "
         "give the distance of the oldest token first"),
        (lambda n, s, r: _distances(n, s, r) + 1, "one too far: the newest token's distance to "
         "itself is 0"),
        (lambda n, s, r: np.arange(s + r)[::-1], "while the text is shorter than the cache, only n "
         "tokens are held"),
        (lambda n, s, r: np.arange(n)[::-1], "nothing has left: count the tokens that are held, at "
         "most n_sink + n_recent"),
        (lambda n, s, r: np.arange(min(n, r))[::-1], "the sinks are missing: they are held too, "
         "before the window"),
        (lambda n, s, r: np.arange(min(n, s + r + 1))[::-1], "one token too many: n_recent counts "
         "the newest token too"),
        (lambda n, s, r: _distances(n, s, r)[:-1], "the newest token is missing: it sees itself, "
         "at distance 0"),
        (lambda n, s, r: -_distances(n, s, r), "the sign is reversed: a distance is newest minus "
         "older, 0 or more"),
        (lambda n, s, r: _distances(n, s, r)[0], "that is the largest one; give the distance of "
         "every token held"),
    ],
    "one step from each to the next, and none beyond the size of the cache.",
)  # fmt: skip


# 09.2: how far a sink's wheel is turned on


def _angle(n: int, n_sink: int, n_recent: int, frequency: float) -> float:
    return max(0, n - n_sink - n_recent) * frequency


_angle_of_a_sink = by_example(
    _angle,
    [
        {"n": 30, "n_sink": 2, "n_recent": 8, "frequency": 0.1},
        {"n": 17, "n_sink": 4, "n_recent": 10, "frequency": 0.5},
        {"n": 5, "n_sink": 4, "n_recent": 10, "frequency": 0.5},
    ],
    [
        (lambda n, s, r, f: (n - s - r) * f, "before the first eviction nothing must turn; yours "
         "turns backwards there"),
        (lambda n, s, r, f: abs(n - s - r) * f, "before the first eviction nothing must turn"),
        (lambda n, s, r, f: max(0, n - s - r), "that is in tokens; times the frequency it is in "
         "radians"),
        (lambda n, s, r, f: n * f, "that turns from the first token on; only tokens that have left "
         "make a gap"),
        (lambda n, s, r, f: (n - 1) * f, "that carries the sink to the newest token's own place; "
         "its place is right before the window"),
        (lambda n, s, r, f: max(0, n - r) * f, "the sinks take places too: n_sink + n_recent "
         "tokens are held"),
        (lambda n, s, r, f: max(0, n - 1 - s - r) * f, "one too few: of n tokens, n - n_sink - "
         "n_recent have left"),
        (lambda n, s, r, f: max(0, n + 1 - s - r) * f, "one too many: of n tokens, n - n_sink - "
         "n_recent have left"),
        (lambda n, s, r, f: -_angle(n, s, r, f), "the sign is reversed: the sinks move forward, "
         "after the window"),
        (lambda n, s, r, f: min(n, s + r) * f, "that counts the tokens held; take those that have "
         "left"),
        (lambda n, s, r, f: max(0, n - s - r) / f, "divided by the frequency; multiply"),
        (lambda n, s, r, f: 2 * np.pi * _angle(n, s, r, f), "the frequency is in radians per "
         "token, not in turns: leave out the 2 pi"),
    ],
    "as many steps of the wheel as tokens have left.",
)  # fmt: skip


# 09.3: the slot of a token


def _slot(position: int, n_sink: int, n_recent: int) -> int:
    return position if position < n_sink else n_sink + (position - n_sink) % n_recent


def _slot_unshifted(position: int, n_sink: int, n_recent: int) -> int:
    return position if position < n_sink else n_sink + position % n_recent


_slot_of_a_token = by_example(
    _slot,
    [
        {"position": 23, "n_sink": 4, "n_recent": 6},
        {"position": 10, "n_sink": 4, "n_recent": 6},
        {"position": 9, "n_sink": 4, "n_recent": 6},
        {"position": 1, "n_sink": 4, "n_recent": 6},
        {"position": 100, "n_sink": 1, "n_recent": 7},
    ],
    [
        (lambda p, s, r: p % (s + r), "the ring must leave out the sinks' slots: yours overwrites "
         "them after each round"),
        (lambda p, s, r: p % r, "that overwrites the sinks: the ring begins at slot n_sink"),
        (lambda p, s, r: (p - s) % r, "that overwrites the sinks: the ring begins at slot n_sink"),
        (lambda p, s, r: s + (p - s) % r, "the sinks themselves go to slots 0 to n_sink - 1"),
        (_slot_unshifted, "the ring begins with the token at position n_sink: count from there "
         "before you take the remainder"),
        (lambda p, s, r: s + p % r, "the sinks go to their own slots, and the ring begins with the "
         "token at position n_sink"),
        (lambda p, s, r: min(p, s + r - 1), "that always writes the last slot, so all others would "
         "have to be moved; overwrite the oldest where it stands"),
        (lambda p, s, r: p, "that slot does not exist: there are n_sink + n_recent"),
        (lambda p, s, r: _slot(p, s, r) + 1, "slots are counted from 0"),
        (lambda p, s, r: _slot(p, r, s), "n_sink and n_recent are swapped"),
        (lambda p, s, r: p if p < s else s + (p - s) // r, "that is how many rounds the ring has "
         "made; take the remainder"),
    ],
    "the sinks in their own slots, all others in a ring that overwrites the oldest.",
)  # fmt: skip

EXERCISES = {
    "09.1": _distances_within,
    "09.2": _angle_of_a_sink,
    "09.3": _slot_of_a_token,
}
