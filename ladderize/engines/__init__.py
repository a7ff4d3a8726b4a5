"""Segments of a graph as TensorRT engines: built once for equal segments, kept by key, bound to
each one's weights.

Importing this imports neither Torch-TensorRT nor TensorRT; building and binding do.
"""

from ladderize.engines.options import TensorRTOptions
from ladderize.engines.packages import require_packages
from ladderize.engines.report import BuildReport, EnginePlan, LeftOp
from ladderize.engines.segments import Built, build_segments

__all__ = [
    "BuildReport",
    "Built",
    "EnginePlan",
    "LeftOp",
    "TensorRTOptions",
    "build_segments",
    "require_packages",
]
