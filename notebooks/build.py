"""Derive the student notebooks from ``solutions/``, run both, and write them clean.

``solutions/*.ipynb`` is the only source edited by hand. ``--check`` runs and writes nothing, and
fails where a student notebook is not what its source gives.
"""

import argparse
import base64
import copy
import os
import re
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

from sinkviz.style import small_png

HERE = Path(__file__).resolve().parent
SOLUTION = re.compile(r"^( *)### BEGIN SOLUTION\n.*?^ *### END SOLUTION$", re.M | re.S)
KERNEL = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
VIEW = "application/vnd.jupyter.widget-view+json"
PNG = "image/png"


def student(notebook):
    """Return a copy whose solutions are stubs."""
    notebook = copy.deepcopy(notebook)
    for cell in notebook.cells:
        if "### BEGIN SOLUTION" in cell.source:
            name = re.search(r'sv\.check\("(\S+)"', cell.source)[1]
            stub = rf'\1raise NotImplementedError("exercise {name}")'
            cell.source = SOLUTION.sub(stub, cell.source)
    return notebook


def small(picture):
    """Return a PNG in a notebook's spelling with a palette."""
    return base64.b64encode(small_png(base64.b64decode(picture))).decode()


def run(notebook, folder, strict):
    """Execute a notebook, in strict mode where every exercise must pass, and clean it."""
    os.environ.update(HF_HUB_OFFLINE="1", SINKVIZ_STRICT=str(int(strict)))
    options = {"timeout": 300, "kernel_name": "python3", "store_widget_state": False}
    options["coalesce_streams"] = True  # what is printed slowly is one output all the same
    NotebookClient(notebook, resources={"metadata": {"path": folder}}, **options).execute()
    notebook.metadata = {"kernelspec": KERNEL, "language_info": {"name": "python"}}
    for cell in notebook.cells:
        cell.metadata = {}
        if cell.cell_type == "code":
            kept = [output for output in cell.outputs if output.get("name") != "stderr"]
            for output in kept:  # the view of a widget is dead without its kernel, its picture not
                data = output.get("data", {})
                data.pop(VIEW, None)
                data.update({PNG: small(data[PNG])} if PNG in data else {})
            cell.outputs = [output for output in kept if output.get("data", True)]


def main():
    """Answer the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="only look for drift")
    parser.add_argument("numbers", nargs="*", default=[""], help="of the notebooks; all if none")
    given = parser.parse_args()
    check = given.check
    sources = sorted(HERE.glob("solutions/*.ipynb"))
    drifted = {path.name for path in HERE.glob("*.ipynb")} - {path.name for path in sources}
    for path in sources:
        if not path.name.startswith(tuple(given.numbers)):
            continue
        solution, target = nbformat.read(path, as_version=4), HERE / path.name
        derived, began = student(solution), time.perf_counter()
        if not check:
            run(solution, path.parent, strict=True)
            run(derived, HERE, strict=False)
            nbformat.write(solution, path)
            nbformat.write(derived, target)
            print(f"{path.stem}: {(time.perf_counter() - began) / 2:.0f} s a run", flush=True)
        old = nbformat.read(target, as_version=4).cells if target.exists() else []
        told = [[(c.id, c.cell_type, c.source) for c in cells] for cells in (old, derived.cells)]
        drifted |= {path.name} if told[0] != told[1] else set()
    if drifted:
        sys.exit(f"not what solutions/ gives: {', '.join(sorted(drifted))}; run: make notebooks")


if __name__ == "__main__":
    main()
