"""Draw the gallery; write docs/GALLERY.md and docs/gallery.ipynb: ``python docs/make_gallery.py``.

Figures of a text and a model are measured while you wait, on the model and the stories that come
along, with fixed seeds; those of experiments are drawn from the tables in assets/runs. Each is
drawn on light and on dark paper, and saved with 256 colours. The notebook has the same code and no
outputs: it is there to be run.
"""

from __future__ import annotations

import argparse
import io
import time
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import nbformat
from gallery_pictures import CHAPTERS, SEEN, SETUP, WIDGETS, Picture
from matplotlib.figure import Figure

from sinkviz.experiments import EXPERIMENTS, experiment
from sinkviz.style import small_png

DOCS = Path(__file__).parent
FOLDER, VECTORS = Path("assets/figures/gallery"), Path("assets/figures/svg")
DPI, SIZE = 110, (6.4, 3.8)
SHEETS = {"": "default", "-dark": "dark_background"}

HEAD = """\
# Gallery

Every figure and widget of sinkviz, drawn by `python docs/make_gallery.py` from `classroom-rope` and
stories of its own, with fixed seeds. Figures of experiments come last, as soon as their tables are
recorded.

Each function takes records or arrays and an optional `ax`: `plot_*` draws in one Axes, `grid_*`
owns its figure (and takes `width`, in inches: 13.3 for a slide, 3.3 for a column). For PNG or SVG:
`ax.figure.savefig("name.svg")`; all of these lie in `assets/figures/svg`. All follow the paper they
are drawn on; dark ones come with `plt.style.context("dark_background")`. Widgets are shown as the
picture that stands for them where no kernel runs; [gallery.ipynb](gallery.ipynb) has all of this to
be run, in a minute and offline.

All pictures of a text and a model share this:

```python
"""


OPENING = """\
# Gallery

Every figure and widget of sinkviz, to be run: a minute on a laptop, without a network. The page
with the pictures is [GALLERY.md](GALLERY.md); both are written by `python docs/make_gallery.py`.
"""
# Figures of a notebook have the size and the layout of those on the page.
LAYOUT = f"""
import matplotlib.pyplot as plt

plt.rcParams.update({{"figure.figsize": {SIZE}, "figure.constrained_layout.use": True}})
"""


def recorded(runs: Path = DOCS.parent / "assets" / "runs") -> tuple[Picture, ...]:
    """Return a picture for every experiment whose table is recorded."""
    found = []
    for name in (one for one in EXPERIMENTS if (runs / f"{one}.json").is_file()):
        alt = f"{experiment(name).question} {SEEN.get(name, '')}".strip().replace('"', "'")
        code = f'experiment("{name}").draw(load_table("{name}"))'
        imports = "from sinkviz.experiments import experiment, load_table\n\n"
        found.append(Picture(f"experiment-{name.replace('_', '-')}", alt, imports + code))
    return tuple(found)


def chapters() -> dict[str, tuple[Picture, ...]]:
    """Return all pictures by chapter, widgets and experiments last."""
    found = recorded()
    return CHAPTERS | {"Widgets": WIDGETS} | ({"Recorded experiments": found} if found else {})


def draw(picture: Picture, scope: dict, sheet: str) -> Figure:
    """Run the code of a picture on a sheet of paper and return its one figure.

    Raises:
        RuntimeError: the code drew no figure, or more than one.
    """
    style = {"figure.figsize": SIZE, "figure.constrained_layout.use": True}
    with plt.style.context([sheet, style]):
        plt.close("all")
        code = f"{picture.code}.figure()" if picture in WIDGETS else picture.code
        exec(compile(code, picture.name, "exec"), dict(scope))
        if len(plt.get_fignums()) != 1:
            raise RuntimeError(f"{picture.name} drew {len(plt.get_fignums())} figures, not one")
        return plt.gcf()


def save(figure: Figure, path: Path) -> int:
    """Write a figure as a small PNG and return its bytes."""
    shot = io.BytesIO()
    figure.savefig(shot, format="png", dpi=DPI)
    return path.write_bytes(small_png(shot.getvalue()))


def save_vectors(figure: Figure, path: Path) -> None:
    """Write a figure as SVG, the same bytes each time."""
    with plt.rc_context({"svg.hashsalt": path.stem}):
        figure.savefig(path, metadata={"Date": None})


def markdown() -> str:
    """Return the gallery page: per picture its code, and the image with its alternative."""
    lines = [HEAD + SETUP + "```", ""]
    for chapter, pictures in chapters().items():
        lines += [f"## {chapter}", ""]
        for picture in pictures:
            light, dark = (f"../{FOLDER / picture.name}{end}.png" for end in SHEETS)
            lines += [
                "```python",
                picture.code,
                "```",
                "",
                "<picture>",
                f'<source media="(prefers-color-scheme: dark)" srcset="{dark}">',
                f'<img src="{light}" alt="{picture.alt}">',
                "</picture>",
                "",
            ]
    return "\n".join(lines)


def notebook() -> nbformat.NotebookNode:
    """Return the gallery as a notebook: every picture's code, and in words what is to be seen."""
    told, run = nbformat.v4.new_markdown_cell, nbformat.v4.new_code_cell
    cells = [told(OPENING.strip(), id="opening"), run((SETUP + LAYOUT).strip(), id="setup")]
    for number, (chapter, pictures) in enumerate(chapters().items()):
        cells.append(told(f"## {chapter}", id=f"chapter-{number}"))
        for picture in pictures:
            # A semicolon: a figure that is also the value of its cell would be shown twice.
            end = "" if picture in WIDGETS else ";"
            cells.append(run(picture.code + end, id=picture.name))
            cells.append(told(f"What you see: {picture.alt}", id=f"{picture.name}-seen"))
    kernel = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
    about = {"kernelspec": kernel, "language_info": {"name": "python"}}
    return nbformat.v4.new_notebook(cells=cells, metadata=about)


def main() -> None:
    """Draw what is asked for, all pictures by default, and write the page."""
    reader = argparse.ArgumentParser(description=__doc__)
    reader.add_argument("names", nargs="*", help="pictures to draw; all where not given")
    wanted = set(reader.parse_args().names)
    pictures = [one for chapter in chapters().values() for one in chapter]
    if unknown := wanted - {one.name for one in pictures}:
        reader.error(f"no picture {', '.join(sorted(unknown))}")
    folder, vectors = DOCS.parent / FOLDER, DOCS.parent / VECTORS
    for one in (folder, vectors):
        one.mkdir(parents=True, exist_ok=True)
    scope: dict = {}
    exec(compile(SETUP, "setup", "exec"), scope)
    started, total = time.perf_counter(), 0
    for picture in pictures:
        if wanted and picture.name not in wanted:
            continue
        for end, sheet in SHEETS.items():
            figure = draw(picture, scope, sheet)
            total += save(figure, folder / f"{picture.name}{end}.png")
            if not end and picture not in WIDGETS:
                save_vectors(figure, vectors / f"{picture.name}.svg")
        print(f"{picture.name}: {total / 1000:.0f} KB in {time.perf_counter() - started:.0f} s")
    (DOCS / "GALLERY.md").write_text(markdown(), encoding="utf-8")
    nbformat.write(notebook(), DOCS / "gallery.ipynb")


if __name__ == "__main__":
    main()
