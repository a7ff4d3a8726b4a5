"""Process groups, and traces of DistributedDataParallel and FSDP in a module."""

import traceback
from datetime import timedelta
from typing import Any

import torch
from torch import nn

from ladderize.compat.dynamo import running_modules


def default_store() -> Any:
    """The key-value store that `init_process_group` made."""
    from torch.distributed.distributed_c10d import _get_default_store

    return _get_default_store()


def process_group(name: str) -> Any:
    """The process group called `name`."""
    from torch.distributed import distributed_c10d

    resolve: Any = distributed_c10d.__dict__["_resolve_process_group"]  # not in the stubs
    return resolve(name)


def find_process_group(name: str) -> Any:
    """The process group called `name`; None if c10d does not know it."""
    try:
        return process_group(name)
    except (LookupError, RuntimeError, ValueError):
        return None


def group_timeout(group: Any) -> timedelta:
    """The shortest timeout of a collective of `group` over its backends."""
    backends = (group._get_backend(device) for device in group._device_types)
    shortest: timedelta = min(backend.options._timeout for backend in backends)
    return shortest


def device_types(group: Any) -> set[str]:
    """The device types that `group` has a backend for."""
    return {device.type for device in group._device_types}


def backend_name(group: Any, device_type: str) -> str:
    """The backend for a device type ("nccl", "gloo"); "" if it is a Python class."""
    try:
        name: str = group._get_backend(torch.device(device_type)).name()
    except (AttributeError, RuntimeError):
        return ""
    return name


def current_device(device_type: str) -> torch.device:
    """This process's current device of a type, with its index.

    Checks of a tensor's device take "cuda" and "cuda:0" for different devices.
    """
    if device_type in ("cpu", "meta"):
        return torch.device(device_type)
    return torch.device(device_type, torch.get_device_module(device_type).current_device())


def pass_on(group: Any, backend: Any) -> None:
    """Make `backend` serve all calls that `group`, a Python class, does not override."""
    import torch.distributed as dist

    group._register_backend(torch.device("cpu"), dist.ProcessGroup.BackendType.GLOO, backend)
    group._set_default_backend(dist.ProcessGroup.BackendType.GLOO)


def data_parallel_group() -> Any:
    """The process group of the DistributedDataParallel that is running its forward, or None."""
    from torch.nn.parallel import DistributedDataParallel

    running: Any = DistributedDataParallel._active_ddp_module
    return None if running is None else running.process_group


def is_bucket() -> bool:
    """Whether the graph being compiled is one of the buckets of a DDP model."""
    from torch._dynamo.backends.distributed import SubmodCompiler

    frames = (frame for frame, _ in traceback.walk_stack(None))
    return any(isinstance(frame.f_locals.get("self"), SubmodCompiler) for frame in frames)


def sharded_parts() -> list[str]:
    """The names of submodules with FSDP2 hooks, below the outermost module on the Python stack."""
    running = list(running_modules())
    if not running:
        return []
    root = getattr(running[-1], "_orig_mod", running[-1])
    return list(parts_with_hooks(root))


def parts_with_hooks(model: nn.Module) -> dict[str, Any]:
    """The submodules of `model` with FSDP2 hooks, by name."""
    from torch.distributed.fsdp import FSDPModule

    hooked = {n: part for n, part in model.named_modules() if n and part._forward_pre_hooks}
    return {name: part for name, part in hooked.items() if isinstance(part, FSDPModule)}


def drop_part_hooks(part: Any) -> None:
    """Remove `part`'s forward hooks: the caller gathers its parameters instead. Seen in 2.13.

    Dynamo does not trace FSDP2's hooks, and PyTorch has no switch for them. At the end of the
    backward pass, FSDP2's root does the work of the hooks for every part.
    """
    state = part._get_fsdp_state()
    state._pre_forward_hook_handle.remove()
    state._post_forward_hook_handle.remove()
