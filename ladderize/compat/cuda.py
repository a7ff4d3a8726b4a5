"""CUDA kernels, compiled on first use."""

from typing import Any

import torch


def compile_kernel(source: str, name: str) -> Any:
    """The CUDA C++ kernel `name` of `source`, compiled by NVRTC for the current device.

    Call it as `kernel(grid=, block=, args=, shared_mem=, stream=)`; ints are 32 bits wide. For
    48 KiB of shared memory or more, call `kernel.set_shared_memory_config(bytes)` first.
    """
    from torch.cuda import _compile_kernel

    return _compile_kernel(source, name)


def most_shared_memory(device: torch.device) -> int:
    """Maximum bytes of one thread block. The property is missing on ROCm and in torch's stubs."""
    properties = torch.cuda.get_device_properties(device)
    return int(getattr(properties, "shared_memory_per_block_optin", 48 * 1024))
