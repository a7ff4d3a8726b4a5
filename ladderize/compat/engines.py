"""State of an inference engine running in this process, and the versions tested with it."""

import sys
import warnings
from typing import Any

from ladderize.errors import LadderWarning


def warn_if_untried(engine: str, version: str, tried: tuple[str, ...]) -> None:
    """Warn if `version` starts with none of `tried`; later checks decide whether it works."""
    if not version.startswith(tried):
        known = ", ".join(tried)
        warnings.warn(
            LadderWarning(f"{engine} {version} is untested with ladderize; tested: {known}."),
            stacklevel=2,
        )


def is_model_configuration(value: object) -> bool:
    """Whether `value` is a transformers configuration. Does not import transformers."""
    module: Any = sys.modules.get("transformers.configuration_utils")
    return module is not None and isinstance(value, module.PreTrainedConfig)


def is_pretrained_model(value: object) -> bool:
    """Whether `value` is a transformers model. Does not import transformers."""
    module: Any = sys.modules.get("transformers.modeling_utils")
    return module is not None and isinstance(value, module.PreTrainedModel)


def vllm_group(name: str) -> str | None:
    """The c10d name of vLLM's group `name` ("tp:0"); "" means its tensor-parallel group.

    None if vLLM is not running or has no such group.
    """
    state: Any = sys.modules.get("vllm.distributed.parallel_state")
    if state is None:
        return None
    if name:
        reference = state._groups.get(name)
        coordinator = reference() if reference is not None else None
    else:
        coordinator = state._TP
    return None if coordinator is None else str(coordinator.device_group.group_name)
