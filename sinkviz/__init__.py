"""See attention sinks, and run a language model forever."""

from sinkviz.caches import SinkCache
from sinkviz.capture import capture
from sinkviz.models import LM, bundled, load
from sinkviz.policies import Dense, Recompute, SinkWindow, Window, visibility
from sinkviz.records import StreamRun, Trace
from sinkviz.streaming import Step, compare, score, stream

__version__ = "0.1.0"

__all__ = [
    "LM",
    "Dense",
    "Recompute",
    "SinkCache",
    "SinkWindow",
    "Step",
    "StreamRun",
    "Trace",
    "Window",
    "bundled",
    "capture",
    "compare",
    "load",
    "score",
    "stream",
    "visibility",
]
