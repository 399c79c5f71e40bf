"""``python -m sinkviz.cli`` is ``sinkviz``."""

from sinkviz.cli import app

app()
