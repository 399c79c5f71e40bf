"""Answers to all exercises, one module per notebook."""

import pkgutil
from importlib import import_module

RIGHT, WRONG = {}, {}
for _module in pkgutil.iter_modules(__path__):
    _answers = import_module(f"{__name__}.{_module.name}")
    RIGHT |= _answers.RIGHT
    WRONG |= _answers.WRONG
