"""The command that runs an experiment: run.

It knows nothing about any one experiment.
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from sinkviz.cli.inputs import load_model
from sinkviz.terminal import Json, Picture, say, show


def run(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="The experiment; see --list.")
    ] = None,
    listing: Annotated[bool, typer.Option("--list", help="List the experiments.")] = False,
    model: Annotated[
        list[str] | None,
        typer.Option(help="A model, or several for experiments that compare models."),
    ] = None,
    text: Annotated[
        str | None,
        typer.Option(metavar="SOURCE", help="Text to read. [default: books:valid, or stories]"),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Less of everything.")] = False,
    seed: Annotated[int, typer.Option(help="Of whatever is drawn at random.")] = 0,
    jobs: Annotated[
        int, typer.Option(min=1, help="Processes; leave at 1 where times are measured.")
    ] = 1,
    folder: Annotated[
        Path, typer.Option(help="Where the record goes, and finished cells until then.")
    ] = Path("runs/experiments"),
    figure: Picture = None,
    as_json: Json = False,
) -> None:
    """Run an experiment on the claims of the papers: a table, a figure, and what the table says.

    Ctrl-C is fine: what is measured is kept, and the same command goes on from there.
    """
    from sinkviz import experiments

    if listing:
        rows = [
            {"experiment": one, "asks": experiments.experiment(one).question}
            for one in experiments.EXPERIMENTS
        ]
        return show({"rows": rows}, "Experiments", as_json)
    if name is None:
        raise typer.BadParameter(f"name an experiment: {', '.join(experiments.EXPERIMENTS)}")
    asked = experiments.experiment(name)
    with _processes(jobs) as executor:
        table = experiments.run(
            name,
            [load_model(one) for one in model] if model else None,
            quick=quick,
            text=text,
            seed=seed,
            executor=executor,
            folder=folder,
            progress=sys.stderr.isatty(),
        )
    say(f"wrote {experiments.save_table(table, folder / f'{name}.json')}")
    if figure is not None:
        asked.draw(table).savefig(figure)
        say(f"drew {figure}")
    rows = table.astype(object).where(table.notna(), None).to_dict("records")
    show({**table.attrs, "rows": rows}, asked.question, as_json)
    if not as_json:
        for claim in asked.claims:
            agrees, here = claim.judge(table)
            word = {True: "agrees", False: "does not agree", None: "not decided here"}[agrees]
            print(f"{claim.says} ({claim.source}: {claim.paper}) Here: {here} -> {word}")


@contextlib.contextmanager
def _processes(jobs: int) -> Any:
    """Yield an executor of ``jobs`` fresh processes, or None for one."""
    if jobs == 1:
        yield None
        return
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    # A forked process would inherit torch's locked threads.
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as executor:
        yield executor
