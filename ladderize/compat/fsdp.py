"""The hooks with which FSDP2 gathers a module's parameters. Seen in 2.13."""

from typing import Any

from torch import nn


def parts_with_hooks(model: nn.Module) -> dict[str, Any]:
    """The modules below `model` that FSDP2 has hooks on, by their names."""
    from torch.distributed.fsdp import FSDPModule

    parts = {n: part for n, part in model.named_modules() if n and isinstance(part, FSDPModule)}
    return {name: part for name, part in parts.items() if part._forward_pre_hooks}


def drop_hooks(part: Any) -> None:
    """Leave it to the caller to gather `part`'s parameters ahead of its forward pass.

    Dynamo does not trace into the hooks, and PyTorch has no switch for them. In the end of the
    backward pass FSDP2's root does for every part what the hooks have left out.
    """
    state = part._get_fsdp_state()
    state._pre_forward_hook_handle.remove()
    state._post_forward_hook_handle.remove()
