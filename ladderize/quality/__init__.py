"""Measure what a ladder costs in quality, choose the cheapest blocks, and heal a ladder.

    standard model ── sensitivity ── blocks ── HealingTrainer ── its ladder, healed ── evaluate

`HealingTrainer` trains a model in memory; `heal` is a whole run, from a folder to a folder.
`sensitivity` is public as `ladderize.sensitivity`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ladderize.quality.evaluation import Evaluation, evaluate
    from ladderize.quality.healing.healing_arguments import HealingArguments
    from ladderize.quality.healing.trainer import HealingTrainer
    from ladderize.quality.runs.heal_options import HealOptions
    from ladderize.quality.runs.heal_run import heal
    from ladderize.quality.texts import read_tokens

__all__ = [
    "Evaluation",
    "HealOptions",
    "HealingArguments",
    "HealingTrainer",
    "evaluate",
    "heal",
    "read_tokens",
]

_MODULES = {
    "Evaluation": "evaluation",
    "HealOptions": "runs.heal_options",
    "HealingArguments": "healing.healing_arguments",
    "HealingTrainer": "healing.trainer",
    "evaluate": "evaluation",
    "heal": "runs.heal_run",
    "read_tokens": "texts",
}


def __getattr__(name: str) -> Any:  # imports transformers only on use
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
