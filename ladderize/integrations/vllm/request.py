"""Read the request for a ladder, and its options, from vLLM's configuration.

    --additional-config '{"ladderize": {…}}'           a request with options
    --compilation-config '{"backend": "ladderize"}'    a request without options
    config.json of the checkpoint: "ladder": {…}       the checkpoint is this ladder

Each request is stored in `additional_config`, which is part of the key of vLLM's cache of compiled
graphs. So a ladder and the standard model never share an entry.
"""

from collections.abc import Mapping
from typing import Any

from ladderize.config.ladder_entry import LadderEntry
from ladderize.config.options import LadderConfig
from ladderize.frontends.checkpoints.own_entry import entry_of_configuration

NAME = "ladderize"
"""Name of the backend, and key of the options in `additional_config`."""
VLLMS_OWN = "inductor"
"""The backend that vLLM splits a graph for."""
PIECEWISE = 3
"""The compilation mode in which vLLM splits the graph at each attention."""
WHOLE = 2
"""The compilation mode in which vLLM passes the whole graph to a backend."""


def mode_of(config: Any) -> int:
    """The compilation mode, 0 if not chosen yet."""
    return int(config.compilation_config.mode or 0)


def is_asked_for(config: Any) -> bool:
    """Whether a ladder is requested."""
    return entry_of(config) is not None or NAME in _additional(config) or _asks_by_backend(config)


def note_request(config: Any) -> None:
    """Store a request by `backend` before vLLM completes `config` and may overwrite it.

    If vLLM has yet to choose the mode, it must see its own backend, on which other settings depend.
    """
    if not _asks_by_backend(config):
        return
    compilation = config.compilation_config
    config.additional_config = {NAME: {}, **_additional(config)}
    if compilation.mode is None or mode_of(config) == PIECEWISE:
        compilation.backend = VLLMS_OWN


def settle(config: Any) -> None:
    """Write the options into `additional_config`, after vLLM has completed `config`.

    Raises:
        LadderError: see `options_of`.
    """
    if is_asked_for(config):
        config.additional_config = {**_additional(config), NAME: options_of(config)}


def options_of(config: Any) -> dict[str, Any]:
    """The options of the ladder, from the checkpoint and from `--additional-config`.

    Args:
        config: configuration of vLLM.

    Raises:
        LadderError: the two contradict each other, or an option is invalid.
    """
    given, entry = _additional(config).get(NAME) or {}, entry_of(config)
    LadderConfig.from_options(given, checkpoint=entry)
    return dict(given) if entry is None else entry.fill(given)


def entry_of(config: Any) -> LadderEntry | None:
    """The ladder entry in the checkpoint's config.json, or None.

    Raises:
        LadderError: the entry is invalid.
    """
    return entry_of_configuration(_model_config(config))


def _asks_by_backend(config: Any) -> bool:
    return bool(config.compilation_config.backend == NAME)


def _additional(config: Any) -> Mapping[str, Any]:
    additional = config.additional_config
    return additional if isinstance(additional, Mapping) else {}


def _model_config(config: Any) -> Any:
    """The Hugging Face configuration of the model; None if vLLM's configuration has no model."""
    model = config.model_config
    return None if model is None else model.hf_config
