"""Higher-order calls with a part of the model as a subgraph, such as checkpointed layers.

    y = tag_activation_checkpoint(body, x, w, use_reentrant=False)      a region

The analysis does not see blocks inside a body, so `InlineRegions` inlines the bodies before the
ladder pass, and `OutlineRegions` restores the calls after it.
"""

import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch.fx import GraphModule, Node

from ladderize.compat.dispatcher import HigherOrderOperator
from ladderize.graph import ops


@dataclass(frozen=True)
class RegionKind:
    """The positions of a higher-order op's body and operands.

    Attributes:
        body: index of the body among the arguments.
        operands: index of the first operand, followed by one for each other input of the body.
        is_kept: whether the call has an effect beyond its body and is restored. False for a region
            that only shares compiled code between its uses, which differ in a ladder.
    """

    body: int
    operands: int
    is_kept: bool = True


REGIONS: Mapping[str, RegionKind] = {
    "tag_activation_checkpoint": RegionKind(body=0, operands=1),
    "wrap_activation_checkpoint": RegionKind(body=0, operands=1),
    "wrap_with_set_grad_enabled": RegionKind(body=1, operands=2),
    "wrap_with_autocast": RegionKind(body=4, operands=5),
    "invoke_subgraph": RegionKind(body=0, operands=2, is_kept=False),
    "wrap": RegionKind(body=0, operands=1, is_kept=False),
}

# Key of `node.meta` under which an inlined node carries its `Region`.
REGION = "ladderize_region"


@dataclass(frozen=True, eq=False)
class Region:
    """An inlined call, with the data needed to restore it.

    Attributes:
        target: higher-order op.
        leading: arguments ahead of the operands, including the body.
        kwargs: keyword arguments.
        meta: `meta` of the call.
        body_meta: `meta` of the body's graph module (the policy of selective checkpointing).
        parent: enclosing region.
    """

    target: HigherOrderOperator
    leading: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    meta: Mapping[str, Any]
    body_meta: Mapping[str, Any]
    parent: "Region | None"

    @property
    def kind(self) -> RegionKind:
        return REGIONS[str(self.target.__name__)]

    def chain(self) -> Iterator["Region"]:
        """This region and its enclosing regions, innermost first."""
        region: Region | None = self
        while region is not None:
            yield region
            region = region.parent


def kind_of(node: Node) -> RegionKind | None:
    """The kind of the region that `node` calls; None if it is not a region of a known kind."""
    if not isinstance(node.target, HigherOrderOperator):
        return None
    return REGIONS.get(ops.op_name(node))


def bodies(gm: GraphModule, node: Node) -> list[GraphModule]:
    """The subgraphs that are arguments of a higher-order call."""
    if not isinstance(node.target, HigherOrderOperator):
        return []
    found = [_attribute(gm, str(s.target)) for s in node.all_input_nodes if s.op == "get_attr"]
    return [value for value in found if isinstance(value, GraphModule)]


def _attribute(gm: GraphModule, target: str) -> Any:
    return operator.attrgetter(target)(gm)


def hidden_sums(gm: GraphModule, node: Node) -> list[Node]:
    """The adds of two floating tensors in the bodies of a higher-order call, at any depth."""
    found = []
    for body in bodies(gm, node):
        for inner in body.graph.nodes:
            if ops.kind(inner) is ops.Kind.ADD and ops.floating_shape(inner) is not None:
                found.append(inner)
            found += hidden_sums(body, inner)
    return found


# ---- taking a call apart


def can_inline(gm: GraphModule, node: Node) -> bool:
    """Whether `inline` can inline the call `node`."""
    if (kind := kind_of(node)) is None:
        return False
    (body,) = bodies(gm, node)
    inputs = body.graph.find_nodes(op="placeholder")
    has_plain_kwargs = not any(isinstance(value, Node) for value in node.kwargs.values())
    return len(inputs) == len(node.args) - kind.operands and has_plain_kwargs and _is_unpacked(body)


def _is_unpacked(body: GraphModule) -> bool:
    (output,) = body.graph.find_nodes(op="output")
    return isinstance(output.args[0], (tuple, list))


def inline(gm: GraphModule, call: Node, *, is_kept: bool = True) -> Node:
    """Replace `call` by the nodes of its body. Returns the first of them, to continue from.

    They are marked with their region if both `is_kept` and the `is_kept` of its kind are True.
    """
    kind = kind_of(call)
    (body,) = bodies(gm, call)
    assert kind is not None
    region = Region(
        target=call.target,  # type: ignore[arg-type]  # kind_of has seen a HigherOrderOperator
        leading=call.args[: kind.operands],
        kwargs=dict(call.kwargs),
        meta=dict(call.meta),
        body_meta=dict(body.meta),
        parent=call.meta.get(REGION),
    )
    body_node = call.args[kind.body]
    assert isinstance(body_node, Node)
    path = str(body_node.target)
    before, outputs = call.prev, _copy_body(gm, body, path, call, region, is_kept)
    for user in list(call.users):
        assert user.target is operator.getitem, "the result of a region is a tuple"
        user.replace_all_uses_with(outputs[user.args[1]])  # type: ignore[index]
        gm.graph.erase_node(user)
    first = before.next
    gm.graph.erase_node(call)
    if not body_node.users:
        first = first.next if first is body_node else first
        gm.graph.erase_node(body_node)
    return first


def _copy_body(
    gm: GraphModule, body: GraphModule, path: str, call: Node, region: Region, is_kept: bool
) -> list[Any]:
    around = region if is_kept and region.kind.is_kept else region.parent
    inputs = body.graph.find_nodes(op="placeholder")
    copies: dict[Node, Any] = dict(zip(inputs, call.args[region.kind.operands :], strict=True))
    outputs: list[Any] = []
    for node in body.graph.nodes:
        if node.op == "placeholder":
            continue
        if node.op == "output":
            outputs = [copies[out] if isinstance(out, Node) else out for out in node.args[0]]
            continue
        with gm.graph.inserting_before(call):
            copied = gm.graph.node_copy(node, lambda source: copies[source])
        if copied.op == "get_attr":
            copied.target = f"{path}_{str(node.target).replace('.', '_')}"
            setattr(gm, copied.target, _attribute(body, str(node.target)))
        if around is not None:
            copied.meta[REGION] = around
        copies[node] = copied
    return outputs
