"""Find ops that TensorRT must not run, even if a converter accepts them."""

from collections.abc import Collection, Iterator

import torch
from torch.fx import Node

from ladderize.backends.tensorrt.engines.size_ranges import Extents

_DTYPES = {
    *(torch.float32, torch.float16, torch.bfloat16),
    *(torch.int64, torch.int32, torch.int8, torch.bool),
}


def why_not(node: Node, in_pytorch: Collection[str], extents: Extents) -> str:
    """Why `node` must run in PyTorch; "" if TensorRT may run it."""
    if node.op != "call_function":
        return ""
    if str(node.target) in in_pytorch:
        return "in_pytorch"
    values = [node.meta.get("val"), *(each.meta.get("val") for each in node.all_input_nodes)]
    if any(isinstance(value, torch.SymFloat) for value in values):
        return "a number that is not a size"
    dtypes = {value.dtype for value in values if isinstance(value, torch.Tensor)}
    unknown = sorted(str(dtype).removeprefix("torch.") for dtype in dtypes - _DTYPES)
    if unknown:
        return f"TensorRT does not support {', '.join(unknown)}"
    if not all(extents.knows(size) for value in values for size in _sizes(value)):
        return "a size depends on values"
    if "dropout" in str(node.target) or _dropout_of(node):
        return "converters ignore dropout"
    return ""


def _sizes(value: object) -> Iterator[int | torch.SymInt]:
    if isinstance(value, torch.Tensor):
        yield from value.shape
    elif isinstance(value, torch.SymInt):
        yield value


def _dropout_of(node: Node) -> float:
    schema = getattr(node.target, "_schema", None)
    names = [argument.name for argument in schema.arguments] if schema is not None else []
    given = dict(zip(names, node.args, strict=False)) | node.kwargs
    return float(given.get("dropout_p", 0.0))
