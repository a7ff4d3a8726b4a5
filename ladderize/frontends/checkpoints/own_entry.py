"""Read the ladder entry of a model or a checkpoint.

model, or its wrapped model ── .config ── "ladder", "ladder_layers" ── LadderEntry
a folder                    ── config.json ───────────┘
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
    """The entry of a transformers model, possibly wrapped; None if there is none.

    Args:
        model: module; other objects have no entry.

    Raises:
        LadderError: the entry is invalid.
    """
    if not isinstance(model, nn.Module):
        return None
    configs = (getattr(module, "config", None) for module in (model, *find_delegates(model)))
    found = next(filter(compat.is_model_configuration, configs), None)
    return entry_of_configuration(found)


def entry_of_configuration(config: Any) -> LadderEntry | None:
    """The entry in a transformers configuration; None if there is none.

    Raises:
        LadderError: the entry is invalid.
    """
    return LadderEntry.read(vars(config)) if compat.is_model_configuration(config) else None


def entry_of_folder(path: Path) -> LadderEntry | None:
    """The entry in a checkpoint's config.json; `path` is its folder or a file in it.

    Raises:
        LadderError: the entry is invalid, or the file cannot be read.
    """
    file = (path if path.is_dir() else path.parent) / "config.json"
    data = read_json(file, "configuration") if file.is_file() else None
    return LadderEntry.read(data) if isinstance(data, dict) else None


def the_one_of(model: LadderEntry | None, checkpoint: LadderEntry | None) -> LadderEntry | None:
    """The entry of the checkpoint or of the model's configuration; None if neither has one.

    Raises:
        LadderError: the two entries differ.
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
