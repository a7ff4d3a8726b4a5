"""Replace a method of one module, and undo it: `generate`'s helpers, `save_pretrained`.

Copies and unpickled modules look the method up by its name, in their class.
"""

import functools
import types
from collections.abc import Callable
from typing import Any

from torch import nn

Method = Callable[..., Any]


def lead_method(module: nn.Module, name: str, around: Callable[[Method], Method]) -> None:
    """Replace the method `name` of `module` by `around(method)`, a function of the module.

    No effect if the class has no such method, or the instance has one of its own.
    """
    standard = getattr(type(module), name, None)
    if standard is None or name in vars(module):
        return
    led = functools.wraps(standard)(around(standard))
    led.is_led = True  # type: ignore[attr-defined]
    setattr(module, name, types.MethodType(led, module))


def restore_method(module: nn.Module, name: str) -> None:
    """Undo `lead_method`."""
    if hasattr(vars(module).get(name), "is_led"):
        delattr(module, name)
