"""What the commands are given: policies, a model and a text, from words to things.

Knows nothing about any one command.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sinkviz.models import LM
    from sinkviz.policies import Policy


def read_policies(text: str, most: int | None = None) -> list[Policy]:
    """Return the policies of a text such as ``dense,4+60``, ``most`` of them at the most.

    Raises:
        ValueError: one is unknown, there is none, or there are too many.
    """
    from sinkviz.policies import parse_policy

    chosen = [parse_policy(part) for part in text.split(",") if part.strip()]
    if not chosen or len(chosen) > (most or len(chosen)):
        raise ValueError(f"expected {most or 'one or more'} policy, got {text!r}; try 4+60")
    return chosen


def load_model(name: str) -> LM:
    """Return a model, without progress bars where nobody watches."""
    from transformers.utils import logging

    from sinkviz.models import load

    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    return load(name)


def read_ids(lm: LM, source: str, n_tokens: int, skip: int) -> Any:
    """Return the ids of the first ``n_tokens`` of a source, ``skip`` characters left out.

    Raises:
        ValueError: nothing is left.
    """
    from sinkviz.text import read_text

    # Eight characters per token is more than any tokenizer needs; the rest is cut off.
    text = read_text(source, n_characters=skip + 8 * n_tokens)[skip:]
    if not text.strip():
        raise ValueError(f"{source} has at most {skip} characters; skip fewer")
    return lm.encode(text)[:n_tokens]
