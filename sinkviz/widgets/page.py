"""One self-contained file of a widget: its module, its state and a picture; no kernel, no network.

Knows nothing about what a widget shows.
"""

from __future__ import annotations

import base64
import html
import json
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
EXPORT = re.compile(r"^export default ", re.MULTILINE)
# The browser itself refuses whatever would reach beyond the file.
POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:"
PAGE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; background: Canvas; color: CanvasText; }}
body {{ max-width: 1280px; margin: 0 auto; padding: 12px; font-family: system-ui, sans-serif; }}
h1 {{ font-size: 1.05em; font-weight: 600; margin: 4px 6px; overflow-wrap: anywhere; }}
noscript img {{ max-width: 100%; }}
{css}
</style>
</head>
<body>
<main>
<h1>{title}</h1>
<div id="widget"></div>
<noscript>{picture}</noscript>
</main>
<script type="application/json" id="state">{state}</script>
<script type="module">
{module}
</script>
</body>
</html>
"""


def packed(value: Any) -> Any:
    """Return a value as JSON can hold it: bytes are compressed and written as base64.

    Example:
        >>> sorted(packed({"n": 1, "data": b"xyz"}))
        ['data', 'n']
    """
    if isinstance(value, bytes | bytearray | memoryview):
        return {"$bytes": base64.b64encode(zlib.compress(value, 6)).decode()}
    if isinstance(value, Mapping):
        return {str(name): packed(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [packed(one) for one in value]
    return value


def page(module: str, css: str, state: Mapping[str, Any], title: str, png: str | None) -> str:
    """Return the text of the file.

    Args:
        module: the widget's ES module, with one ``export default`` at the start of a line.
        css: its style sheet.
        state: what ``model.get`` answers; numbers, strings, bytes, lists and mappings of them.
        title: of the page; any text.
        png: picture for browsers without JavaScript, base64.

    Raises:
        ValueError: the module exports nothing or more than one thing.

    Example:
        >>> text = page("export default { render };", "", {"name": "</script>"}, "a < b", None)
        >>> "a &lt; b" in text, text.count("</script>")
        (True, 2)
    """
    if len(EXPORT.findall(module)) != 1:
        raise ValueError("the module of a widget must have exactly one 'export default'")
    source = EXPORT.sub("const widget = ", module)
    start = (HERE / "page.js").read_text(encoding="utf-8")
    written = json.dumps(packed({**state, "offline": True}), allow_nan=False)
    picture = f'<img alt="" src="data:image/png;base64,{png}">' if png else ""
    return PAGE.format(
        policy=POLICY,
        title=html.escape(title),
        css=css.replace("</", "<\\/"),
        picture=picture,
        # Inside JSON a "<" may stand as its number; inside a module "</script" would end it.
        state=written.replace("<", "\\u003c"),
        module=f"{source}\n{start}".replace("</script", "<\\/script"),
    )
