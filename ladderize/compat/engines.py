"""What only an engine that runs in this process knows, and which versions of it were tried."""

import sys
import warnings
from typing import Any

from ladderize.errors import LadderWarning


def warn_if_untried(engine: str, version: str, tried: tuple[str, ...]) -> None:
    """Warn of a version that begins like none of `tried`; then the checks decide."""
    if not version.startswith(tried):
        known = ", ".join(tried)
        warnings.warn(
            LadderWarning(f"{engine} {version} was not tried with ladderize; {known} was."),
            stacklevel=2,
        )


def is_model_configuration(value: object) -> bool:
    """Whether it is a configuration of transformers, which nobody imports to find out."""
    module: Any = sys.modules.get("transformers.configuration_utils")
    return module is not None and isinstance(value, module.PreTrainedConfig)


def is_pretrained_model(value: object) -> bool:
    """Whether it is a model of transformers, which nobody imports to find out."""
    module: Any = sys.modules.get("transformers.modeling_utils")
    return module is not None and isinstance(value, module.PreTrainedModel)


def vllm_group(name: str) -> str | None:
    """The name in c10d of vLLM's group `name` ("tp:0"); of its tensor-parallel group if it is "".

    None where vLLM does not run, or has no such group.
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
