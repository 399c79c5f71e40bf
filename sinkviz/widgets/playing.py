"""Going on in the background of a notebook, at a speed, until paused or until nobody looks.

Knows nothing about what goes on.
"""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from typing import Any

import traitlets

from sinkviz.widgets.common import Widget

TICK = 0.08  # longest time that the kernel works in one go, seconds, unless one step takes longer
AHEAD = 20  # ticks sent before the front end has answered
PATIENCE = 100  # waits of 0.1 s for an answer, then nobody is looking
MOST = 400  # steps of one tick

PLAYING: set[PlayingWidget] = set()


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


class PlayingWidget(Widget):
    """A widget that goes on by itself, beside other cells.

    It stops when it is paused or closed, its cell is run again, or nobody looks any more: the front
    end says ``seen`` to what it is sent.
    """

    playing = traitlets.Bool().tag(sync=True)
    finished = traitlets.Bool().tag(sync=True)
    speed = traitlets.Float(min=0, help="steps per second; 0: all it can").tag(sync=True)

    def __init__(self, **traits: Any) -> None:
        self._task: asyncio.Task | None = None
        self._unseen = 0
        super().__init__(**traits)

    def _tick(self, n: int) -> int:
        """Go at most ``n`` steps on, for at most ``TICK`` seconds; return how many it were."""
        raise NotImplementedError

    def _ready(self) -> None:
        """Mend what keeps the widget from going on, where anything does."""

    def _tell(self) -> None:
        """Tell the front end how things stand."""

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
                due = int((time.perf_counter() - began) * speed) + 1 - done if speed else MOST
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
        self._ready()
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
        """Stop where it is; ``play`` or ``advance`` go on from there."""
        self.playing = False

    def close(self) -> None:
        """Stop and take the widget from the page."""
        self.playing = False
        super().close()
