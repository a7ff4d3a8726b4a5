"""Take the bodies of checkpointed layers and other regions into the graph that calls them.

    before   y = tag_activation_checkpoint(body, x, w)       body(a, b): c = linear(a, b); (a + c,)
             z = getitem(y, 0)
    after    c = linear(x, w);  z = add(x, c)                both marked with their region

Only calls whose body holds an add are taken apart: in the others there can be no block.
`OutlineRegions` puts them together again.
"""

import operator
from dataclasses import dataclass
from typing import Any, ClassVar

from torch.fx import GraphModule, Node

from ladderize.passes import PassResult
from ladderize.regions import REGION, Region, bodies, hidden_sums, kind_of


@dataclass(frozen=True)
class InlineRegions:
    preserves_values: ClassVar[bool] = True

    def __call__(self, gm: GraphModule) -> PassResult:
        changed = 0
        node: Node = next(iter(gm.graph.nodes))
        while node.op != "output":
            if _can_inline(gm, node):
                node = _inline(gm, node)
                changed += 1
            else:
                node = node.next
        return PassResult(changed)


def _can_inline(gm: GraphModule, node: Node) -> bool:
    if (kind := kind_of(node)) is None or not hidden_sums(gm, node):
        return False
    (body,) = bodies(gm, node)
    inputs = body.graph.find_nodes(op="placeholder")
    has_plain_kwargs = not any(isinstance(value, Node) for value in node.kwargs.values())
    return len(inputs) == len(node.args) - kind.operands and has_plain_kwargs and _is_unpacked(body)


def _is_unpacked(body: GraphModule) -> bool:
    (output,) = body.graph.find_nodes(op="output")
    return isinstance(output.args[0], (tuple, list))


def _inline(gm: GraphModule, call: Node) -> Node:
    """Put the body's nodes in the place of `call`; the first of them, from where to go on."""
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
    before, outputs = call.prev, _copy_body(gm, body, path, call, region)
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
    gm: GraphModule, body: GraphModule, path: str, call: Node, region: Region
) -> list[Any]:
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
        if region.kind.is_kept:
            copied.meta[REGION] = region
        elif region.parent is not None:
            copied.meta[REGION] = region.parent
        copies[node] = copied
    return outputs


def _attribute(body: GraphModule, target: str) -> Any:
    return operator.attrgetter(target)(body)
