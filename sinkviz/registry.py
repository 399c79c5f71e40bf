"""What a policy is: its contract, the names of policies, and how they are written and read.

Our own policies are in ``sinkviz.policies``, which also hands out what is here; a user adds theirs
with ``register_policy``. Knows nothing about any one policy.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class Policy(Protocol):
    """What a policy says. ``cache_size`` and ``keep`` are up to it, the rest has defaults.

    A policy that goes by attention has a method ``drop`` in place of ``keep``: see
    ``sinkviz.policies.H2O``.

    Attributes:
        cache_size: most tokens that a query sees, itself included; None for any number.
        n_sink: first tokens that are never evicted.
        n_recent: most recent tokens that are never evicted; None where there is no such number.
        recompute: each token's window is run afresh, without a cache.
        positions: ``cache`` or ``text``, see ``sinkviz.policies``.
        by_attention: what stays depends on the text, and differs by layer and head.
    """

    cache_size: int | None
    n_sink: int = 0
    n_recent: int | None = None
    recompute: bool = False
    positions: str = "cache"
    by_attention: bool = False

    def keep(self, n: int) -> list[int]:
        """Return the text positions that the n-th token (1-based) may attend to, in text order.

        The token itself, n - 1, is always among them. What is left out once never comes back.
        """


POLICIES: dict[str, type] = {}


def register_policy(name: str, policy_class: type | None = None) -> Callable[[type], type] | type:
    """Make a policy of your own known under a name; also a decorator.

    The class is a frozen dataclass with ``cache_size`` and ``keep(n)``; what else a ``Policy`` has
    is added to it where missing. It is written as ``name:4+60``, its fields in their order. One
    with other fields than whole numbers brings ``__str__`` and a classmethod ``from_text(sizes)``.

    Args:
        name: a word; case does not matter.
        policy_class: the class, where this is not used as a decorator.

    Returns:
        The class.

    Raises:
        ValueError: the name is no word or is taken, the class is no policy, or the instance with
            its defaults breaks the rules of ``keep`` or does not read as it is written.

    Example:
        >>> from dataclasses import dataclass
        >>> @register_policy("start")
        ... @dataclass(frozen=True)
        ... class Start:
        ...     cache_size: int = 8
        ...
        ...     def keep(self, n):
        ...         return [*range(min(n, self.cache_size) - 1), n - 1]
        >>> parse_policy("start:3").keep(6)
        [0, 1, 5]
    """
    if policy_class is None:
        return lambda policy_class: register_policy(name, policy_class)
    name, before = name.lower(), POLICIES.get(name.lower())
    _check_class(name, policy_class)
    for other in ("n_sink", "n_recent", "recompute", "positions", "by_attention"):
        if not hasattr(policy_class, other):
            setattr(policy_class, other, getattr(Policy, other))
    if policy_class.by_attention:
        policy_class.keep = _no_keep
    if policy_class.__str__ is object.__str__:
        policy_class.__str__ = _written
    POLICIES[name] = policy_class
    try:
        _check_default(policy_class)
    except ValueError:
        POLICIES.pop(name) if before is None else POLICIES.update({name: before})
        raise
    return policy_class


def _check_class(name: str, policy_class: type) -> None:
    title, taken = policy_class.__qualname__, POLICIES.get(name)
    if not re.fullmatch(r"[a-z][a-z0-9_-]*", name):
        raise ValueError(f"a policy's name is a word such as 'every', got {name!r}")
    # The cell of a notebook may be run again: its new class takes the place of the old one.
    if taken and (taken.__module__, taken.__qualname__) != (policy_class.__module__, title):
        raise ValueError(f"the name {name!r} is taken by {taken.__qualname__}; choose another")
    if not is_dataclass(policy_class) or not policy_class.__dataclass_params__.frozen:
        raise ValueError(f"{title} is no frozen dataclass; write @dataclass(frozen=True) above it")
    given = {one.name for one in fields(policy_class)} | set(dir(policy_class))
    method = "drop" if getattr(policy_class, "by_attention", False) else "keep"
    for needed in ("cache_size", method):
        if needed not in given or getattr(policy_class, needed, None) is Policy.keep:
            raise ValueError(f"{title} has no {needed}; see help(sinkviz.policies.Policy)")


def _check_default(policy_class: type) -> None:
    try:
        policy = policy_class()
    except TypeError:  # its fields have no defaults
        return
    check_keep(policy)
    try:
        found = parse_policy(str(policy))
    except ValueError as error:
        found = error
    if found != policy:
        raise ValueError(
            f"{policy!r} is written {str(policy)!r}, which reads as {found!r}; give it a __str__ "
            "and a classmethod from_text(sizes) that fit together"
        )


def _no_keep(policy: Policy, n: int) -> list[int]:
    """Refuse: what stays depends on the text."""
    raise ValueError(
        f"{policy} keeps what a text makes it keep, by layer and head, so that keep(n) is not "
        "known; run it and ask its cache (sinkviz.ranked.RankedCache.kept)"
    )


def check_keep(policy: Policy, length: int = 160) -> None:
    """Raise ValueError where ``keep`` breaks its rules; policies by attention have none.

    Args:
        policy: the policy.
        length: tokens of the text to try.
    """
    kept: list[int] = []
    for n in range(1, 1 if policy.by_attention else length + 1):
        kept = next_kept(policy, n, kept)


def next_kept(policy: Policy, n: int, before: Sequence[int]) -> list[int]:
    """Return ``policy.keep(n)``, checked against ``keep(n - 1)``.

    Raises:
        ValueError: a token is missing, unknown, out of order or back again, or there are too many.
    """
    kept, said = list(policy.keep(n)), f"{policy}: keep({n})"
    if kept != sorted(set(kept)):
        raise ValueError(f"{said} must be in text order, each token once, got {kept}")
    if n - 1 not in kept:
        raise ValueError(f"{said} must hold the token itself, {n - 1}, got {kept}")
    if strange := sorted(set(kept) - {*before, n - 1}):
        why = f"keep({n - 1}) left out" if 0 <= strange[0] < n else "is not in the text so far"
        raise ValueError(f"{said} holds token {strange[0]}, which {why}; the evicted are gone")
    if policy.cache_size is not None and len(kept) > policy.cache_size:
        raise ValueError(f"{said} holds {len(kept)} tokens, cache_size is {policy.cache_size}")
    return kept


def first_eviction(policy: Policy, length: int) -> int | None:
    """Return the first text position whose token no longer sees the whole text before it.

    Args:
        policy: the policy.
        length: tokens of the text.

    Returns:
        The position, or None where all of the text is seen.
    """
    size = length if policy.cache_size is None else min(length, policy.cache_size)
    if policy.by_attention:
        return size if size < length else None
    # What left stays away, so that a token which misses one is followed by such tokens only.
    seen = range(1, min(length, size + 1) + 1)
    found = bisect_left(seen, True, key=lambda n: len(policy.keep(n)) < n)
    return found if found < len(seen) else None


def check_registered(policy: Any) -> None:
    """Raise ValueError where something is not a whole policy."""
    if not isinstance(policy, Policy):
        raise ValueError(
            f"{policy!r} is no policy that is registered; write @sinkviz.register_policy('name') "
            "above its class, and give an instance"
        )


# Writing and reading ------------------------------------------------------------------------------


def parse_policy(text: str) -> Policy:
    """Return the policy that a short text names, ``str(policy)`` among others.

    Args:
        text: ``dense``; ``window:64``; ``4+60`` (sinks + recent; ``0+64`` is window attention;
            ``4+60@text`` leaves the sinks at their text positions); ``recompute:64``
            (``recompute:0+64`` without the begin token); ``h2o:32+32`` (heavy + recent);
            ``tova:64``; or a name of yours with its sizes.

    Raises:
        ValueError: the text names no policy.

    Example:
        >>> from sinkviz.policies import parse_policy
        >>> parse_policy("4+60")
        SinkWindow(n_sink=4, n_recent=60)
        >>> parse_policy("0+64")
        Window(n_recent=64)
    """
    name, sizes = re.fullmatch(r"\s*([a-zA-Z][\w-]*)?[\s:]*(.*?)\s*", text, re.DOTALL).groups()
    policy_class = POLICIES.get((name or "sink").lower())
    if policy_class is None or not (name or sizes):
        known = ", ".join(":".join(filter(None, (name, _form(c)))) for name, c in POLICIES.items())
        raise ValueError(f"no policy {text!r}; known are {known}; 4+60 is short for sink:4+60")
    try:
        if hasattr(policy_class, "from_text"):
            return policy_class.from_text(sizes)
        init = [one for one in fields(policy_class) if one.init]
        needed = [one for one in init if one.default is one.default_factory is MISSING]
        return policy_class(*read_sizes(sizes, max(len(needed), min(len(init), 1)), len(init)))
    except (TypeError, ValueError) as error:
        raise ValueError(f"no policy {text!r}: {error}") from error


def read_sizes(text: str, least: int, most: int) -> list[int]:
    """Return the numbers of a text such as ``4+60``.

    Raises:
        ValueError: something is not a whole number, or there are fewer than ``least`` or more than
            ``most``.
    """
    parts = [part.strip() for part in text.split("+")] if text else []
    if not least <= len(parts) <= most or not all(part.isdecimal() for part in parts):
        count = least if least == most else f"{least} to {most}"
        noun = "size" if most == 1 else "sizes"
        raise ValueError(f"expected {count} {noun} (whole numbers joined by +), got {text!r}")
    return [int(part) for part in parts]


def _form(policy_class: type) -> str:
    return "+".join("N" for one in fields(policy_class) if one.init and one.type in ("int", int))


def _written(policy: Policy) -> str:
    """Return how a policy is written that does not say so itself: its name and its fields."""
    known = (name for name, one in POLICIES.items() if one is type(policy))
    sizes = "+".join(str(getattr(policy, one.name)) for one in fields(policy) if one.init)
    return ":".join(filter(None, (next(known, type(policy).__name__.lower()), sizes)))
