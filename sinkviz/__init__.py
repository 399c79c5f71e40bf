"""See attention sinks, and run a language model forever.

The public names, nothing else. Each is imported when it is first asked for, so that the command
line answers at once and a figure needs no model.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_ROOMS = {
    "caches": ["SinkCache"],
    "capturing": ["capture"],
    "chatting": ["chat"],
    "checks": ["check"],
    "models": ["LM", "bundled", "load"],
    "plots": [
        "grid_alibi",
        "grid_attention",
        "grid_chat",
        "grid_mass_steps",
        "grid_norms",
        "grid_rotary",
        "grid_scores",
        "grid_softmax",
        "grid_visibility",
        "plot_alibi",
        "plot_alibi_bias",
        "plot_alibi_slopes",
        "plot_attention",
        "plot_entropy",
        "plot_mass",
        "plot_mass_steps",
        "plot_nll",
        "plot_norms",
        "plot_received",
        "plot_received_map",
        "plot_rotary",
        "plot_score_map",
        "plot_scores",
        "plot_sink_map",
        "plot_sink_sizes",
        "plot_softmax",
        "plot_value_norms",
        "plot_visibility",
    ],
    "policies": [
        "H2O",
        "TOVA",
        "Dense",
        "Recompute",
        "SinkWindow",
        "Window",
        "register_policy",
        "visibility",
    ],
    "records": ["StreamRun", "Trace"],
    "scoring": ["score"],
    "streaming": ["Step", "compare", "stream"],
    "widgets": [
        "AlibiFan",
        "AttentionExplorer",
        "CachePlayer",
        "PositionLab",
        "SideBySide",
        "SinkBirth",
        "SinkSlider",
        "SoftmaxBench",
    ],
}
_HOME = {name: room for room, names in _ROOMS.items() for name in names}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'sinkviz' has no attribute {name!r}")
    value = getattr(import_module(f"sinkviz.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
