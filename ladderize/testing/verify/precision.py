"""Compute a program in another dtype than it was exported in: its graphs, its state, its inputs."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.fx.node import map_aggregate


@dataclass(frozen=True)
class Precision:
    """`wanted` wherever the program has `given`; other dtypes stay as they are."""

    given: torch.dtype
    wanted: torch.dtype

    def of(self, value: Any) -> Any:
        """A tensor as it is computed with; anything else as it is."""
        is_given = isinstance(value, Tensor) and value.dtype is self.given
        return value.detach().to(self.wanted) if is_given else value

    def state(self, tensors: Mapping[str, Any]) -> dict[str, Any]:
        return {name: self.of(tensor) for name, tensor in tensors.items()}

    @contextmanager
    def of_graphs(self, graphs: Sequence[GraphModule]) -> Iterator[None]:
        """`graphs` compute so inside of the block."""
        parts = [part for gm in graphs for part in bodies(gm)]
        before = [(node, node.args, node.kwargs) for part in parts for node in part.graph.nodes]
        for gm in graphs:
            replace_values(gm, lambda value: self.wanted if value is self.given else value)
        try:
            yield
        finally:
            for node, args, kwargs in before:
                node.args, node.kwargs = args, kwargs
            for part in parts:
                part.recompile()


def bodies(gm: GraphModule) -> list[GraphModule]:
    """`gm`, and the bodies of its higher-order calls."""
    return [module for module in gm.modules() if isinstance(module, GraphModule)]


def replace_values(gm: GraphModule, other: Callable[[Any], Any]) -> None:
    """Put `other(value)` in the place of each constant argument, in place."""
    for part in bodies(gm):
        for node in part.graph.nodes:
            node.args, node.kwargs = map_aggregate((node.args, node.kwargs), other)
        part.recompile()
