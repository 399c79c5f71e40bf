"""Answers to the exercises of notebook 09: right ones as students write them, and wrong ones."""

import numpy as np
import torch

from sinkviz.policies import SinkWindow


def _kept(n, s, r):
    return np.array(SinkWindow(s, r).keep(n))


def _walk(position, n_sink, n_recent):
    """Return the slot by walking through the text token by token."""
    slot = -1
    for _ in range(position + 1):
        slot += 1
        if slot == n_sink + n_recent:
            slot = n_sink
    return slot


RIGHT = {
    "09.1": [
        lambda n, s, r: [len(_kept(n, s, r)) - 1 - i for i in range(len(_kept(n, s, r)))],
        lambda n, s, r: list(range(min(n, s + r) - 1, -1, -1)),
        lambda n, s, r: torch.arange(min(n, s + r)).flip(0),
    ],
    "09.2": [
        lambda n, s, r, f: f * (n - len(_kept(n, s, r))),
        lambda n, s, r, f: np.clip(n - (s + r), 0, None) * f,
        lambda n, s, r, f: 0 if n <= s + r else (n - s - r) * f,
    ],
    "09.3": [
        _walk,
        lambda p, s, r: np.where(p < s, p, s + (p - s) % r),
        lambda p, s, r: p if p < s + r else s + (p - s) % r,
    ],
}

# With a part of what the check says to each.
WRONG = {
    "09.1": [
        (lambda n, s, r: [n - 1 - i for i in SinkWindow(s, r).keep(n)], "distances in the text"),
        (lambda n, s, r: SinkWindow(s, r).keep(n), "text positions"),
        (lambda n, s, r: np.arange(min(n, s + r)), "oldest token first"),
        (lambda n, s, r: np.arange(min(n, s + r), 0, -1), "one too far"),
        (lambda n, s, r: np.arange(s + r)[::-1], "only n tokens are held"),
        (lambda n, s, r: np.arange(n)[::-1], "nothing has left"),
        (lambda n, s, r: np.arange(min(n, r))[::-1], "sinks are missing"),
        (lambda n, s, r: np.arange(min(n, s + r + 1))[::-1], "one token too many"),
        (lambda n, s, r: np.arange(min(n, s + r) - 1, 0, -1), "newest token is missing"),
        (lambda n, s, r: np.arange(1 - min(n, s + r), 1), "sign is reversed"),
        (lambda n, s, r: min(n, s + r) - 1, "the largest one"),
    ],
    "09.2": [
        (lambda n, s, r, f: (n - (s + r)) * f, "turns backwards"),
        (lambda n, s, r, f: abs(n - s - r) * f, "nothing must turn"),
        (lambda n, s, r, f: max(n - s - r, 0), "in tokens"),
        (lambda n, s, r, f: n * f, "from the first token on"),
        (lambda n, s, r, f: (n - 1) * f, "newest token's own place"),
        (lambda n, s, r, f: max(0, n - r) * f, "sinks take places too"),
        (lambda n, s, r, f: max(0, n - 1 - s - r) * f, "one too few"),
        (lambda n, s, r, f: max(0, n + 1 - s - r) * f, "one too many"),
        (lambda n, s, r, f: min(0, s + r - n) * f, "sign is reversed"),
        (lambda n, s, r, f: min(n, s + r) * f, "tokens held"),
        (lambda n, s, r, f: max(0, n - s - r) / f, "multiply"),
        (lambda n, s, r, f: 2 * np.pi * f * max(0, n - s - r), "not in turns"),
    ],
    "09.3": [
        (lambda p, s, r: p % (s + r), "leave out the sinks' slots"),
        (lambda p, s, r: p % r, "overwrites the sinks"),
        (lambda p, s, r: (p - s) % r, "overwrites the sinks"),
        (lambda p, s, r: s + (p - s) % r, "sinks themselves"),
        (lambda p, s, r: p if p < s else s + p % r, "before you take the remainder"),
        (lambda p, s, r: s + p % r, "their own slots"),
        (lambda p, s, r: min(p, s + r - 1), "always writes the last slot"),
        (lambda p, s, r: p, "does not exist"),
        (lambda p, s, r: 1 + _walk(p, s, r), "counted from 0"),
        (lambda p, s, r: _walk(p, r, s), "swapped"),
        (lambda p, s, r: p if p < s else s + (p - s) // r, "how many rounds"),
    ],
}
