"""Save a converted model with its ladder entry.

    model.save_pretrained(DIR)           after ladderize.compile(model); transformers' Trainer too
    ladderize.save_pretrained(model, DIR)    also for torch.compile(model, backend="ladderize")

    DIR/config.json    "ladder": {"blocks": [4, 5, 6, 7], "staleness": 1, "version": 1}
    DIR/README.md      warns that other engines would run it as a standard model

The configuration of the live model is unchanged when the call returns.
"""

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
from ladderize.frontends.led_methods import Method, lead_method, restore_method

_SAVE = "save_pretrained"


def save_pretrained(model: nn.Module, directory: str | Path, **kwargs: Any) -> Any:
    """Save a ladder like a transformers model, with a ladder entry in config.json.

    >>> model = torch.compile(model, backend="ladderize", options={"layers": "last:50%"})
    >>> model(**inputs)
    >>> ladderize.save_pretrained(model, "my-ladder")
    >>> ladderize.compile(AutoModelForCausalLM.from_pretrained("my-ladder"))   # the same ladder

    The entry has the blocks that the latest compilation converted, or the options as given before
    the first compilation. A model card, README.md, is written too, unless there is one. After
    `ladderize.compile(model)`, `model.save_pretrained` does the same.

    Args:
        model: transformers model compiled by `ladderize.compile`, the wrapper returned by
            `torch.compile`, or a model in DistributedDataParallel.
        directory, kwargs: as for the model's `save_pretrained`.

    Returns:
        The result of the model's `save_pretrained`.

    Raises:
        LadderError: the model is not a transformers model, or not a ladder.
    """
    model = compat.without_wrapper(model)
    inner = model.module if isinstance(model, DistributedDataParallel) else model
    kind = type(inner).__name__
    if not compat.is_pretrained_model(inner):
        raise LadderError(
            f"ladderize.save_pretrained takes a transformers model, not a {kind}.",
            cure="merge adapters first with model.merge_and_unload(); for other models, write the "
            "entry into config.json yourself",
        )
    entry = entry_to_write(inner)
    if entry is None:
        raise LadderError(
            "This model is not a ladder, so there is nothing to add to its config.json.",
            cure="call ladderize.compile(model, …) first, and do not restore the model; or save it "
            "with its own save_pretrained",
        )
    return save_with_entry(inner, entry, directory, **kwargs)


def lead_saving(module: nn.Module) -> None:
    """Make `module.save_pretrained` write the entry. Copies are saved as standard models."""
    if not compat.is_pretrained_model(module):
        return

    def around(standard: Method) -> Method:
        def save_pretrained(self: Any, save_directory: Any, *args: Any, **kwargs: Any) -> Any:
            entry = entry_to_write(self)
            if entry is None:
                return standard(self, save_directory, *args, **kwargs)
            return save_with_entry(self, entry, save_directory, *args, **kwargs)

        return save_pretrained

    lead_method(module, _SAVE, around)


def restore_saving(module: nn.Module) -> None:
    """Undo `lead_saving`."""
    restore_method(module, _SAVE)


def save_with_entry(
    model: Any,
    entry: LadderEntry,
    directory: str | Path,
    is_main_process: bool = True,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """Save a transformers model with `entry` in config.json and a model card.

    Args:
        model: transformers model; its configuration is not changed, and an entry in it takes
            precedence over `entry`.
        entry: ladder entry of the weights.
        directory, is_main_process, args, kwargs: as for the model's `save_pretrained`.
    """
    if is_main_process and not Path(directory).is_file():  # transformers reports that
        write_card(Path(directory), entry)
    with _noted(model, entry):
        standard = getattr(type(model), _SAVE)
        return standard(model, directory, is_main_process, *args, **kwargs)


@contextmanager
def _noted(model: nn.Module, entry: LadderEntry) -> Iterator[None]:
    """Add `entry` to the configuration of `model` inside this context."""
    if own_entry(model) is not None:
        yield
        return
    config: Any = model.config
    setattr(config, KEY, entry.as_data())
    try:
        yield
    finally:
        delattr(config, KEY)
