"""The syntax of Inductor's emitted wrappers (seen in torch 2.11, 2.13 and 2.15)."""

import ast
import re

from ladderize.graph.collectives import NAMESPACES

COLLECTIVES = tuple(f"torch.ops.{namespace}." for namespace in NAMESPACES)
PINNED_WAITS = ("torch.ops.ladderize.wait_add.", "torch.ops.ladderize.wait_after.")
"""ladderize's waits (passes/pin_order.py); the second-to-last argument is waited for."""
FUNCTIONAL = ("extern_kernels.", "torch.ops.aten.", "torch.ops.prims.", "aten.")
"""Namespaces of ops that write only `out=`, or the first argument if the name ends in `_`."""
# fmt: off
VIEWS = frozenset({
    "alias", "alloc_from_pool", "as_strided", "chunk", "detach", "diagonal", "expand", "narrow",
    "permute", "reinterpret_tensor", "select", "slice", "split", "split_with_sizes", "squeeze", "t",
    "transpose", "unbind", "unfold", "unsqueeze", "view", "view_as_complex", "view_as_real",
    "_reshape_alias", "_unsafe_view",
})
ALIGN = "copy_if_misaligned"
"""Returns a graph input itself, or a copy in memory that vector instructions can read."""
PERHAPS_VIEWS = frozenset({"contiguous", "reshape", "to"})
METADATA = frozenset({
    "assert_alignment", "assert_size_stride", "assert_size_stride_grouped",
    "assert_tensor_metadata", "device", "dim", "dtype", "is_contiguous", "ndim", "numel", "shape",
    "size", "storage_offset", "stride",
})
# fmt: on
SYMBOL = re.compile(r"[su]\d+$")
"""A dynamic size, not a tensor: `s77 = arg0_1`."""


def op_name(function: str) -> str:
    """`torch.ops.aten.copy_.default` -> `copy_`, `extern_kernels.mm` -> `mm`."""
    parts = function.split(".")
    return parts[3] if function.startswith("torch.ops.") and len(parts) > 3 else parts[-1]


def root_name(node: ast.expr) -> str:
    """The name that `reinterpret_tensor(buf5, …)` or `args[0]` starts from."""
    match node:
        case ast.Name(id=name):
            return name
        case ast.Subscript(value=value):
            return root_name(value)
        case ast.Call(args=[first, *_]):
            return root_name(first)
        case _:
            return ""


def frees_source(statement: ast.Assign, after: ast.stmt | None) -> bool:
    """Whether a line reuses memory: in `buf29 = buf10; del buf10  # reuse`, buf29 is new."""
    return (
        isinstance(after, ast.Delete)
        and after.lineno == statement.lineno
        and root_name(statement.value) in {t.id for t in after.targets if isinstance(t, ast.Name)}
    )
