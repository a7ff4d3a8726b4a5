"""`package.module:factory`: a Python function that returns `(model, args, kwargs)`."""

import importlib
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from ladderize.errors import Blocker, LadderError
from ladderize.tools.sources.example_inputs import seeded


def call_factory(text: str) -> tuple[nn.Module, tuple[Any, ...], dict[str, Any]]:
    """What the function called `text` returns. Modules are looked for in this folder first.

    Raises:
        LadderError: it is not there, it raises, or returns something else.
    """
    module_name, _, function_name = text.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    seeded()
    try:
        function = getattr(importlib.import_module(module_name), function_name)
        made = function()
    except Exception as error:  # whatever a stranger's module raises
        frames = traceback.extract_tb(error.__traceback__)
        place = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else ""
        raise LadderError(
            f"{text} could not be called:", [Blocker(f"{type(error).__name__}: {error}", place)]
        ) from error
    return _checked(text, made)


def _checked(text: str, made: Any) -> tuple[nn.Module, tuple[Any, ...], dict[str, Any]]:
    model, *rest = made if isinstance(made, tuple) else (made,)
    args = rest.pop(0) if rest and isinstance(rest[0], tuple | list) else ()
    kwargs = rest.pop(0) if rest and isinstance(rest[0], Mapping) else {}
    if rest or not isinstance(model, nn.Module):
        kinds = ", ".join(type(part).__name__ for part in (model, *rest))
        raise LadderError(f"{text} returned ({kinds}).", cure="let it return (model, args, kwargs)")
    return model, tuple(args), dict(kwargs)
