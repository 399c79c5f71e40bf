"""Live lanes: several cache policies write, or read, the same text at the same pace."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import traitlets
from matplotlib.figure import Figure

from sinkviz.models import LM, Text
from sinkviz.policies import Policy
from sinkviz.records import StreamRun
from sinkviz.widgets.common import module, sentence
from sinkviz.widgets.lane_figure import draw_lanes
from sinkviz.widgets.lanes import TAIL, described
from sinkviz.widgets.playing import TICK, PlayingWidget
from sinkviz.widgets.recording import Live, Recording, Source, Start
from sinkviz.widgets.replay import pages_of

MOST_BYTES = 18_000  # of tokens in a message, all lanes together: notebooks save the last two
LAST = 2000  # tokens of a run that go into a page


class SideBySide(PlayingWidget):
    """Watch several cache policies write from one prompt, or read one text, in lockstep.

    Each lane shows its text as it grows, with the sinks, what was evicted and the newest token
    marked; and its nll, perplexity, time per token and cache. Playing goes on beside other
    cells and stops when the widget is closed, its cell is run again, or nobody looks any more.

    ``save`` writes all of it to a file, ``load`` shows it again without a model, and ``to_html``
    makes a page to play, step and scrub through.

    Args:
        lm: the language model; it is left exactly as it was after every token.
        policies: one lane each.
        prompt: generate from this, every lane with the same seed.
        text: read this instead, and tell how well each lane predicts it.
        seed: of the sampling.
        temperature: 0 takes the most likely token.
        max_new_tokens: where to end; None goes on until paused.
        speed: tokens per second; 0 is as fast as the model can.
        capture: show the share of attention that goes to the sinks as well. It has to be looked at
            while the model runs, which makes a token of a small model three times as slow.
        sampling: further options of ``sinkviz.stream``, such as ``top_k``.

    Raises:
        ValueError: not exactly one of ``prompt`` and ``text``, or an option is out of range.

    Example:
        >>> import sinkviz as sv
        >>> lanes = sv.SideBySide(sv.load(), [sv.Window(64), sv.SinkWindow(4, 60)],
        ...                       prompt="Once upon a time")  # doctest: +SKIP
        >>> lanes.advance(200)  # doctest: +SKIP
        >>> lanes.save("mill.json")  # doctest: +SKIP
        >>> sv.SideBySide.load("mill.json").to_html("mill.html")  # doctest: +SKIP
    """

    _esm = module("lanes", "replay", "side_by_side")

    lanes = traitlets.List(traitlets.Dict(), help="what does not change").tag(sync=True)
    reading = traitlets.Bool(help="a text is read, none is written").tag(sync=True)
    recorded = traitlets.Bool(help="a run that is over is shown again").tag(sync=True)
    length = traitlets.Int(help="steps of that run").tag(sync=True)
    seed = traitlets.Int().tag(sync=True)
    notice = traitlets.Unicode(help="where the run was saved").tag(sync=True)
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
        capture: bool = False,
        **sampling: Any,
    ) -> None:
        options = {"temperature": temperature, "capture": capture, **sampling}
        source = Live(
            lm, policies, prompt=prompt, text=text, max_new_tokens=max_new_tokens, **options
        )
        self._open(source, speed=speed, seed=seed)

    def _open(self, source: Source, *, speed: float, seed: int) -> None:
        self._source: Source = source
        self._begin(seed)
        self._made, self._editions = False, itertools.count()
        super().__init__(
            lanes=[described(record.policy, record.start) for record in self._records],
            reading=source.reading,
            recorded=source.recorded,
            length=(self._run.limit or 0) if source.recorded else 0,
            speed=speed,
            seed=seed,
        )
        self.on_msg(self._on_message)
        self._made = True

    def _begin(self, seed: int) -> None:
        self._run: Start | None = self._source.begin(seed)
        self._records = self._run.lanes

    def _states(self, n_new: int = TAIL) -> list[dict[str, Any]]:
        # Two equal messages would be no change to the front end: a number tells them apart.
        edition = next(self._editions)
        room = MOST_BYTES // len(self._records)
        return [{"edition": edition, **record.state(n_new, room)} for record in self._records]

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
        if self._run is None:
            self._restart()
        self.error = self.notice = ""

    def _ready(self) -> None:
        self._mend()
        if self.recorded and self.finished:
            self._restart()

    def _tick(self, n: int) -> int:
        ran, finished, until = 0, False, time.perf_counter() + TICK
        try:
            while ran < n and (ran == 0 or time.perf_counter() < until):
                if not self._step_on():
                    finished = True
                    break
                ran += 1
        except BaseException as error:
            # A lane may have been left behind the others; the model itself is as it was.
            self._run = None
            said = (
                "it was interrupted." if isinstance(error, KeyboardInterrupt) else sentence(error)
            )
            self.error = f"Stopped after {self.n_tokens} tokens: {said} Reset begins again."
            self._tell()
            raise
        with self.hold_sync():
            self.tick = self._states(ran)
            self.finished = finished or self._at_the_end
        return ran

    def _step_on(self) -> bool:
        """Let every lane take in its next step; return whether there was one."""
        steps = next(self._run.steps, None)
        for record, step in zip(self._records, steps or (), strict=steps is not None):
            record.add(step)
        return steps is not None

    @property
    def _at_the_end(self) -> bool:
        return self._run is not None and self.n_tokens == self._run.limit

    def reset(self) -> None:
        """Stop, and begin again with the prompt and the present seed."""
        self.playing = False
        self._restart()

    def _restart(self) -> None:
        self._begin(self.seed)
        self.error, self.notice, self.finished = "", "", False
        self._tell()

    def seek(self, n: int) -> None:
        """Show a recorded run as it was after ``n`` steps.

        Raises:
            ValueError: the run is not recorded, or it has no such step.
        """
        if not self.recorded:
            raise ValueError(
                "a model can only go on; save(path) the run, and SideBySide.load(path) it to seek"
            )
        if not 0 <= n <= self.length:
            raise ValueError(f"n must be in 0..{self.length}, got {n}")
        self.playing = False
        if n < self.n_tokens:
            self._begin(self.seed)
        while self.n_tokens < n:
            self._step_on()
        self.error, self.finished = "", self._at_the_end
        self._tell()

    @traitlets.observe("seed")
    def _on_seed(self, change: Any) -> None:
        if self._made:
            self.at_home(self.reset)

    def _on_message(self, widget: Any, content: dict[str, Any], buffers: Any) -> None:
        acts = {
            "seen": self._seen,
            "resync": self._tell,
            "reset": self.reset,
            "step": self._step,
            "save": self._save_somewhere,
            "seek": lambda: self._seek_within(content.get("to")),
        }
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

    def _seek_within(self, n: Any) -> None:
        if self.recorded and isinstance(n, int | float):
            self.seek(int(np.clip(n, 0, self.length)))

    def close(self) -> None:
        """Stop and take the widget from the page."""
        super().close()
        self._run = None

    # Looking back -------------------------------------------------------------------------------

    @property
    def n_tokens(self) -> int:
        """Tokens that every lane has predicted so far."""
        return self._records[0].predicted

    @property
    def runs(self) -> tuple[StreamRun, ...]:
        """The whole history of every lane; tokens of the prompt have no nll."""
        return tuple(record.run() for record in self._records)

    @property
    def recording(self) -> Recording:
        """The run so far, to be saved or shown again.

        Raises:
            ValueError: nothing has been played yet.
        """
        self._check_played("record")
        return Recording(
            name=self._source.name,
            reading=self.reading,
            seed=self.seed,
            train_length=self._source.train_length,
            histories=self._records,
            spelled=self._source.texts(self._records),
        )

    def save(self, path: str | Path) -> Path:
        """Write the run so far to one JSON file, whole or not at all; return the path.

        It holds, per lane, the tokens with their nll (nats) and the step at which each was evicted,
        and the seconds, cache size (tokens), cache bytes and share of the sinks of every step.

        Raises:
            ValueError: nothing has been played yet, or more than 100,000 tokens.
            OSError: it cannot be written; nothing is left behind.
        """
        return self.recording.save(path)

    def _save_somewhere(self) -> None:
        """Save to a new file beside the notebook, and say where, or what went wrong."""
        names = (f"side-by-side-{n}.json" for n in itertools.count(1))
        path = next(path for path in map(Path, names) if not path.exists())
        try:
            self.save(path)
        except (OSError, ValueError) as error:
            self.error = sentence(error)
        else:
            self.error, self.notice = "", f"Saved to {path}."

    @classmethod
    def load(cls, path: str | Path, *, speed: float = 10.0) -> SideBySide:
        """Return a saved run as a widget to play, step and scrub through, without a model.

        It stands at its end, as it was saved; playing from there begins again.

        Args:
            path: a file that ``save`` wrote.
            speed: tokens per second; 0 is as fast as possible.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file holds something else.
        """
        source, widget = Recording.load(path), cls.__new__(cls)
        widget._open(source, speed=speed, seed=source.seed)
        widget.seek(widget.length)
        return widget

    def page_state(self, *, last: int = LAST) -> dict[str, Any]:
        """Return what a page needs to show the run so far once more.

        Args:
            last: tokens of the run, the newest ones, that go along; earlier ones are left out.

        Raises:
            ValueError: nothing has been played yet, or ``last`` is below 1.
        """
        if last < 1:
            raise ValueError(f"last must be at least 1 token, got {last}")
        recording = self.recording
        before = max(0, self.n_tokens - last)
        fixed = {"playing": False, "finished": True, "recorded": True, "length": self.n_tokens}
        state = super().page_state() | fixed | {"error": "", "notice": "", "tick": [], "tail": []}
        return state | {"before": before, "recording": pages_of(recording, before)}

    def _check_played(self, wanted: str) -> None:
        if not self.n_tokens:
            raise ValueError(f"nothing to {wanted} yet; play, or call advance(200), first")

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
        self._check_played("draw")
        draw_lanes(figure, self._records, self.reading, self._source.train_length)

    def __repr__(self) -> str:
        names = ", ".join(repr(policy) for policy in self._source.policies)
        return f"SideBySide({self._source.name}: {names})"
