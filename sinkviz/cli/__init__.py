"""The ``sinkviz`` command: lab, score, stream, chat, run, report, train, card, grade ...

Each command reads arguments, calls one function of the package and prints what it returns. Results
go to standard output, everything else to standard error. Heavy imports happen inside the commands,
so that ``--help`` answers at once. Knows nothing about models.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sinkviz.cli.experimenting import run
from sinkviz.cli.making import bench, card, grade, report, score, train
from sinkviz.cli.talking import chat, stream
from sinkviz.terminal import PlainErrors, say

app = typer.Typer(
    cls=PlainErrors,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Begin with **sinkviz lab**. Every command explains itself: **sinkviz score --help**",
)


def _version(wanted: bool) -> bool:
    if wanted:
        from importlib.metadata import version

        print(f"sinkviz {version('sinkviz')}")
        raise typer.Exit()
    return wanted


@app.callback()
def main(
    debug: Annotated[
        bool, typer.Option("--debug", help="Show Python's traceback of an error.")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """See attention sinks in language models, and stream forever by keeping them.

    A language model puts much of its attention on the first few tokens. Throw them out of its
    cache and it falls apart; keep them, and it can write without end.
    """


def lab(
    folder: Annotated[
        Path | None,
        typer.Argument(
            help="Where your copies of the notebooks go: the current folder by default. In a "
            "checkout of the project they are opened in place instead.",
        ),
    ] = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to serve on.")] = 8888,
    browser: Annotated[
        bool, typer.Option("--browser/--no-browser", help="Open a browser, or only print the URL.")
    ] = True,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Replace notebooks that you changed (asks first).")
    ] = False,
    jupyter: Annotated[
        list[str] | None,
        typer.Option(
            metavar="OPTION",
            help="An option for JupyterLab itself, such as --jupyter=--ServerApp.ip=0.0.0.0",
        ),
    ] = None,
) -> None:
    """Open the course in JupyterLab.

    Your changes are safe: a notebook that you changed is kept, unless you say --fresh and yes.
    """
    from sinkviz import course

    if folder is None and course.is_checkout():
        folder = course.notebooks_folder()
    else:
        folder = folder or Path(".")
        copied = course.copy_course(folder)
        say(f"{len(copied.new)} notebooks copied into {folder.resolve()}")
        if copied.changed:
            names = ", ".join(str(name) for name in copied.changed)
            if not fresh:
                say(f"kept as you left them: {names} (--fresh brings back the originals)")
            elif typer.confirm(f"Replace your changed {names}?", err=True):
                course.copy_course(folder, replace=True)
    raise typer.Exit(course.serve(folder, port=port, browser=browser, options=jupyter or ()))


# In the order of the help.
for command in (lab, score, stream, chat, run, report, train, card, grade, bench):
    app.command()(command)
