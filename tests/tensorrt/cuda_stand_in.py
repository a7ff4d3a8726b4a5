"""Stands in for what Torch-TensorRT asks of CUDA when it is imported, where there is no GPU.

Importing and converting ask which device is current and what it can do, and use no answer for what
TensorRT-RTX builds: that is told its target. Nothing runs on the device that is described here.
"""

from types import SimpleNamespace

import torch

_DEVICE = SimpleNamespace(
    name="no GPU, a stand-in", major=9, minor=0, total_memory=80 << 30, multi_processor_count=132
)


def install() -> None:
    torch.cuda.current_device = lambda: 0
    torch.cuda.get_device_capability = lambda _=None: (_DEVICE.major, _DEVICE.minor)
    torch.cuda.get_device_properties = lambda _=None: _DEVICE
    torch.cuda.get_device_name = lambda _=None: _DEVICE.name
    torch._C._CudaDeviceProperties = SimpleNamespace
