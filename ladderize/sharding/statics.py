"""Weights that reach an op through layout ops and casts: `matmul(x, w.T)`, `linear(x, experts[3])`.

    t = numpy_T(w);  to = to(t, float16)      both stand for w; their dim 0 is its dim 1
    m = mul(unpack(q), index(scales, g))      is unpacked from q, scales and g

Such a value is sharded by sharding the parameters that it stands for or is unpacked from.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Node

aten = torch.ops.aten


@dataclass(frozen=True)
class StandIn:
    """A value that stands for `parameter`; its dim `i` is the parameter's dim `dims[i]`.

    -1 is a dim of size 1 that the parameter does not have.
    """

    parameter: Node
    dims: tuple[int, ...]


@dataclass(frozen=True)
class Unpacked:
    """A weight that is computed from packed words, scales and zero points.

    Attributes:
        weight: value that products read.
        nodes: nodes that only compute the weight, in graph order, ending with it.
        parameters: parameters that it is computed from.
        main: largest parameter with words. For rules it represents the weight: cuts and origins
            refer to it, but count entries of the weight.
    """

    weight: Node
    nodes: tuple[Node, ...]
    parameters: tuple[Node, ...]
    main: Node


def stand_in(node: Any, parameters: Collection[Node]) -> StandIn | None:
    """The parameter that `node` is, possibly in another layout or dtype; None for other nodes."""
    if not isinstance(node, Node) or not isinstance(node.meta.get("val"), torch.Tensor):
        return None
    if node in parameters:
        return StandIn(node, tuple(range(node.meta["val"].dim())))
    order = ORDERS.get(_packet(node)) if node.target is not aten.squeeze.default else None
    source = stand_in(node.args[0], parameters) if order is not None and node.args else None
    if source is None or order is None:
        return None
    behind = order(node, len(source.dims))
    return StandIn(source.parameter, tuple(-1 if d < 0 else source.dims[d] for d in behind))


def _packet(node: Node) -> Any:
    return getattr(node.target, "overloadpacket", None)


def _selected(node: Node, ndim: int) -> list[int]:
    """select: one expert of a stack."""
    picked: Any = node.args[1]
    return [dim for dim in range(ndim) if dim != picked % ndim]


def _same(_: Node, ndim: int) -> list[int]:
    return list(range(ndim))


def _reversed(_: Node, ndim: int) -> list[int]:
    return list(range(ndim))[::-1]


def _last_two(_: Node, ndim: int) -> list[int]:
    return [*range(ndim - 2), ndim - 1, ndim - 2]


def _transposed(node: Node, ndim: int) -> list[int]:
    dims, (a, b) = list(range(ndim)), node.args[1:3]
    assert isinstance(a, int)
    assert isinstance(b, int)
    dims[a], dims[b] = dims[b], dims[a]
    return dims


def _permuted(node: Node, ndim: int) -> list[int]:
    order: Any = node.args[1]
    return [dim % ndim for dim in order]


def _unsqueezed(node: Node, ndim: int) -> list[int]:
    at: Any = node.args[1]
    dims = list(range(ndim))
    dims.insert(at % (ndim + 1), -1)
    return dims


def _squeezed(node: Node, ndim: int) -> list[int]:
    source: Any = node.args[0]
    named: Any = node.args[1]
    gone = {d % ndim for d in (named if isinstance(named, (list, tuple)) else [named])}
    return [dim for dim in range(ndim) if dim not in gone or source.meta["val"].shape[dim] != 1]


# op -> (node, number of dims) -> the old dim of each new dim
ORDERS: dict[Any, Any] = {
    **dict.fromkeys(
        (aten.to, aten._to_copy, aten.clone, aten.contiguous, aten.detach, aten.alias), _same
    ),
    **dict.fromkeys((aten.t, aten.numpy_T), _reversed),
    **dict.fromkeys((aten.mT, aten.mH, aten.matrix_H, aten.adjoint), _last_two),
    **dict.fromkeys((aten.transpose, aten.swapaxes, aten.swapdims), _transposed),
    aten.permute: _permuted,
    aten.select: _selected,
    aten.unsqueeze: _unsqueezed,
    aten.squeeze: _squeezed,
}
