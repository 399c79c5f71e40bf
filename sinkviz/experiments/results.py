"""The page that sets each result beside the paper's own: docs/RESULTS.md, from assets/runs."""

from __future__ import annotations

from pathlib import Path

from sinkviz.experiments.running import EXPERIMENTS, experiment, load_table

VERDICTS = {True: "yes", False: "**no**", None: "not decided"}


def results_page(folder: str | Path) -> str:
    """Return the page in Markdown.

    Args:
        folder: of the records, ``NAME.json`` each; experiments without one are listed as such.
    """
    parts = [
        "# Results",
        "What the two papers (and a few that came after) claim, and what the classroom models say "
        "to it. Nothing is tuned to agree: the verdicts are computed from the records in "
        "`assets/runs`, and `make results` writes this page. Paper numbers are of models a "
        "thousand to a hundred thousand times as large.",
    ]
    missing = []
    for name in EXPERIMENTS:
        path = Path(folder) / f"{name}.json"
        if not path.is_file():
            missing.append(name)
            continue
        asked, table = experiment(name), load_table(path)
        setting = table.attrs["provenance"]
        parts += [
            f"## `{name}`",
            asked.question,
            f"`sinkviz run {name}` on {', '.join(setting['models'])}; text {setting['text']}, "
            f"seed {setting['seed']}{', quick' if setting['quick'] else ''}; "
            f"{len(table):,} rows in `assets/runs/{name}.json`.",
        ]
        lines = ["| claim | paper | here | agrees |", "|---|---|---|---|"]
        for claim in asked.claims:
            agrees, here = claim.judge(table)
            cells = (claim.says, f"{claim.paper} ({claim.source})", here, VERDICTS[agrees])
            lines.append(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |")
        parts.append("\n".join(lines))
    if missing:
        parts += ["## Not run yet", ", ".join(f"`{name}`" for name in missing)]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    root = Path(__file__).parents[2]
    page = results_page(root / "assets" / "runs")
    (root / "docs" / "RESULTS.md").write_text(page, encoding="utf-8")
    print(f"wrote {root / 'docs' / 'RESULTS.md'}")
