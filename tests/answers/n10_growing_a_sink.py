"""Answers to the exercises of notebook 10: right ones as students write them, and wrong ones."""

import numpy as np
import torch


def _walk(seen, first, tokens, ends):
    for n, end in zip(tokens, ends, strict=True):
        if seen < n:
            return first + (end - first) * seen / n
        seen, first = seen - n, end
    return first


def _restarting(seen, first, tokens, ends):
    for n, end in zip(tokens, ends, strict=True):
        if seen < n:
            return first + (end - first) * seen / n
        seen -= n
    return first


def _swapped(seen, first, tokens, ends):
    for n, end in zip(tokens, ends, strict=True):
        if seen < n:
            return end + (first - end) * seen / n
        seen, first = seen - n, end
    return first


def _stairs(seen, first, tokens, ends, late):
    for n, end in zip(tokens, ends, strict=True):
        if seen < n:
            return end if late else first
        seen, first = seen - n, end
    return first


def _backwards(steps, rates, born):
    birth = steps[-1]
    for step, rate in zip(steps[::-1], rates[::-1], strict=True):
        if rate <= born:
            break
        birth = step
    return birth


RIGHT = {
    "10.1": [
        _walk,
        lambda seen, first, tokens, ends: np.interp(seen, np.cumsum([0, *tokens]), [first, *ends]),
    ],
    "10.2": [
        _backwards,
        lambda steps, rates, born: steps[np.flatnonzero(rates <= born)[-1] + 1],
        lambda s, r, born: next(int(s[i]) for i in range(len(s)) if (r[i:] > born).all()),
    ],
    "10.3": [
        lambda losses, birth: (losses[0] - losses[birth]) / (losses[0] - losses.min()),
        lambda losses, birth: 1 - (losses[birth] - min(losses)) / np.ptp(losses),
        lambda x, n: torch.tensor((x[0] - x[n]) / (x.max() - x.min())),
    ],
}

# With a part of what the check says to each.
WRONG = {
    "10.1": [
        (lambda seen, first, tokens, ends: first, "for ever"),
        (lambda s, f, t, e: _stairs(s, f, t, e, late=True), "at the *end*"),
        (lambda s, f, t, e: _stairs(s, f, t, e, late=False), "phase *begins*"),
        (_restarting, "one before it ended"),
        (lambda s, f, t, e: f * (1 - s / sum(t)) + e[-1] * s / sum(t), "one line"),
        (lambda s, f, t, e: np.interp(s, [0] + t, [f] + e), "add them up"),
        (_swapped, "swapped"),
        (lambda s, f, t, e: np.interp(s, np.cumsum(t), e), "no beginning"),
        (lambda s, f, t, e: np.exp(np.interp(s, np.cumsum([0] + t), np.log([f] + e))), "*ratios*"),
    ],
    "10.2": [
        (lambda steps, rates, born: steps[np.argmax(rates > born)], "falls back"),
        (lambda s, r, born: np.flatnonzero(r <= born)[-1] + 1, "an index"),
        (lambda s, r, born: s[np.flatnonzero(r <= born)[-1]], "*without* sinks"),
        (lambda s, r, born: s[np.argmax(r)], "highest rate"),
        (lambda s, r, born: s[-1], "last step"),
        (lambda s, r, born: r[np.flatnonzero(r <= born)[-1] + 1], "rate at birth"),
        (lambda s, r, born: s[np.flatnonzero(r < born)[-1] + 1], "not *above*"),
        (lambda s, r, born: s[np.flatnonzero(r == 0)[-1] + 1], "born is 0 "),
        (lambda s, r, born: s[np.flatnonzero(r <= 0.05)[-1] + 1], "born is 0.05"),
        (lambda s, r, born: s[r > born], "all steps"),
    ],
    "10.3": [
        (lambda losses, birth: losses[0] - losses[birth], "fall in nats"),
        (lambda losses, birth: 1 - losses[birth] / losses[0], "first loss"),
        (lambda losses, birth: losses[birth] / losses[0], "ratio of losses"),
        (lambda x, n: (x[0] - x[n]) / (x[0] - x[-1]), "may rise again"),
        (lambda x, n: (x[n] - x.min()) / (x[0] - x.min()), "*after*"),
        (lambda x, n: (x[n] - x[0]) / (x[0] - x.min()), "sign is reversed"),
        (lambda x, n: 100 * (x[0] - x[n]) / (x[0] - x.min()), "per cent"),
        (lambda x, n: (x[0] - x.min()) / (x[0] - x[n]), "upside down"),
        (lambda x, n: n / (len(x) - 1), "*snapshots*"),
    ],
}
