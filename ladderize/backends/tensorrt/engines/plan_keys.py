"""Find equal islands, and compute the cache keys of plans.

    in     seg_0: mm(x0, w3) → silu     seg_4: mm(x9, w7) → silu     seg_1: …
    out    kind a: seg_0, seg_4         kind b: seg_1

Two islands are of one kind if their texts are equal: numbered nodes and symbols with targets,
arguments, dtypes, shapes and strides. Of weights, only shape and dtype count.
"""

import hashlib
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch.fx import GraphModule, Node

from ladderize.backends.tensorrt.engines.size_ranges import Extents
from ladderize.compat.dispatcher import OpOverload


def canonical_text(island: GraphModule, weights: Collection[str], extents: Extents) -> str:
    """The island as text without names; islands with equal texts can share a build."""
    writer = _KeyWriter(extents)
    for node in island.graph.nodes:
        writer.write(island, node, is_weight=node.name in weights)
    return "\n".join(writer.lines)


class _KeyWriter:
    def __init__(self, extents: Extents) -> None:
        self.lines: list[str] = []
        self._extents = extents
        self._numbers: dict[Node, int] = {}
        self._symbols: dict[str, str] = {}

    def write(self, island: GraphModule, node: Node, is_weight: bool) -> None:
        self._numbers[node] = len(self._numbers)
        if node.op == "placeholder":
            words = ["weight" if is_weight else "input"]
        elif node.op == "get_attr":
            words = ["constant", _digest_of(island, str(node.target))]
        else:
            kwargs = [f"{name}={self._show(node.kwargs[name])}" for name in sorted(node.kwargs)]
            words = [node.op, _name_of(node.target), self._show(node.args), *kwargs]
        self.lines.append(" ".join([*words, "->", self._show_value(node.meta.get("val"))]))

    def _show(self, argument: Any) -> str:
        if isinstance(argument, Node):
            return f"%{self._numbers[argument]}"
        if isinstance(argument, (tuple, list)):
            return f"[{', '.join(map(self._show, argument))}]"
        if isinstance(argument, slice):
            return self._show((argument.start, argument.stop, argument.step))
        if isinstance(argument, torch.device):
            return argument.type  # ranks differ in its index only
        if isinstance(argument, torch.SymInt):
            return self._size(argument)
        return repr(argument)

    def _show_value(self, value: Any) -> str:
        if isinstance(value, torch.Tensor):
            shape = ", ".join(map(self._size, value.shape))
            strides = ", ".join(map(self._size, value.stride()))
            return f"{value.dtype}[{shape}][{strides}] {value.device.type}"
        if isinstance(value, (tuple, list)):
            return f"({', '.join(map(self._show_value, value))})"
        return self._size(value) if isinstance(value, torch.SymInt) else type(value).__name__

    def _size(self, size: int | torch.SymInt) -> str:
        if isinstance(size, int):
            return str(size)
        expression = size.node.expr
        symbols = sorted(expression.free_symbols, key=str)
        return str(expression.xreplace({s: type(s)(self._symbol(str(s))) for s in symbols}))

    def _symbol(self, name: str) -> str:
        if name not in self._symbols:
            self._symbols[name] = f"n{len(self._symbols)}"
            self.lines.append(f"{self._symbols[name]} in {self._extents.of_symbol.get(name)}")
        return self._symbols[name]


def _name_of(target: Any) -> str:
    if isinstance(target, (str, OpOverload)):
        return str(target)
    return f"{target.__module__}.{target.__qualname__}"


def _digest_of(island: GraphModule, name: str) -> str:
    value: Any = island
    for part in name.split("."):
        value = getattr(value, part)
    assert isinstance(value, torch.Tensor), name
    data = value.detach().cpu().contiguous().flatten().view(torch.uint8)
    return hashlib.sha256(data.numpy().tobytes()).hexdigest()


def plan_key(text: str, about: Mapping[str, object]) -> str:
    """The key of a plan: a hash of its canonical text and of everything else it depends on."""
    lines = [f"{name}: {about[name]}" for name in sorted(about)]
    return hashlib.sha256("\n".join([*lines, text]).encode()).hexdigest()
