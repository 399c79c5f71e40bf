"""Bring the provenance table in assets/README.md up to date: ``make assets-table``.

Sizes and hashes are read from the files. Command, seed and licence of models and records follow
from where they lie; of other files they are kept from the table, and a new one takes them over from
a neighbour in its folder, or says ``?``, to be filled in by hand.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

COLUMNS = ("file", "command", "seed", "bytes", "sha256", "licence")
BEGIN, END = "<!-- table -->", "<!-- end of table -->"


def read_rows(readme: str) -> dict[str, dict[str, str]]:
    """Return the rows of the table by file."""
    table = readme.partition(BEGIN)[2].partition(END)[0].strip().splitlines()[2:]
    rows = (
        dict(zip(COLUMNS, (cell.strip() for cell in line.strip("|").split("|")), strict=True))
        for line in table
    )
    return {row["file"].strip("`"): row for row in rows}


def _read(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text())
    except json.JSONDecodeError:
        return {}
    return document if isinstance(document, dict) else {}


def known_by_place(folder: Path, file: str) -> dict[str, str] | None:
    """Return command, seed and licence of a model's file or of a record, None for others."""
    kind, _, rest = file.partition("/")
    name = Path(rest).parts[0] if rest else ""
    if kind == "models":
        card = file.endswith("/card.md")
        command = f"sinkviz card assets/models/{name}" if card else f"sinkviz train {name}"
        recipe = json.loads((folder / "models" / name / "recipe.json").read_text())
        return {"command": f"`{command}`", "seed": str(recipe["seed"]), "licence": "MIT"}
    if kind == "runs" and "provenance" in (said := _read(folder / file)):
        said = said["provenance"]
        command = f"sinkviz run {Path(name).stem} --text {said['text']}"
        return {"command": f"`{command}`", "seed": str(said["seed"]), "licence": "CC BY 4.0"}
    return None


def update(folder: Path, readme: str) -> str:
    """Return ``readme`` with the table that ``folder`` deserves."""
    known = read_rows(readme)
    by_folder = {str(Path(file).parent): row for file, row in known.items()}
    unknown = dict.fromkeys(COLUMNS, "?")
    lines = [f"| {' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS)]
    for path in sorted(folder.rglob("*")):
        file = path.relative_to(folder).as_posix()
        hidden = any(part.startswith((".", "__")) for part in file.split("/"))
        if hidden or not path.is_file() or file in ("README.md", "make_table.py"):
            continue
        data = path.read_bytes()
        row = known_by_place(folder, file) or known.get(file)
        row = unknown | (row or by_folder.get(str(Path(file).parent)) or {})
        row = row | {
            "file": f"`{file}`",
            "bytes": str(len(data)),
            "sha256": hashlib.sha256(data).hexdigest(),
        }
        lines.append(f"| {' | '.join(row[name] for name in COLUMNS)} |")
    before, _, rest = readme.partition(BEGIN)
    return "\n".join([before + BEGIN, "", *lines, "", END + rest.partition(END)[2]])


if __name__ == "__main__":
    here = Path(__file__).parent
    text = update(here, (here / "README.md").read_text(encoding="utf-8"))
    (here / "README.md").write_text(text, encoding="utf-8")
    missing = [file for file, row in read_rows(text).items() if "?" in row.values()]
    print(f"{len(read_rows(text))} files" + "".join(f"\nfill in by hand: {m}" for m in missing))
