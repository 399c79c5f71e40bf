"""How the command listens and talks: shared arguments, tables, JSON, errors in one line.

Results go to standard output, everything else to standard error. Knows nothing about models: rows
are dicts.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer
from rich.console import Console
from rich.table import Table

from sinkviz.files import check_place

INTERRUPTED = 130
WIDE = 10  # columns that a terminal has room for

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A bundled model (classroom-rope), a folder, or a Hub id (EleutherAI/pythia-160m).",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of a table.")]
Source = Annotated[
    str,
    typer.Option(
        "--text",
        metavar="SOURCE",
        help="stories (made up on the spot, no file needed), books:valid, a text file, or "
        "hub:DATASET.",
    ),
]
ONE_POLICY_HELP = (
    "dense (everything), 0+64 (the last 64 tokens), 4+60 (the first 4 and the last 60; 4+60@text "
    "leaves them at their text positions), recompute:64 (the last 64, run afresh for each token), "
    "h2o:32+32 (32 that got most attention, and the last 32), tova:64 (64; what the newest token "
    "attends to least leaves)."
)
POLICY_HELP = f"What may stay in the cache, comma-separated: {ONE_POLICY_HELP}"
Policies = Annotated[str, typer.Option(metavar="LIST", help=POLICY_HELP)]
ReportPolicies = Annotated[
    str | None,
    typer.Option(
        metavar="LIST",
        help=f"{POLICY_HELP} By default all four, with a cache of half the training length.",
    ),
]
Tokens = Annotated[int, typer.Option(min=2, help="Read at most so many tokens of the text.")]
Skip = Annotated[int, typer.Option(min=0, help="Leave out so many characters at its beginning.")]
Temperature = Annotated[
    float, typer.Option(min=0.0, help="0 takes the likeliest token; 1 samples as the model.")
]
Seed = Annotated[int, typer.Option(help="The same seed writes the same text.")]


def _picture(path: Path | None) -> Path | None:
    """Refuse a file for a figure that is no picture, before anything is computed."""
    if path is not None and path.suffix not in (".png", ".svg", ".pdf"):
        raise typer.BadParameter(f"must end in .png, .svg or .pdf, got {path.name}")
    return in_a_folder(path)


Picture = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", callback=_picture, help="Also draw it as a figure: .png, .svg or .pdf."
    ),
]


def in_a_folder(path: Path | None) -> Path | None:
    """Refuse a file that could not be written, before anything is computed."""
    try:
        if path is not None:
            check_place(path)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    return path


State = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        dir_okay=False,
        callback=in_a_folder,
        help="Keep the stream in a file; where it exists, go on from it. Prompt and seed then do "
        "not count.",
    ),
]


def say(message: str, style: str | None = None) -> None:
    """Print a line for the person at the terminal, on standard error."""
    Console(stderr=True, highlight=False, soft_wrap=True).print(message, style=style, markup=False)


class PlainErrors(typer.core.TyperGroup):
    """Says in one line what went wrong, and ends with 1; Ctrl-C ends with 130.

    ``--debug`` shows the traceback instead. A wrong option or argument ends with 2, as usual.
    """

    def invoke(self, ctx: Any) -> Any:
        """Run the chosen command."""
        try:
            return super().invoke(ctx)
        except (typer.Exit, typer.Abort, BrokenPipeError):
            raise
        except KeyboardInterrupt:
            say("interrupted")
            raise typer.Exit(INTERRUPTED) from None
        except (ValueError, TypeError, LookupError, OSError, ImportError, RuntimeError) as error:
            if ctx.params["debug"]:
                raise
            message = " ".join(str(error).split()) or type(error).__name__
            say(f"error: {message}", style="red")
            raise typer.Exit(1) from None


def show(document: dict[str, Any], title: str, as_json: bool) -> None:
    """Print ``document["rows"]`` as a table, or the whole document as JSON.

    Args:
        document: plain values; ``rows`` is a list of dicts, a column per key.
        title: one line over the table.
        as_json: one JSON document and nothing else; NaN and infinity become null.
    """
    if as_json:
        print(json.dumps(_finite(document), indent=1, allow_nan=False))
        return
    rows = document["rows"]
    table = Table(title=title, title_justify="left", caption_justify="left", header_style="bold")
    names = dict.fromkeys(name for row in rows for name in row)
    columns = {name: [_cell(name, row.get(name)) for row in rows] for name in names}
    if len(columns) > WIDE:  # what is the same in every row is said once, below
        same = {name: cells[0] for name, cells in columns.items() if len({*cells}) == 1 < len(rows)}
        said = [f"{name.replace('_', ' ')} {cell}" for name, cell in same.items() if cell != "-"]
        table.caption = "; ".join(said)
        columns = {name: cells for name, cells in columns.items() if name not in same}
    for name in columns:
        number = any(isinstance(row.get(name), int | float) for row in rows)
        table.add_column(name.replace("_", " "), justify="right" if number else "left")
    for row in zip(*columns.values(), strict=True):
        table.add_row(*row)
    # A file or a pipe has no width; nothing may be cut off or folded there.
    console = Console()
    console.width = console.width if console.is_terminal else 1_000
    console.print(table)


def told(turns: Iterable[Any], alone: bool, out: TextIO) -> Iterator[Any]:
    """Print the turns of a chat as they come, and pass them on.

    Args:
        turns: as ``chatting.chat`` yields them; live ones where ``alone``.
        alone: there is one policy, so that each answer is printed as it grows; otherwise each
            policy's answer is printed when it is done, with a line of numbers.
        out: where to; why a policy was stopped goes to standard error.
    """
    asked, shown = 0, 0
    for turn in turns:
        if turn.round > asked:
            asked, shown = turn.round, 0
            print(f"\n{turn.round}. {turn.question}", file=out)
        if alone:
            print(turn.answer[shown:], end="\n" * turn.done, flush=True, file=out)
            shown = len(turn.answer)
        elif turn.done:
            print(f"\n{turn.policy}: {turn.answer}", file=out)
            print(
                f"    question {turn.question_nll:.2f} nats, {turn.n_seen:,} tokens so far, "
                f"{turn.ms_per_token:.1f} ms per token, cache {turn.cache_bytes / 1e6:,.1f} MB",
                flush=True,
                file=out,
            )
        if turn.stopped:
            say(turn.stopped, style="yellow")
        yield turn


def _cell(name: str, value: Any) -> str:
    if value is None:
        return "all" if name == "cache" else "-"
    if isinstance(value, float):
        many = abs(value) >= 10_000 and value.is_integer()
        return f"{value:+.3f}" if name == "drift" else f"{value:,.{0 if many else 3}f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
