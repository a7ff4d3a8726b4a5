"""What transformers' continuous batching does around a model that is a ladder.

    model.generate_batch(prompts) ── init_continuous_batching ── manager ── thread: model(**batch) …

The thread calls the model itself, which is compiled. There, transformers keeps the paged cache out
of compiled graphs, and writes errors to its log: a ladder gets a manager that does neither.
transformers is not imported before a model begins to serve.
"""

import functools
import types
from typing import Any

from torch import nn

from ladderize import compat

TRIED = ("5.23",)
"""Versions of transformers, by their beginning."""
_BEGIN = "init_continuous_batching"


def lead_continuous_batching(module: nn.Module) -> None:
    """Let `module` serve as the ladder it is, if it can; a copy serves as a standard model."""
    begin = getattr(type(module), _BEGIN, None)
    if begin is None or _BEGIN in vars(module):
        return

    @functools.wraps(begin)
    def init_continuous_batching(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        manager = begin(self, *args, **kwargs)
        return _prepared(manager) if compat.is_compiled_in_place(self) else manager

    init_continuous_batching.of_a_ladder = True  # type: ignore[attr-defined]
    setattr(module, _BEGIN, types.MethodType(init_continuous_batching, module))


def restore_continuous_batching(module: nn.Module) -> None:
    """Undo `lead_continuous_batching`."""
    if hasattr(vars(module).get(_BEGIN), "of_a_ladder"):
        delattr(module, _BEGIN)


def _prepared(manager: Any) -> Any:
    import transformers

    from ladderize.compat.paged_cache import LadderManager

    compat.warn_if_untried("transformers", transformers.__version__, TRIED)
    return LadderManager.take(manager)
