"""Replace in-place ops by functional ops, so that earlier values stay readable.

    before   x1 = iadd(x0, h0);  h1 = f(x0)        # x0 and x1 are one tensor
    after    x1 = add(x0, h0);   h1 = f(x1)

A stale read of a value that is later overwritten would silently see the new value. An op is kept if
replacing it could change another tensor: the mutated tensor is (or shares memory with) a graph
input, or another view of the same memory is read afterwards.
"""

import copy
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch.fx import GraphModule, Node

from ladderize.graph import ops
from ladderize.passes import PassResult


@dataclass(frozen=True)
class Functionalize:
    preserves_values: ClassVar[bool] = True

    def __call__(self, gm: GraphModule) -> PassResult:
        changed = 0
        position = {node: i for i, node in enumerate(gm.graph.nodes)}
        aliases = find_aliases(position)
        for node in list(gm.graph.nodes):
            twin = ops.functional_form(node)
            base = ops.first_argument(node)
            if twin is None or not isinstance(base, Node):
                continue
            if find_hazards(node, base, aliases, position):
                continue
            _replace(gm, node, base, twin, position)
            changed += 1
        return PassResult(changed)


def find_aliases(nodes: Mapping[Node, int]) -> dict[int, list[Node]]:
    """Nodes grouped by the storage of their (fake) values."""
    groups: dict[int, list[Node]] = defaultdict(list)
    for node in nodes:
        for storage in ops.storages(node):
            groups[storage].append(node)
    return groups


def find_hazards(
    node: Node, base: Node, aliases: Mapping[int, list[Node]], position: Mapping[Node, int]
) -> list[Node]:
    """The nodes through which the write of `node` is visible: inputs, and views read later."""
    hazards = []
    for storage in ops.storages(base):
        for other in aliases.get(storage, []):
            is_read_later = (
                other is not base
                and position[other] < position[node]
                and any(position[user] > position[node] for user in other.users)
            )
            if is_read_later or other.op in ("placeholder", "get_attr"):
                hazards.append(other)
    return hazards


def _replace(
    gm: GraphModule,
    node: Node,
    base: Node,
    twin: tuple[Any, tuple[Any, ...], dict[str, Any]],
    position: dict[Node, int],
) -> None:
    target, args, kwargs = twin
    if node.op == "call_module":
        _add_out_of_place(gm, str(node.target), target)
    with gm.graph.inserting_before(node):
        new = gm.graph.create_node(node.op, target, args, kwargs, name=f"{node.name}_functional")
        new.meta = dict(node.meta)
        position[new] = position[node]
        if (dtype := _changed_dtype(args)) is not None:
            cast = ops.cast(gm.graph, new, dtype, like=new)
            cast.meta = dict(node.meta)
            position[cast] = position[node]
            new = cast
    later = [user for user in base.users if position[user] > position[node]]
    node.replace_all_uses_with(new)
    for user in later:
        user.replace_input_with(base, new)
    gm.graph.erase_node(node)


def _add_out_of_place(gm: GraphModule, target: str, twin: str) -> None:
    """Add a copy of the module `target` with the same parameters and `inplace=False`.

    The original is kept, because its owner may use it elsewhere.
    """
    module = copy.copy(gm.get_submodule(target))
    module.inplace = False  # type: ignore[assignment]  # a plain bool, which nn.Module's stubs deny
    gm.add_submodule(twin, module)


def _changed_dtype(args: tuple[Any, ...]) -> torch.dtype | None:
    """The dtype that an in-place op keeps but its functional form may promote; else None."""
    tensors = [t for arg in args if isinstance(arg, Node) for t in ops.tensors(arg)]
    if len(tensors) < 2 or all(t.dtype == tensors[0].dtype for t in tensors):
        return None
    return tensors[0].dtype
