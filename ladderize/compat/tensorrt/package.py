"""The installed TensorRT package, and the GPUs that it builds for."""

from types import ModuleType
from typing import Any

import torch


def tensorrt() -> ModuleType:
    """The package that the installed Torch-TensorRT uses: `tensorrt` or `tensorrt_rtx`."""
    import torch_tensorrt  # noqa: F401  # first: it gives TensorRT-RTX the name `tensorrt`

    import tensorrt  # isort: skip

    return tensorrt  # type: ignore[no-any-return]


def is_tensorrt_rtx() -> bool:
    """Whether it is TensorRT-RTX, which can build for GPUs that are not present."""
    tensorrt()
    from torch_tensorrt._features import ENABLED_FEATURES

    return bool(ENABLED_FEATURES.tensorrt_rtx)


def tensorrt_versions() -> tuple[str, ...]:
    """The versions that a plan depends on; for TensorRT also the GPU's name."""
    package = tensorrt()
    import torch_tensorrt

    is_rtx = is_tensorrt_rtx()
    name = "tensorrt_rtx" if is_rtx else "tensorrt"
    return (
        f"torch {torch.__version__}",
        f"torch_tensorrt {torch_tensorrt.__version__}",
        f"{name} {package.__version__}",
        *(() if is_rtx else (torch.cuda.get_device_name(),)),
    )


def compute_capability(target: tuple[int, int]) -> Any:
    """TensorRT-RTX's value for a compute capability; None if it is not supported."""
    trt: Any = tensorrt()
    return getattr(trt.ComputeCapability, f"SM{target[0]}{target[1]}", None)


def supported_targets() -> list[tuple[int, int]]:
    """The compute capabilities that TensorRT-RTX builds for."""
    trt: Any = tensorrt()
    names = [name for name in dir(trt.ComputeCapability) if name.startswith("SM")]
    return sorted((int(name[2:-1]), int(name[-1])) for name in names)
