"""Support for transformers' continuous batching with a ladder.

    model.generate_batch(prompts) ── init_continuous_batching ── manager ── thread: model(**batch) …

The thread calls the compiled model. transformers' manager keeps the paged cache out of compiled
graphs and only logs errors; a ladder gets a manager that does neither. transformers is imported
when a model begins to serve.
"""

from typing import Any

from torch import nn

from ladderize import compat
from ladderize.frontends.led_methods import Method, lead_method, restore_method

TRIED = ("5.23",)
"""Prefixes of the tested versions of transformers."""
_BEGIN = "init_continuous_batching"


def lead_continuous_batching(module: nn.Module) -> None:
    """Make `module`, if it can serve, serve as a ladder. Copies serve as standard models."""

    def around(begin: Method) -> Method:
        def init_continuous_batching(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
            manager = begin(self, *args, **kwargs)
            return _prepared(manager) if compat.is_compiled_in_place(self) else manager

        return init_continuous_batching

    lead_method(module, _BEGIN, around)


def restore_continuous_batching(module: nn.Module) -> None:
    """Undo `lead_continuous_batching`."""
    restore_method(module, _BEGIN)


def _prepared(manager: Any) -> Any:
    import transformers

    from ladderize.compat.paged_cache import LadderManager

    compat.warn_if_untried("transformers", transformers.__version__, TRIED)
    return LadderManager.take(manager)
