"""Make a deck of each solved notebook: ``make slides``.

One HTML file per notebook, with reveal.js inside, that needs no network. What becomes a slide
follows from how a notebook is built: its head, the prediction, each figure with its "What you
see", the exercise cards, the limits and the key points. Everything else goes to the speaker notes.
"""

import argparse
import html
import re
from pathlib import Path

import nbformat
from nbconvert.filters.markdown_mistune import markdown2html_mistune

HERE = Path(__file__).resolve().parent
PNG = "image/png"
STYLE = """
.reveal { font-size: 28px } .reveal h1 { font-size: 1.8em }
.reveal h2, .reveal h3 { font-size: 1.4em }
.reveal h1, .reveal h2, .reveal h3 { text-transform: none } .reveal .anchor-link { display: none }
.reveal section { text-align: left } .reveal details { display: none }
.reveal img { display: block; width: 100%; height: 470px; object-fit: contain; margin: 0 }
.reveal .seen { font-size: 0.8em; color: #333 } .reveal table { font-size: 0.8em }
.reveal blockquote { width: 100%; box-shadow: none; font-style: normal; border-left: 4px solid #888;
  padding-left: 1em }
"""
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>{css}{style}</style></head>
<body><div class="reveal"><div class="slides">
{slides}
</div></div>
<script>{script}</script>
<script>{notes}</script>
<script>
Reveal.initialize({{ hash: true, slideNumber: "c/t", width: 1280, height: 720,
  plugins: [RevealNotes] }});
</script>
</body></html>
"""


def picture(cell):
    """Return the last PNG of a code cell, or None."""
    found = [out["data"][PNG] for out in cell.get("outputs", ()) if PNG in out.get("data", {})]
    return found[-1] if found else None


def slides_of(notebook):
    """Yield (Markdown or HTML of a slide, speaker notes)."""
    cells, heading, notes = notebook.cells, "", []
    kept = r"## Predict first|### Exercise|## Key points|## Recall|> \*\*What this does not show"
    for cell, after in zip(cells, [*cells[1:], None], strict=True):
        if cell.cell_type == "markdown":
            if found := re.findall(r"^#{1,3} (.+)$", cell.source, re.M):
                heading = found[-1]
            if cell is cells[0] or re.search(kept, cell.source):
                yield markdown(cell.source), notes
                notes = []
            else:
                notes.append(cell.source)
        elif shown := picture(cell):
            seen = after.source if after is not None else ""
            what = (re.search(r"What you see: (.+?)(?:\n\n|\Z)", seen, re.S) or ["", ""])[1]
            alternative = html.escape(re.sub(r"[*_`]", "", what), quote=True)
            image = f'<img src="data:{PNG};base64,{shown.strip()}" alt="{alternative}">'
            what = what[:1].upper() + what[1:]
            body = f"<h3>{html.escape(heading)}</h3>{image}<div class='seen'>{markdown(what)}</div>"
            yield body, [*notes, f"```python\n{cell.source}\n```"]
            notes = []


def markdown(text):
    """Return Markdown as HTML, links between notebooks as plain words."""
    return markdown2html_mistune(re.sub(r"\[([^\]]+)\]\([^)]+\.ipynb\)", r"\1", text))


def deck(path, reveal):
    """Return a notebook as one page of slides."""
    notebook = nbformat.read(path, as_version=4)
    slides = "\n".join(
        f"<section>{body}<aside class='notes'>{markdown(chr(10).join(notes))}</aside></section>"
        for body, notes in slides_of(notebook)
    )
    css = "".join((reveal / name).read_text() for name in ("reveal.css", "theme/white.css"))
    script, notes = (
        (reveal / name).read_text().replace("</script", "<\\/script")
        for name in ("reveal.js", "plugin/notes.js")
    )
    title = notebook.cells[0].source.splitlines()[0].lstrip("# ")
    told = {"css": css, "style": STYLE, "slides": slides, "script": script, "notes": notes}
    return PAGE.format(title=html.escape(title), **told)


def main():
    """Answer the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("reveal", type=Path, help="the folder dist of reveal.js")
    parser.add_argument("target", type=Path, help="where the decks go")
    given = parser.parse_args()
    given.target.mkdir(parents=True, exist_ok=True)
    for path in sorted(HERE.glob("solutions/*.ipynb")):
        page = deck(path, given.reveal)
        (given.target / f"{path.stem}.html").write_text(page, encoding="utf-8")
        print(given.target / f"{path.stem}.html")


if __name__ == "__main__":
    main()
