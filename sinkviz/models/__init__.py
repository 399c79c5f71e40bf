"""Language models: ``lm`` is one in the hand, ``loading`` is where it comes from."""

from sinkviz.models.lm import (
    FEW_PARAMETERS,
    LM,
    Text,
    changed,
    few_threads,
    untouched,
    whole_ids,
)
from sinkviz.models.loading import assets_folder, bundled, load, pick_device, quiet

__all__ = [
    "FEW_PARAMETERS",
    "LM",
    "Text",
    "assets_folder",
    "bundled",
    "changed",
    "few_threads",
    "load",
    "pick_device",
    "quiet",
    "untouched",
    "whole_ids",
]
