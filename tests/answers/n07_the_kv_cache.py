"""Answers to the exercises of notebook 07: right ones as students write them, and wrong ones."""

import numpy as np
import torch

RIGHT = {
    "07.1": [
        lambda n, layers, heads, kv, dim, size: n * layers * (kv * dim + kv * dim) * size,
        lambda n, layers, heads, kv, dim, size: sum(
            2 * kv * np.zeros(dim).size * size for _ in range(n) for _ in range(layers)
        ),
    ],
    "07.2": [
        lambda n, s, r, e: sorted({*range(min(n, s)), *range(0, n, e), *range(max(0, n - r), n)}),
        lambda n, s, r, e: np.array([i for i in range(n) if i < s or n - i <= r or not i % e]),
        lambda n, s, r, e: {i for i in range(n) if i < s or i >= n - r or i in range(0, n, e)},
    ],
    "07.3": [
        lambda received, r: np.argmin(received[: len(received) - (r - 1)]),
        lambda received, r: min(range(len(received) - r + 1), key=lambda i: received[i]),
        lambda received, r: torch.tensor(received)[: len(received) + 1 - r].argmin(),
    ],
}

# With a part of what the check says to each.
WRONG = {
    "07.1": [
        (lambda n, layers, heads, kv, dim, size: n * layers * kv * dim * size, "factor of 2"),
        (lambda n, layers, heads, kv, dim, size: 2 * n * layers * heads * dim * size, "query head"),
        (lambda n, layers, heads, kv, dim, size: 3 * n * layers * kv * dim * size, "not three"),
        (lambda n, layers, heads, kv, dim, size: 2 * n * kv * dim * size, "one layer"),
        (lambda n, layers, heads, kv, dim, size: 2 * n * layers * dim * size, "one kv head"),
        (lambda n, layers, heads, kv, dim, size: 2 * n * layers * kv * dim, "how many numbers"),
        (lambda n, layers, heads, kv, dim, size: 16 * n * layers * kv * dim * size, "bits"),
        (lambda n, layers, heads, kv, dim, size: 2 * layers * kv * dim * size, "one token takes"),
        (lambda n, layers, heads, kv, dim, size: 2 * n**2 * layers * kv * dim * size, "square"),
        (lambda n, layers, heads, kv, dim, size: 2 * n * layers * kv * size, "head_dim is missing"),
    ],
    "07.2": [
        (lambda n, s, r, e: sorted({*range(min(n, s)), *range(max(0, n - r), n)}), "StreamingLLM"),
        (lambda n, s, r, e: sorted({*range(0, n, e), *range(max(0, n - r), n)}), "sinks are miss"),
        (lambda n, s, r, e: sorted({*range(min(n, s)), *range(0, n, e)}), "recent tokens are miss"),
        (
            lambda n, s, r, e: sorted(
                {*range(min(n, s)), *range(n - 1, -1, -e), *range(max(0, n - r), n)}
            ),
            "back from the newest token",
        ),
        (
            lambda n, s, r, e: [i for i in range(n) if i < s or n - i <= r or (n - i) % e == 0],
            "back from the end of the text",
        ),
        (
            lambda n, s, r, e: sorted(
                {*range(min(n, s)), *range(e - 1, n, e), *range(max(0, n - r), n)}
            ),
            "one place too early",
        ),
        (
            lambda n, s, r, e: sorted(
                {*range(min(n, s)), *range(s % e, n, e), *range(max(0, n - r), n)}
            ),
            "not from the end of the sinks",
        ),
        (lambda n, s, r, e: [i for i in range(n) if i < s or n - i <= r or i % e], "turned round"),
        (
            lambda n, s, r, e: (
                list(range(n))[:s] + list(range(n))[::e] + list(range(max(0, n - r), n))
            ),
            "come twice",
        ),
        (
            lambda n, s, r, e: [i for i in range(n) if i < s or i >= n - r - 1 or not i % e],
            "one recent token too many",
        ),
        (
            lambda n, s, r, e: [i for i in range(n - 1) if i < s or i >= n - r or not i % e],
            "current token is missing",
        ),
        (
            lambda n, s, r, e: [i for i in range(n)[::-1] if i < s or i >= n - r or not i % e],
            "oldest first",
        ),
        (
            lambda n, s, r, e: sum(i < s or i >= n - r or not i % e for i in range(n)),
            "how many are kept",
        ),
    ],
    "07.3": [
        (lambda received, r: np.argmin(received), "not protected; choose"),
        (lambda received, r: np.argmin(received[: len(received) - r]), "one recent token too many"),
        (lambda received, r: np.argmax(received[: len(received) - r + 1]), "heaviest hitter"),
        (lambda received, r: np.argmax(received[:-1]), "heaviest hitter"),
        (lambda received, r: min(received[: len(received) - r + 1]), "how much attention"),
        (
            lambda received, r: 1 + np.argmin(received[1 : len(received) - r + 1]),
            "leave it among the candidates",
        ),
        (lambda received, r: np.argmin(received[1 : len(received) - r + 1]), "shifts all places"),
        (lambda received, r: np.argmin(received[r - 1 :]), "the last ones"),
        (lambda received, r: np.argmin(received[len(received) - r + 1 :]), "one of the recent"),
        (lambda received, r: 0, "that is the oldest"),
        (
            lambda received, r: [
                x
                for i, x in enumerate(received)
                if i != np.argmin(received[: len(received) - r + 1])
            ],
            "that is what stays",
        ),
    ],
}
