"""What only a serving engine that runs in this process knows."""

import sys
from typing import Any


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
