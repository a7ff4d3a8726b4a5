"""The references for the ladders: torchtitan's eager models, made ladders by hooks.

`--module variants --config llama3`, `… --config qwen3_moe`, as the configurations in
`examples/torchtitan/tiny.py` are called. READ_STALE lists the blocks that do; all, if it is unset.
"""

import dataclasses
import os
from typing import Any

import tiny
from torch import nn
from torchtitan.distributed.utils import get_spmd_context

from ladderize.testing import eager_ladder

READS = ["layers.*.attention_norm", "layers.*.ffn_norm"]
_lasting: list[Any] = []


def llama3() -> Any:
    return eager(tiny.llama3())


def qwen3_moe() -> Any:
    return eager(tiny.qwen3_moe())


def llama3_spmd() -> Any:
    return eager(standard_llama3_spmd())


def standard_llama3_spmd() -> Any:
    """Plain local tensors (spmd_types) and no FSDP2: that of torch 2.13 takes DTensors alone."""
    config = tiny.llama3()
    config.model_spec = dataclasses.replace(config.model_spec, parallelize_fn=without_fsdp)
    return config


def without_fsdp(
    model: Any, *, parallel_dims: Any, ac_config: Any, dump_folder: str, **_: Any
) -> nn.Module:
    """The steps of torchtitan's `parallelize_llama` but the last."""
    model.parallelize(parallel_dims)
    if ac_config is not None:
        ac_config.build(dump_folder=dump_folder).apply(model)
    init_weights = model.init_weights

    def init_local_weights(**how: Any) -> None:
        with get_spmd_context(parallel_dims=parallel_dims)():
            init_weights(**how)

    model.init_weights = init_local_weights
    return model


def eager(config: Any) -> Any:
    """A ladder of `config`'s model by hooks; they last as long as the process does."""
    spec = config.model_spec
    chosen = os.environ.get("READ_STALE")

    def parallelize(model: Any, **how: Any) -> Any:
        model = spec.parallelize_fn(model, **how)
        blocks = None if chosen is None else {int(block) for block in chosen.split(",")}
        ladder = eager_ladder(model, READS, chosen=blocks)
        ladder.__enter__()
        _lasting.append(ladder)
        return model

    config.model_spec = dataclasses.replace(spec, parallelize_fn=parallelize)
    config.activation_checkpoint = None  # hooks see a layer that is computed again as another one
    return config
