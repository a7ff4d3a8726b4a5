"""A model that was made a ladder says so when it is saved.

    model.save_pretrained(DIR)           after ladderize.compile(model); transformers' Trainer too
    ladderize.save_pretrained(model, DIR)    also for torch.compile(model, backend="ladderize")

    DIR/config.json    "ladder": {"blocks": [4, 5, 6, 7], "staleness": 1, "version": 1}
    DIR/README.md      warns that other engines would run it as a standard model

The configuration of the live model is as before when the call returns.
"""

import functools
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ladderize import compat
from ladderize.config.ladder_entry import KEY, LadderEntry
from ladderize.errors import LadderError
from ladderize.frontends.checkpoints.conversions import entry_to_write
from ladderize.frontends.checkpoints.model_card import write_card
from ladderize.frontends.checkpoints.own_entry import own_entry

_SAVE = "save_pretrained"


def save_pretrained(model: nn.Module, directory: str | Path, **kwargs: Any) -> Any:
    """Save a ladder as transformers saves a model, with a note in config.json of what it is.

    >>> model = torch.compile(model, backend="ladderize", options={"layers": "last:50%"})
    >>> model(**inputs)
    >>> ladderize.save_pretrained(model, "my-ladder")
    >>> ladderize.compile(AutoModelForCausalLM.from_pretrained("my-ladder"))   # the same ladder

    The note holds the blocks that the latest compilation converted; before the first one the
    options as they were given. A model card, README.md, is written next to it, unless there is
    one. After `ladderize.compile(model)`, `model.save_pretrained` does the same.

    Args:
        model: of transformers; compiled by `ladderize.compile`, or the wrapper that
            `torch.compile` returned, or in DistributedDataParallel.
        directory: as for `save_pretrained` of the model.
        kwargs: the same.

    Returns:
        What `save_pretrained` of the model returns.

    Raises:
        LadderError: it is not a model of transformers, or not a ladder.
    """
    model = compat.without_wrapper(model)
    inner = model.module if isinstance(model, DistributedDataParallel) else model
    kind = type(inner).__name__
    if not compat.is_pretrained_model(inner):
        raise LadderError(
            f"ladderize.save_pretrained takes a model of transformers, not a {kind}.",
            cure="merge adapters first, by model.merge_and_unload(); write the entry into the "
            "config.json of other models yourself",
        )
    entry = entry_to_write(inner)
    if entry is None:
        raise LadderError(
            "This model is not a ladder: there is nothing to say in its config.json.",
            cure="call ladderize.compile(model, …) first, and do not restore it; or save it by its "
            "own save_pretrained",
        )
    return save_with_entry(inner, entry, directory, **kwargs)


def lead_saving(module: nn.Module) -> None:
    """Let `module.save_pretrained` write the entry; a copy is saved as a standard network."""
    if not compat.is_pretrained_model(module) or _SAVE in vars(module):
        return
    standard = getattr(type(module), _SAVE)

    @functools.wraps(standard)
    def save_pretrained(self: Any, save_directory: Any, *args: Any, **kwargs: Any) -> Any:
        entry = entry_to_write(self)
        if entry is None:
            return standard(self, save_directory, *args, **kwargs)
        return save_with_entry(self, entry, save_directory, *args, **kwargs)

    save_pretrained.writes_entry = True  # type: ignore[attr-defined]
    setattr(module, _SAVE, types.MethodType(save_pretrained, module))


def restore_saving(module: nn.Module) -> None:
    """Undo `lead_saving`."""
    if hasattr(vars(module).get(_SAVE), "writes_entry"):
        delattr(module, _SAVE)


def save_with_entry(
    model: Any,
    entry: LadderEntry,
    directory: str | Path,
    is_main_process: bool = True,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """`save_pretrained` of a model of transformers, with `entry` in config.json and a model card.

    Args:
        model: its own configuration stays as it is; an entry in it takes the place of `entry`.
        entry: what the weights are.
        directory, is_main_process, args, kwargs: as for `save_pretrained` of the model.
    """
    if is_main_process and not Path(directory).is_file():  # then transformers says so
        write_card(Path(directory), entry)
    with _noted(model, entry):
        standard = getattr(type(model), _SAVE)
        return standard(model, directory, is_main_process, *args, **kwargs)


@contextmanager
def _noted(model: nn.Module, entry: LadderEntry) -> Iterator[None]:
    """The configuration of `model` holds `entry` inside, and is as before afterwards."""
    if own_entry(model) is not None:
        yield
        return
    config: Any = model.config
    setattr(config, KEY, entry.as_data())
    try:
        yield
    finally:
        delattr(config, KEY)
