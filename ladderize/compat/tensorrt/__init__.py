"""Torch-TensorRT and TensorRT, imported on first use.

Seen in torch-tensorrt-rtx 2.13.0 with TensorRT-RTX 1.5.0.114.
"""

from ladderize.compat.tensorrt.lowering import (
    split_by_support,
    tensorrt_decompositions,
    tensorrt_passes,
)
from ladderize.compat.tensorrt.network import ConversionFailed, InputSpec, Network, convert, layers
from ladderize.compat.tensorrt.package import (
    compute_capability,
    is_tensorrt_rtx,
    supported_targets,
    tensorrt,
    tensorrt_versions,
)
from ladderize.compat.tensorrt.plans import BuildFailed, build_plan
from ladderize.compat.tensorrt.runtime import deserialize, refit, torch_dtype
from ladderize.compat.tensorrt.settings import BuildSettings

__all__ = [
    "BuildFailed",
    "BuildSettings",
    "ConversionFailed",
    "InputSpec",
    "Network",
    "build_plan",
    "compute_capability",
    "convert",
    "deserialize",
    "is_tensorrt_rtx",
    "layers",
    "refit",
    "split_by_support",
    "supported_targets",
    "tensorrt",
    "tensorrt_decompositions",
    "tensorrt_passes",
    "tensorrt_versions",
    "torch_dtype",
]
