"""What the checkpoint of a model says of the ladder that it is.

model, or what it wraps ── .config ── "ladder", "ladder_layers" ── LadderEntry
a folder                ── config.json ───────────┘
"""

from pathlib import Path
from typing import Any

from torch import nn

from ladderize import compat
from ladderize.compat.json_files import read_json
from ladderize.config.ladder_entry import LadderEntry
from ladderize.errors import Blocker, LadderError
from ladderize.frontends.delegates import find_delegates


def own_entry(model: object) -> LadderEntry | None:
    """The entry of a model of transformers, or of one that wraps it; None if there is none.

    Args:
        model: a module, or anything else, which has no entry.

    Raises:
        LadderError: what its configuration says cannot be used.
    """
    if not isinstance(model, nn.Module):
        return None
    configs = (getattr(module, "config", None) for module in (model, *find_delegates(model)))
    found = next(filter(compat.is_model_configuration, configs), None)
    return entry_of_configuration(found)


def entry_of_configuration(config: Any) -> LadderEntry | None:
    """The entry in a configuration of transformers; None if there is none.

    Raises:
        LadderError: what it says cannot be used.
    """
    return LadderEntry.read(vars(config)) if compat.is_model_configuration(config) else None


def entry_of_folder(path: Path) -> LadderEntry | None:
    """The entry in the config.json of a checkpoint, which is a folder or a file in it.

    Raises:
        LadderError: what it says cannot be used, or the file cannot be read.
    """
    file = (path if path.is_dir() else path.parent) / "config.json"
    data = read_json(file, "configuration") if file.is_file() else None
    return LadderEntry.read(data) if isinstance(data, dict) else None


def the_one_of(model: LadderEntry | None, checkpoint: LadderEntry | None) -> LadderEntry | None:
    """What is said by a model's configuration, or by the checkpoint that it is filled from.

    Raises:
        LadderError: both say something, and not the same.
    """
    if model and checkpoint and model.as_data() != checkpoint.as_data():
        raise LadderError(
            "The model's configuration and the checkpoint name different ladders:",
            [
                Blocker(f"the model's configuration has {model}"),
                Blocker(f"the checkpoint's config.json has {checkpoint}"),
            ],
            "build the model from the checkpoint's own config.json",
        )
    return checkpoint or model
