"""The recipes of the classroom zoo: what decides a training run, as data.

Knows sizes and schedules; trains nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from sinkviz.classroom import POSITIONS, ClassroomConfig


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what a training run produces.

    ``phases`` is a list of (tokens, learning rate at the end, weight decay of matrices); within a
    phase the learning rate moves linearly from the last one's. ``begin_share`` of the sequences
    start with ``<|begin|>`` (after the model's sink tokens, if it has any), the others with
    whatever token stands there. Recipes that differ in ``seed`` alone see the same corpus.
    """

    model: dict[str, Any] = field(default_factory=dict)
    phases: tuple[tuple[int, float, float], ...] = ((1_000_000, 3e-3, 0.1),)
    batch: int = 24
    warmup_steps: int = 200
    learning_rate: float = 3e-3
    begin_share: float = 1.0
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float = 1.0
    story_tokens: float = 0.1
    seed: int = 0

    @property
    def config(self) -> ClassroomConfig:
        """The model's configuration."""
        return ClassroomConfig(**self.model)

    @property
    def tokens_per_step(self) -> int:
        """Predicted tokens per optimiser step."""
        return self.batch * self.config.max_position_embeddings

    @property
    def n_steps(self) -> int:
        """Optimiser steps of the whole run."""
        return sum(tokens for tokens, _, _ in self.phases) // self.tokens_per_step

    def at(self, step: int) -> tuple[float, float]:
        """Return (learning rate, weight decay) of a step."""
        seen = step * self.tokens_per_step
        rate, decay = self.learning_rate, 0.0
        for tokens, end, decay in self.phases:  # noqa: B007  (the last phase's stays)
            if seen < tokens:
                rate += (end - rate) * seen / tokens
                break
            seen, rate = seen - tokens, end
        return rate * min(1.0, (step + 1) / self.warmup_steps), decay


_BODY = {
    "hidden_size": 128,
    "intermediate_size": 352,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
}


def _zoo(schedule: tuple[tuple[int, float, float], ...], **model: Any) -> Recipe:
    return Recipe(model={"position": "rope", **_BODY, **model}, phases=schedule)


# The families share a body, a corpus and a schedule; only what the name says differs.
_SOFTMAX = ((9_000_000, 2.6e-3, 0.1), (3_000_000, 1e-3, 0.1), (4_000_000, 2e-5, 0.1))
_SHORT = ((4_000_000, 2e-3, 0.1), (2_000_000, 2e-5, 0.1))
_POSITION = ((2_500_000, 2e-3, 0.1), (1_500_000, 2e-5, 0.1))

RECIPES: dict[str, Recipe] = {
    "classroom-rope": Recipe(
        model={"position": "rope", **_BODY},
        phases=(
            (12_000_000, 3e-3, 0.1),
            (10_797_312, 2.422e-3, 0.1),
            (1_000_000, 1.2e-3, 0.1),
            (7_404_992, 1.144e-03, 0.1),
            (24_357_888, 9.474e-04, 0.3),
            (1_000_000, 5e-4, 0.1),
            (22_635_968, 3.302e-04, 0.1),
            (5_000_000, 3e-4, 0.1),
            (12_000_000, 2e-5, 0.1),
        ),
    ),
    "softmax-standard": _zoo(_SOFTMAX),
    "softmax-no-begin": replace(_zoo(_SOFTMAX), begin_share=0.0),
    "softmax-sink-token": _zoo(_SOFTMAX, n_sink_tokens=1, vocab_size=2049),
    "softmax-off-by-one": _zoo(_SOFTMAX, softmax="off_by_one"),
    "softmax-sink-logit": _zoo(_SOFTMAX, softmax="sink_logit"),
    "softmax-gated": _zoo(_SOFTMAX, gated=True),
    **{
        f"position-{position}": replace(
            _zoo(_POSITION, position=position, max_position_embeddings=64), batch=48
        )
        for position in POSITIONS
    },
    # What fewer heads of keys save goes into the feed-forward: equal size.
    "heads-multi": _zoo(_SHORT),
    "heads-grouped": _zoo(_SHORT, num_key_value_heads=2, intermediate_size=396),
    "heads-single": _zoo(_SHORT, num_key_value_heads=1, intermediate_size=416),
    "smoke": Recipe(
        model={
            "hidden_size": 32,
            "num_attention_heads": 2,
            "num_hidden_layers": 2,
            "intermediate_size": 64,
            "max_position_embeddings": 32,
            "vocab_size": 512,
        },
        phases=((10_000, 1e-3, 0.1),),
        batch=4,
    ),
}
ZOO = tuple(name for name in RECIPES if name != "smoke")


def _varied(name: str, *, rate: float = 1.0, decay: float | None = None) -> Recipe:
    """Return a recipe with its learning rates multiplied, or with another weight decay."""
    recipe = RECIPES[name]
    phases = tuple(
        (tokens, rate * end, own if decay is None else decay) for tokens, end, own in recipe.phases
    )
    return replace(recipe, learning_rate=rate * recipe.learning_rate, phases=phases)


# The same once more, to tell what a recipe does from chance; only their records are bundled.
_SEEDED = (
    "softmax-standard",
    "softmax-off-by-one",
    "classroom-rope",
    "position-alibi",
    "position-rope",
    "position-sinusoidal",
)
SEEDS = {name: tuple(f"{name}-seed-{seed}" for seed in (1, 2)) for name in _SEEDED}
_BASE = "softmax-standard"
ALTERED = {
    f"{_BASE}-decay-0": _varied(_BASE, decay=0.0),
    f"{_BASE}-decay-0.5": _varied(_BASE, decay=0.5),
    f"{_BASE}-rate-third": _varied(_BASE, rate=1 / 3),
    f"{_BASE}-rate-double": _varied(_BASE, rate=2.0),
}
VARIANTS: dict[str, Recipe] = {
    again: replace(RECIPES[name], seed=seed)
    for name, runs in SEEDS.items()
    for seed, again in enumerate(runs, 1)
} | ALTERED
RECIPES |= VARIANTS


def recipe_of(name: str) -> Recipe:
    """Return a recipe by its name.

    Raises:
        ValueError: there is none of that name.
    """
    if name not in RECIPES:
        raise ValueError(f"no recipe {name!r}; known are {', '.join(RECIPES)}")
    return RECIPES[name]
