"""Run a program in a dtype other than its own: graphs, state and inputs."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.node import map_aggregate


@dataclass(frozen=True)
class Precision:
    """Replaces the dtype `given` of a program by `wanted`; other dtypes are unchanged."""

    given: torch.dtype
    wanted: torch.dtype

    def of(self, value: Any) -> Any:
        """`value` in the wanted dtype, if it is a tensor of the given one."""
        is_given = isinstance(value, Tensor) and value.dtype is self.given
        return value.detach().to(self.wanted) if is_given else value

    def state(self, tensors: Mapping[str, Any]) -> dict[str, Any]:
        return {name: self.of(tensor) for name, tensor in tensors.items()}

    @contextmanager
    def of_graphs(self, graphs: Sequence[GraphModule]) -> Iterator[None]:
        """Make `graphs` compute in the wanted dtype inside the context."""
        before = [
            replaced
            for gm in graphs
            for replaced in replace_values(
                gm, lambda value: self.wanted if value is self.given else value
            )
        ]
        try:
            yield
        finally:
            for node, args, kwargs in before:
                node.args, node.kwargs = args, kwargs
            _recompile_bodies(graphs)


def bodies(gm: GraphModule) -> list[GraphModule]:
    """`gm` and the bodies of its higher-order ops."""
    return [module for module in gm.modules() if isinstance(module, GraphModule)]


def replace_values(gm: GraphModule, other: Callable[[Any], Any]) -> list[tuple[Node, Any, Any]]:
    """Replace each constant argument by `other(value)`, in place.

    Returns:
        The changed nodes with their previous arguments.
    """
    before: list[tuple[Node, Any, Any]] = []
    for node in (node for part in bodies(gm) for node in part.graph.nodes):
        changed: list[Any] = []

        def see(value: Any, changed: list[Any] = changed) -> Any:
            found = other(value)
            if found is not value:
                changed.append(found)
            return found

        args, kwargs = map_aggregate((node.args, node.kwargs), see)
        if changed:
            before.append((node, node.args, node.kwargs))
            node.args, node.kwargs = args, kwargs
    _recompile_bodies([gm])
    return before


def _recompile_bodies(graphs: Sequence[GraphModule]) -> None:
    """Recompile called bodies, which run as modules; the graphs themselves are interpreted."""
    for gm in graphs:
        for part in bodies(gm):
            if part is not gm:
                part.recompile()
