"""A plugin of vLLM for these tests: compilation mode 3 on CPU, as far as it goes there.

vLLM's CPU platform turns mode 3, the default on GPUs, into mode 2. What splits the graph and
compiles the pieces works on CPU; CUDA graphs do not.
"""

import functools
from typing import Any

import torch

PIECEWISE = 3
NOT_ON_CPU = "fused_add_rms_norm_static_fp8_quant rms_norm_static_fp8_quant silu_and_mul_quant"
"""Ops that a pass of vLLM looks up by name, without calling them."""
library = torch.library.Library("_C", "FRAGMENT")


def register() -> None:
    from vllm.platforms import current_platform

    platform = type(current_platform)
    current_platform.import_kernels()
    for name in [*NOT_ON_CPU.split(), "rms_norm_dynamic_per_token_quant", "fused_qk_norm_rope"]:
        if not hasattr(torch.ops._C, name):
            library.define(f"{name}(Tensor x) -> ()")
    original = platform.check_and_update_config.__func__

    @functools.wraps(original)
    def check_and_update_config(cls: Any, config: Any) -> None:
        compilation = config.compilation_config
        asked = compilation.mode, compilation.backend
        original(cls, config)
        if int(asked[0] or 0) == PIECEWISE:
            compilation.mode, compilation.backend = asked
            compilation.compile_sizes = []  # what vLLM fills in for CUDA graphs

    platform.check_and_update_config = classmethod(check_and_update_config)
