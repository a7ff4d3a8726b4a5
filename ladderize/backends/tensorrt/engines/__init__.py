"""Islands as TensorRT engines: built once for equal islands, cached by key, and bound to weights.

Importing this does not import Torch-TensorRT or TensorRT; building and binding do.
"""

from ladderize.backends.tensorrt.engines.assemble import Built, build_islands
from ladderize.backends.tensorrt.engines.engine_report import BuildReport, EnginePlan, LeftOp
from ladderize.backends.tensorrt.engines.packages import require_packages
from ladderize.config.tensorrt import TensorRTOptions

__all__ = [
    "BuildReport",
    "Built",
    "EnginePlan",
    "LeftOp",
    "TensorRTOptions",
    "build_islands",
    "require_packages",
]
