"""Live lanes: several cache policies write, or read, the same text at the same pace."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import signal
import textwrap
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import matplotlib.pyplot as plt
import traitlets
from matplotlib.figure import Figure

from sinkviz.models import LM, Text, few_threads
from sinkviz.plots.runs import plot_nll
from sinkviz.policies import Dense, Policy, Recompute, SinkWindow, Window, first_eviction
from sinkviz.records import StreamRun
from sinkviz.streaming import Step, compare
from sinkviz.style import policy_name
from sinkviz.widgets.common import Widget, drawable, module, sentence
from sinkviz.widgets.lanes import TAIL, LaneRecord

TICK = 0.08  # longest time that the kernel works in one go, seconds, unless one step takes longer
AHEAD = 20  # ticks sent before the front end has answered
PATIENCE = 100  # waits of 0.1 s for an answer, then nobody is looking
# What has a colour of its own, as in style.policy_styles.
KINDS = {Dense: "dense", Window: "window", SinkWindow: "sinkwindow", Recompute: "recompute"}

PLAYING: set[SideBySide] = set()


def _pause_all(*_: Any) -> None:
    for one in list(PLAYING):
        if one._task is not None:
            one._task.get_loop().call_soon_threadsafe(one.pause)


def heed_interrupts(wanted: bool) -> None:
    """Let an interrupt pause what plays, or no longer.

    Between two messages ipykernel ignores interrupts, so that the stop button of a notebook would
    not stop what plays in the background. Where somebody else handles them, nothing is changed.
    """
    ours, theirs = (_pause_all, signal.SIG_IGN) if wanted else (signal.SIG_IGN, _pause_all)
    in_main_thread = threading.current_thread() is threading.main_thread()
    if in_main_thread and signal.getsignal(signal.SIGINT) is theirs:
        signal.signal(signal.SIGINT, ours)


class SideBySide(Widget):
    """Watch several cache policies write from one prompt, or read one text, in lockstep.

    Each lane shows its text as it grows, with the sinks, what was evicted and the newest token
    marked; and its nll, perplexity, time per token and cache. Playing goes on beside other
    cells and stops when the widget is closed, its cell is run again, or nobody looks any more.

    Args:
        lm: the language model; it is left exactly as it was after every token.
        policies: one lane each.
        prompt: generate from this, every lane with the same seed.
        text: read this instead, and tell how well each lane predicts it.
        seed: of the sampling.
        temperature: 0 takes the most likely token.
        max_new_tokens: where to end; None goes on until paused.
        speed: tokens per second; 0 is as fast as the model can.
        sampling: further options of ``sinkviz.stream``, such as ``top_k``.

    Raises:
        ValueError: not exactly one of ``prompt`` and ``text``, or an option is out of range.

    Example:
        >>> import sinkviz as sv
        >>> lanes = sv.SideBySide(sv.load(), [sv.Window(64), sv.SinkWindow(4, 60)],
        ...                       prompt="Once upon a time")  # doctest: +SKIP
        >>> lanes.advance(200)  # doctest: +SKIP
    """

    _esm = module("lanes", "side_by_side")

    lanes = traitlets.List(traitlets.Dict(), help="what does not change").tag(sync=True)
    reading = traitlets.Bool(help="a text is read, none is written").tag(sync=True)
    playing = traitlets.Bool().tag(sync=True)
    finished = traitlets.Bool().tag(sync=True)
    speed = traitlets.Float(min=0).tag(sync=True)
    seed = traitlets.Int().tag(sync=True)
    # The news of one tick, small; and all that it takes to draw the lanes afresh, made up at the
    # moment it is asked for.
    tick = traitlets.List(traitlets.Dict()).tag(sync=True)
    tail = traitlets.List(traitlets.Dict()).tag(
        sync=True, to_json=lambda _, widget: widget._states()
    )

    def __init__(
        self,
        lm: LM,
        policies: Sequence[Policy],
        *,
        prompt: Text | None = None,
        text: Text | None = None,
        seed: int = 0,
        temperature: float = 0.7,
        max_new_tokens: int | None = 2000,
        speed: float = 10.0,
        **sampling: Any,
    ) -> None:
        self._lm, self._policies = lm, tuple(policies)
        self._source = {"prompt": prompt, "text": text, "max_new_tokens": max_new_tokens}
        self._sampling = {"temperature": temperature, **sampling}
        self._task: asyncio.Task | None = None
        self._steps: Iterator[tuple[Step, ...]] | None = None
        self._unseen, self._made, self._editions = 0, False, itertools.count()
        self._begin(seed)
        super().__init__(
            lanes=[
                {
                    "name": policy_name(policy),
                    "kind": KINDS.get(type(policy), "other"),
                    "n_sink": policy.n_sink,
                    "evicts": first_eviction(policy, 1 + (policy.cache_size or 0)),
                    "by_attention": policy.by_attention,
                    "start": len(self._records[0].ids),
                }
                for policy in self._policies
            ],
            reading=text is not None,
            speed=speed,
            seed=seed,
        )
        self.on_msg(self._on_message)
        self._made = True

    def _begin(self, seed: int) -> None:
        self._steps = compare(self._lm, self._policies, **self._source, **self._sampling, seed=seed)
        reading = self._source["text"] is not None
        ids = self._lm.encode(self._source["text" if reading else "prompt"]).tolist()
        self._limit = len(ids) - 1 if reading else self._source["max_new_tokens"]
        known = ids[:1] if reading else ids
        self._records = [LaneRecord(self._lm, policy, known) for policy in self._policies]

    def _states(self, n_new: int = TAIL) -> list[dict[str, Any]]:
        # Two equal messages would be no change to the front end: a number tells them apart.
        edition = next(self._editions)
        return [{"edition": edition, **record.state(n_new)} for record in self._records]

    # Going on -----------------------------------------------------------------------------------

    def advance(self, n: int = 1) -> None:
        """Go ``n`` tokens on in every lane, at once; less where the text or the limit ends.

        Raises:
            ValueError: ``n`` is below 1.
        """
        if n < 1:
            raise ValueError(f"n must be at least 1, got {n}")
        self._mend()
        while n > 0 and not self.finished:
            n -= self._tick(n)

    def _mend(self) -> None:
        """Begin again where an error has broken the stream off, and forget the error."""
        if self._steps is None:
            self._restart()
        self.error = ""

    def _tick(self, n: int) -> int:
        """Go at most ``n`` tokens on, for at most ``TICK`` seconds; return how many it were."""
        ran, finished, until = 0, False, time.perf_counter() + TICK
        try:
            while ran < n and (ran == 0 or time.perf_counter() < until):
                with few_threads(self._lm):
                    steps = next(self._steps, None)
                if steps is None:
                    finished = True
                    break
                for record, step in zip(self._records, steps, strict=True):
                    record.add(step)
                ran += 1
        except BaseException as error:
            # A lane may have been left behind the others; the model itself is as it was.
            self._steps = None
            said = (
                "it was interrupted." if isinstance(error, KeyboardInterrupt) else sentence(error)
            )
            self.error = f"Stopped after {self.n_tokens} tokens: {said} Reset begins again."
            self._tell()
            raise
        with self.hold_sync():
            self.tick = self._states(ran)
            self.finished = finished or self.n_tokens == self._limit
        return ran

    async def _play(self) -> None:
        idle, began, done, speed = 0, time.perf_counter(), 0, self.speed
        PLAYING.add(self)
        try:
            while not self.finished and idle < PATIENCE:
                heed_interrupts(True)
                if self._unseen >= AHEAD:
                    idle += 1
                    await asyncio.sleep(0.1)
                    began, done = time.perf_counter(), 0
                    continue
                if speed != self.speed:
                    began, done, speed = time.perf_counter(), 0, self.speed
                due = int((time.perf_counter() - began) * speed) + 1 - done if speed else TAIL
                if due > 0:
                    self._unseen, idle = self._unseen + 1, 0
                    ran = self._tick(due)
                    done += ran
                    if ran < due:  # the model is slower than that: no debts
                        began, done = time.perf_counter(), 0
                await asyncio.sleep(min(max(1 / speed, 0.05), 0.2) if speed else 0.01)
        except (Exception, KeyboardInterrupt):
            pass  # the widget says it
        finally:
            PLAYING.discard(self)
            heed_interrupts(bool(PLAYING))
            if self._task is asyncio.current_task():
                self._task = None
                self.playing = False

    @traitlets.observe("playing")
    def _on_playing(self, change: Any) -> None:
        self.at_home(self._start if self.playing else self._stop)

    def _stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
        self._task = None
        self._tell()  # what a saved notebook keeps

    def _start(self) -> None:
        try:
            loop = asyncio.get_running_loop() if self._home is None else self._home
        except RuntimeError:
            self.playing = False
            self.error = "Playing needs a notebook's event loop; advance(n) needs none."
            return
        self._mend()
        if self.finished:
            self.playing = False
        elif self._task is None:
            self._unseen = 0
            self._task = loop.create_task(self._play())

    def play(self) -> None:
        """Go on in the background, at ``speed``, beside other cells.

        Raises:
            RuntimeError: no event loop is running, which there is in every notebook.
        """
        self.playing = True
        if not self.playing and not self.finished:
            raise RuntimeError("play() needs a notebook's event loop; advance(n) needs none")

    def pause(self) -> None:
        """Stop where the lanes are; ``play`` or ``advance`` go on from there."""
        self.playing = False

    def reset(self) -> None:
        """Stop, and begin again with the prompt and the present seed."""
        self.playing = False
        self._restart()

    def _restart(self) -> None:
        self._begin(self.seed)
        self.error, self.finished = "", False
        self._tell()

    @traitlets.observe("seed")
    def _on_seed(self, change: Any) -> None:
        if self._made:
            self.at_home(self.reset)

    def _on_message(self, widget: Any, content: dict[str, Any], buffers: Any) -> None:
        acts = {"seen": self._seen, "resync": self._tell, "reset": self.reset, "step": self._step}
        act = acts.get(content.get("do"))
        if act is not None:
            self.at_home(act)

    def _seen(self) -> None:
        self._unseen = 0

    def _tell(self) -> None:
        self.send_state("tail")

    def _step(self) -> None:
        self.pause()
        with contextlib.suppress(Exception):  # the widget says it
            self.advance(1)

    def close(self) -> None:
        """Stop and take the widget from the page."""
        self.playing = False
        self._steps = None
        super().close()

    # Looking back -------------------------------------------------------------------------------

    @property
    def n_tokens(self) -> int:
        """Tokens that every lane has predicted so far."""
        return self._records[0].predicted

    @property
    def runs(self) -> tuple[StreamRun, ...]:
        """The whole history of every lane; tokens of the prompt have no nll."""
        return tuple(record.run() for record in self._records)

    def figure(self) -> Figure:
        """Return the lanes as they stand, as a matplotlib figure of its own.

        Raises:
            ValueError: nothing has been played yet.
        """
        figure = plt.figure(figsize=(9.5, 5.5), layout="constrained")
        try:
            self.draw(figure)
        except ValueError:
            plt.close(figure)
            raise
        return figure

    def draw(self, figure: Figure) -> None:
        """Draw the lanes as they stand into an empty figure: the nll, and how each text ends."""
        if not self.n_tokens:
            raise ValueError("nothing to draw yet; play, or call advance(200), first")
        names = [f"text {index}" for index in range(len(self._records))]
        rows = [["nll"] * len(names)] if self.reading else [["nll"] * len(names), names]
        axes = figure.subplot_mosaic(rows, height_ratios=[3, 2][: len(rows)])
        plot_nll(self.runs, train_length=self._lm.train_length, ax=axes["nll"])
        if self.reading:
            return
        width = max(12, 104 // len(names))
        for name, record in zip(names, self._records, strict=True):
            ax = axes[name]
            ax.set_axis_off()
            ax.set_title(policy_name(record.policy), loc="left", fontsize="medium")
            text = " ".join("".join(text for text, _ in record.tail).split())
            end = textwrap.wrap(drawable(text), width)[-10:]
            shown = ax.text(0, 1, "\n".join(end), va="top", fontsize="small", clip_on=True)
            shown.set_parse_math(False)

    def __repr__(self) -> str:
        names = ", ".join(repr(policy) for policy in self._policies)
        return f"SideBySide({self._lm.name}: {names})"
