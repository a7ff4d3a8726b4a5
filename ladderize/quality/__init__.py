"""What a ladder costs in quality, and how it is healed.

    standard model ── HealingTrainer ── the same model, whose ladder computes nearly the same

`HealingTrainer` trains a model that you hold; `heal` is a whole run, from a folder to a folder.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ladderize.quality.healing.healing_arguments import HealingArguments
    from ladderize.quality.healing.trainer import HealingTrainer
    from ladderize.quality.runs.heal_options import HealOptions
    from ladderize.quality.runs.heal_run import heal
    from ladderize.quality.texts import read_tokens

__all__ = ["HealOptions", "HealingArguments", "HealingTrainer", "heal", "read_tokens"]

_MODULES = {
    "HealOptions": "runs.heal_options",
    "HealingArguments": "healing.healing_arguments",
    "HealingTrainer": "healing.trainer",
    "heal": "runs.heal_run",
    "read_tokens": "texts",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
