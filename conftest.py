"""What examples in docstrings stand on: figures that one leaves open are closed after it."""

import sys

import pytest


@pytest.fixture(autouse=True)
def closed_figures():
    """Close the figures that a test or an example leaves open."""
    yield
    if pyplot := sys.modules.get("matplotlib.pyplot"):
        pyplot.close("all")
