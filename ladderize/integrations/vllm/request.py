"""Who asks vLLM for a ladder, and with which options.

    --additional-config '{"ladderize": {…}}'     the options, and the request
    --compilation-config '{"backend": "ladderize"}'    the request alone
    config.json of the checkpoint: "ladder": {…}       it was trained as this ladder

In the end each request stands in `additional_config`, which is part of the key of vLLM's cache of
compiled graphs: a ladder and the standard model never share an entry.
"""

from collections.abc import Mapping
from typing import Any

from ladderize.config.ladder_entry import LadderEntry
from ladderize.config.options import LadderConfig
from ladderize.frontends.checkpoints.own_entry import entry_of_configuration

NAME = "ladderize"
"""The backend; the key of the options in `additional_config`."""
VLLMS_OWN = "inductor"
"""The backend that vLLM splits a graph for."""
PIECEWISE = 3
"""The mode of compilation in which vLLM splits the graph at each attention."""
WHOLE = 2
"""The mode in which vLLM hands a backend the whole graph."""


def mode_of(config: Any) -> int:
    """The mode of compilation, 0 while it is open."""
    return int(config.compilation_config.mode or 0)


def is_asked_for(config: Any) -> bool:
    """Whether anybody asks for a ladder."""
    return entry_of(config) is not None or NAME in _additional(config) or _asks_by_backend(config)


def note_request(config: Any) -> None:
    """Before vLLM completes `config`: keep a request by `backend`, for vLLM may overwrite it.

    Where vLLM has yet to choose the mode, it must see its own backend: other settings follow it.
    """
    if not _asks_by_backend(config):
        return
    compilation = config.compilation_config
    config.additional_config = {NAME: {}, **_additional(config)}
    if compilation.mode is None or mode_of(config) == PIECEWISE:
        compilation.backend = VLLMS_OWN


def settle(config: Any) -> None:
    """After vLLM has completed `config`: write the options into `additional_config`.

    Raises:
        LadderError: as `options_of` does.
    """
    if is_asked_for(config):
        config.additional_config = {**_additional(config), NAME: options_of(config)}


def options_of(config: Any) -> dict[str, Any]:
    """Those of the checkpoint, if it says that it is a ladder; and those of `--additional-config`.

    Args:
        config: vLLM's.

    Raises:
        LadderError: the two contradict each other, or one of them is not an option.
    """
    given, entry = _additional(config).get(NAME) or {}, entry_of(config)
    LadderConfig.from_options(given, checkpoint=entry)
    return dict(given) if entry is None else entry.fill(given)


def entry_of(config: Any) -> LadderEntry | None:
    """What the config.json of the checkpoint says of the ladder; None if nothing.

    Raises:
        LadderError: it cannot be used.
    """
    return entry_of_configuration(_model_config(config))


def _asks_by_backend(config: Any) -> bool:
    return bool(config.compilation_config.backend == NAME)


def _additional(config: Any) -> Mapping[str, Any]:
    additional = config.additional_config
    return additional if isinstance(additional, Mapping) else {}


def _model_config(config: Any) -> Any:
    """The Hugging Face configuration of the model; None where vLLM makes a configuration alone."""
    model = config.model_config
    return None if model is None else model.hf_config
