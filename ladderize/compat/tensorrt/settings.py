"""Settings of Torch-TensorRT and its builder: variable ones, and those fixed here."""

from dataclasses import dataclass
from typing import Any

from ladderize.compat.tensorrt.package import tensorrt


@dataclass(frozen=True)
class BuildSettings:
    """The variable settings of Torch-TensorRT and the builder."""

    optimization_level: int | None = None
    workspace: int = 0
    allow_tf32: bool = False
    strip_weights: bool = True
    target: tuple[int, int] | None = None


def compilation_settings(settings: BuildSettings) -> Any:
    tensorrt()
    from torch_tensorrt.dynamo import CompilationSettings

    return CompilationSettings(
        workspace_size=settings.workspace,
        optimization_level=settings.optimization_level,
        disable_tf32=not settings.allow_tf32,
        truncate_double=False,
        attn_bias_is_causal=False,  # the default, True, replaces any mask by a causal one
        fallback_data_dependent_ops=True,
        enable_autocast=False,
        immutable_weights=True,  # `build_plan` marks refittable weights itself
    )
