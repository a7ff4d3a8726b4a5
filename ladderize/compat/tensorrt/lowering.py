"""Torch-TensorRT's decompositions, passes and partitioner, without those that change values."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.fx import GraphModule, Node

from ladderize.compat.tensorrt.package import tensorrt
from ladderize.compat.tensorrt.settings import BuildSettings, compilation_settings

NO_CONVERTER = "Torch-TensorRT does not convert it"


def tensorrt_decompositions() -> dict[Any, Callable[..., Any]]:
    """Torch-TensorRT's decompositions, with exceptions.

    Attention stays whole. Scatters would be unrolled over the rows of their source. Empty tensors
    would be created on the current GPU instead of the device in the graph. An alias that returns
    its input cannot be traced (torch 2.13).
    """
    tensorrt()
    from torch_tensorrt.dynamo.lowering import _decompositions as theirs

    aten = torch.ops.aten
    left_out = theirs.ATTENTION_DECOMPOSITION_OPS | {
        *(aten.scatter_add.default, aten.scatter_reduce.two),
        *(aten.empty_permuted.default, aten.empty_strided.default),
        *(aten.alias.default, aten.lift_fresh_copy.default),
    }
    table = {**theirs.ENABLED_TORCH_DECOMPOSITIONS, **theirs.TORCH_TRT_DECOMPOSITIONS}
    return {op: fn for op, fn in table.items() if op not in left_out}


def tensorrt_passes() -> tuple[Callable[..., GraphModule], ...]:
    """Torch-TensorRT's ATen passes that preserve values.

    Excluded are `force_causal_efficient_attention`, which treats every mask as causal;
    `replace_fused_rms_norm`, which treats a missing epsilon as 1e-5; and `constant_fold`.
    """
    tensorrt()
    from torch_tensorrt.dynamo.lowering.passes import _aten_lowering_pass as theirs

    return (
        theirs.remove_assert_nodes,
        theirs.fuse_prims_broadcast,
        theirs.replace_max_pool_with_indices,
        theirs.eliminate_sym_min_int64_max,
        theirs.normalize_negative_slice_stop,
    )


def split_by_support(
    gm: GraphModule,
    settings: BuildSettings,
    refuse: Callable[[Node], str],
    least: int,
) -> tuple[GraphModule, dict[Node, str]]:
    """Split `gm` by Torch-TensorRT's partitioner into submodules `_run_on_acc…` and others.

    `refuse` returns why a node must not be converted, or "". Also returns the reason for each node
    that TensorRT does not run.
    """
    compilation = compilation_settings(settings)
    from torch_tensorrt.dynamo.conversion._ConverterRegistry import DYNAMO_CONVERTERS
    from torch_tensorrt.dynamo.partitioning._adjacency_partitioner import (
        OpSupportTester,
        TRTPartitioner,
    )

    reasons: dict[Node, str] = {}

    class Support(OpSupportTester):  # type: ignore[misc]  # no types
        def is_node_supported(self, submodules: Mapping[str, Any], node: Node) -> bool:
            reason, is_supported = refuse(node), False
            try:
                is_supported = not reason and super().is_node_supported(submodules, node)
            except Exception as error:  # validators fail on omitted arguments
                reason = f"its converter's validator fails: {type(error).__name__}: {error}"
            if node.op == "call_function" and not is_supported:
                reasons[node] = reason or NO_CONVERTER
            return bool(is_supported)

    DYNAMO_CONVERTERS.set_compilation_settings(compilation)
    partitioner = TRTPartitioner(gm, Support(), min_block_size=least, skip_fusion=True)
    return partitioner.partition_graph(), reasons
