"""Load plans onto the device and refit their weights. Never run so far: both need a GPU."""

from collections.abc import Mapping
from typing import Any

import torch

from ladderize.compat.tensorrt.package import tensorrt


def deserialize(engine: bytes) -> Any:
    """Load an `ICudaEngine` onto the current device; None if TensorRT rejects the plan."""
    trt: Any = tensorrt()
    from torch_tensorrt.logging import TRT_LOGGER

    return trt.Runtime(TRT_LOGGER).deserialize_cuda_engine(engine)


def refit(engine: Any, weights: Mapping[str, torch.Tensor]) -> list[str]:
    """Set the weights of an `ICudaEngine`; returns the names of those still missing.

    Tensors may be on the host or on the device.
    """
    trt: Any = tensorrt()
    from torch_tensorrt._enums import dtype
    from torch_tensorrt.logging import TRT_LOGGER

    refitter = trt.Refitter(engine, TRT_LOGGER)
    for name, tensor in weights.items():
        location = trt.TensorLocation.DEVICE if tensor.is_cuda else trt.TensorLocation.HOST
        kind = dtype._from(tensor.dtype).to(trt.DataType)
        data = trt.Weights(kind, tensor.data_ptr(), tensor.numel())
        refitter.set_named_weights(name, data, location)
    if refitter.refit_cuda_engine():
        return []
    return list(refitter.get_missing_weights()) or list(weights)


def torch_dtype(kind: Any) -> torch.dtype:
    """The torch dtype of a TensorRT dtype."""
    from torch_tensorrt._enums import dtype

    found: torch.dtype = dtype._from(kind).to(torch.dtype)
    return found
