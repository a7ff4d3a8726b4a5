"""Kernels that are compiled when they are needed."""

from typing import Any

import torch


def compile_kernel(source: str, name: str) -> Any:
    """The CUDA C++ kernel `name` of `source`, compiled by NVRTC for the current device.

    It is called as `kernel(grid=, block=, args=, shared_mem=, stream=)`; ints are 32 bits wide.
    From 48 KiB on, `kernel.set_shared_memory_config(bytes)` must have been called.
    """
    from torch.cuda import _compile_kernel

    return _compile_kernel(source, name)


def most_shared_memory(device: torch.device) -> int:
    """Bytes that one block may ask for; the property is missing in torch's stubs, and on ROCm."""
    properties = torch.cuda.get_device_properties(device)
    return int(getattr(properties, "shared_memory_per_block_optin", 48 * 1024))
