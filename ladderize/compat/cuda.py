"""Kernels that are compiled when they are needed."""

from typing import Any


def compile_kernel(source: str, name: str) -> Any:
    """The CUDA C++ kernel `name` of `source`, compiled by NVRTC for the current device.

    It is called as `kernel(grid=, block=, args=, shared_mem=, stream=)`; ints are 32 bits wide.
    From 48 KiB on, `kernel.set_shared_memory_config(bytes)` must have been called.
    """
    from torch.cuda import _compile_kernel

    return _compile_kernel(source, name)
