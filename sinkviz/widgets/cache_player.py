"""A cache policy, step by step: which tokens of a text stay, and where they lie in the cache."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import traitlets
from matplotlib.figure import Figure

from sinkviz.plots.cache import plot_cache
from sinkviz.policies import Policy, check_registered, parse_policy
from sinkviz.registry import next_kept
from sinkviz.style import policy_name
from sinkviz.widgets.common import as_bytes
from sinkviz.widgets.teaching import TeachingWidget, as_labels, teaching_module

MOST_TOKENS = 1000


def evicted_at(policy: Policy, length: int) -> np.ndarray:
    """Return the step at which each token of a text leaves the cache.

    Step n is when the n-th token comes in. What has left never comes back, so that one number per
    token says all.

    Args:
        policy: the policy; not one by attention.
        length: tokens of the text.

    Returns:
        Steps in 1..``length``, and ``length + 1`` for what is still held at the end.

    Raises:
        ValueError: ``keep`` breaks its rules.

    Example:
        >>> from sinkviz.policies import SinkWindow
        >>> evicted_at(SinkWindow(n_sink=1, n_recent=2), 5).tolist()
        [6, 4, 5, 6, 6]
    """
    steps = np.full(length, length + 1)
    before: list[int] = []
    for n in range(1, length + 1):
        kept = next_kept(policy, n, before)
        steps[sorted({*before} - {*kept})] = n
        before = kept
    return steps


class CachePlayer(TeachingWidget):
    """Play, step or scrub through a text, and see what a cache policy keeps.

    Text positions are above, the cache below, with the position that the model sees of each token.

    Args:
        policy: any policy whose ``keep(n)`` is known before a text is; or how one is written, such
            as ``4+60``.
        tokens: the tokens as strings, or how many there are; at most 1000.
        step: tokens read at the start; all where not given.

    Raises:
        ValueError: the policy goes by attention or breaks the rules of ``keep``, there is no token
            or too many, or there is no such step.

    Example:
        >>> from sinkviz.policies import SinkWindow
        >>> player = CachePlayer(SinkWindow(n_sink=1, n_recent=2), 6, step=5)
        >>> player.kept, player.evicted
        ([0, 3, 4], [2])
    """

    _esm = teaching_module("cache_player")

    step = traitlets.Int(help="tokens read so far").tag(sync=True)
    tokens = traitlets.List(traitlets.Unicode(), help="empty strings: no text").tag(sync=True)
    gone = traitlets.Bytes(help="step at which each token leaves, float32").tag(sync=True)
    name = traitlets.Unicode(help="of the policy").tag(sync=True)
    n_sink = traitlets.Int().tag(sync=True)
    cache_size = traitlets.Int(help="0 is any").tag(sync=True)
    positions = traitlets.Unicode(help="cache or text: what the model sees").tag(sync=True)
    recompute = traitlets.Bool().tag(sync=True)

    def __init__(
        self,
        policy: Policy | str,
        tokens: Sequence[str] | int = 32,
        *,
        step: int | None = None,
    ) -> None:
        policy = parse_policy(policy) if isinstance(policy, str) else policy
        check_registered(policy)
        if policy.by_attention:
            raise ValueError(
                f"{policy} keeps what a text makes it keep, by layer and head, which no player "
                "knows beforehand; see it at work in SideBySide"
            )
        labels = [""] * tokens if isinstance(tokens, int) else as_labels(list(tokens))
        if not 1 <= len(labels) <= MOST_TOKENS:
            raise ValueError(f"tokens must be 1 to {MOST_TOKENS}, got {len(labels)}")
        self._policy = policy
        self._gone = evicted_at(policy, len(labels))
        super().__init__(
            tokens=labels,
            step=len(labels) if step is None else step,
            gone=as_bytes(self._gone),
            name=policy_name(policy),
            n_sink=policy.n_sink,
            cache_size=policy.cache_size or 0,
            positions=policy.positions,
            recompute=policy.recompute,
        )

    @traitlets.validate("step")
    def _within(self, proposal: traitlets.Bunch) -> int:
        if not 1 <= proposal["value"] <= len(self._gone):
            raise ValueError(f"step must be in 1..{len(self._gone)}, got {proposal['value']}")
        return proposal["value"]

    @property
    def policy(self) -> Policy:
        """The policy that is played."""
        return self._policy

    @property
    def kept(self) -> list[int]:
        """Text positions that the newest token may attend to."""
        return self._policy.keep(self.step)

    @property
    def evicted(self) -> list[int]:
        """Text positions that left when the newest token came in."""
        return np.flatnonzero(self._gone == self.step).tolist()

    def draw(self, figure: Figure) -> None:
        """Draw the step as it stands into an empty figure."""
        plot_cache(self._policy, self.tokens, self.step, ax=figure.subplots())

    def __repr__(self) -> str:
        return f"CachePlayer({self._policy!r}: step {self.step} of {len(self._gone)})"
