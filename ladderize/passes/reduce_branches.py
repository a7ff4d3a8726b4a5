"""Move the residual out of an all-reduce of the whole sum, so that only the branch is reduced.

    before   x1 = all_reduce(add(h, div(x0, 2)), "sum")          over a group of 2 ranks
    after    x1 = add(x0, all_reduce(h, "sum"))

This requires that `x0` is the same on all ranks of the group, so that their shares add up to it.
Values are preserved up to rounding.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch.fx import GraphModule, Node

from ladderize import compat
from ladderize.compat.dispatcher import OpOverload
from ladderize.errors import Blocker, LadderError
from ladderize.graph import ops
from ladderize.graph.collectives import (
    ALL_REDUCES,
    GATHERS,
    collective_of,
    group_name_of,
    is_wait,
)
from ladderize.graph.ops import Kind
from ladderize.graph.schemas import arguments_of, schema_of
from ladderize.passes import PassResult
from ladderize.streams.context import AnalysisContext


@dataclass(frozen=True)
class ReduceBranches:
    preserves_values: ClassVar[bool] = True

    def __call__(self, gm: GraphModule) -> PassResult:
        residuals = [found for found in residuals_in_reductions(gm) if found.is_whole]
        for found in reversed(residuals):  # a later residual may be the wait of an earlier one
            _take_out(gm, found)
        return PassResult(len(residuals))


@dataclass(frozen=True)
class Residual:
    """A value that is the same on all ranks, added before an all-reduce.

    Attributes:
        launch: the all-reduce.
        total: sum that adds the value.
        summand: operand of `total`: the value, or each rank's share of it.
        other: other operand of `total`.
        value: the value itself.
        is_whole: whether the ranks' shares add up to the value in the reduction.
    """

    launch: Node
    total: Node
    summand: Node
    other: Node
    value: Node
    is_whole: bool


def refuse_reduced_residuals(context: AnalysisContext) -> None:
    """Raise `LadderError` if a residual sum is all-reduced, so that the residual counts twice.

    Also if only one rank adds it, whose graph then differs from the other ranks' graphs.
    """
    found = [
        residual
        for residual in residuals_in_reductions(context.gm)
        if context.branch(residual.value, [residual.other]) is not None
    ]
    if found:
        raise LadderError(
            "These all-reduces sum the residual as well as the branch:",
            [Blocker.at(residual.total, "added before the all-reduce") for residual in found],
            "add the residual after the all-reduce, on all ranks: x + all_reduce(h); or each "
            "rank's share of it before: all_reduce(h + x / ranks)",
        )


def residuals_in_reductions(gm: GraphModule) -> list[Residual]:
    """At most one residual for each all-reduce. Linear in the size of the graph, for each group."""
    alike: dict[str, set[Node]] = {}
    found = []
    for launch in gm.graph.nodes:
        group = group_name_of(launch)
        if collective_of(launch) != "all_reduce" or compat.find_process_group(group) is None:
            continue
        if group not in alike:
            alike[group] = _values_alike(gm, group)
        found += [*_residuals(launch, alike[group])][:1]
    return found


def _values_alike(gm: GraphModule, group: str) -> set[Node]:
    """The values that are the same on all ranks of a group.

    These are the inputs, the results of lookups and all-reduces, and values computed from them
    without mixing ops, which may use a rank's own part of a weight.
    """
    alike: set[Node] = set()
    for node in gm.graph.nodes:
        collective = collective_of(node)
        is_made_of = all(source in alike for source in node.all_input_nodes)
        if group_name_of(node) == group:
            is_alike = collective in ALL_REDUCES | GATHERS
        elif not ops.holds_tensor(node) or ops.op_name(node) == "embedding":
            is_alike = True
        else:
            is_alike = is_made_of and (is_wait(node) or ops.kind(node) is not Kind.MIX)
        if is_alike:
            alike.add(node)
    return alike


def _residuals(launch: Node, alike: set[Node]) -> Iterator[Residual]:
    todo = [launch.all_input_nodes[0]]
    while todo:
        total = todo.pop()
        summands = [a for a in total.args[:2] if isinstance(a, Node)]
        if ops.kind(total) is not Kind.ADD or len(total.users) > 1 or len(summands) < 2:
            continue
        branches = [summand for summand in summands if summand not in alike]
        todo += branches
        shapes = {ops.floating_shape(each) for each in (total, *summands)}
        if len(branches) == 1 and len(shapes) == 1:
            summand, other = sorted(summands, key=lambda each: each not in alike)
            value, parts = _divided(total, summand)
            is_awaited = [is_wait(user) for user in launch.users] == [True]
            is_whole = is_awaited and parts == _parts_that_add_up(launch)
            yield Residual(launch, total, summand, other, value, is_whole)


def _divided(total: Node, summand: Node) -> tuple[Node, float]:
    """The value behind `summand`, and the number by which `total` divides it."""
    value, by = summand, 1.0
    name = ops.op_name(summand)
    if len(summand.args) == 2 and isinstance(summand.args[0], Node):
        factor = summand.args[1]
        if isinstance(factor, int | float) and factor:
            if name in ("div", "truediv", "true_divide", "divide"):
                value, by = summand.args[0], factor
            elif name in ("mul", "multiply"):
                value, by = summand.args[0], 1 / factor
    alpha: Any = total.kwargs.get("alpha", 1)
    is_scaled = summand is total.args[1] and isinstance(alpha, int | float) and alpha
    return value, by / alpha if is_scaled else by


def _parts_that_add_up(launch: Node) -> float | None:
    """The number of equal shares, one from each rank, that a reduction sums to the whole."""
    how = str(arguments_of(launch, schema_of(launch)).get("reduce_op", "")).lower()
    size = compat.find_process_group(group_name_of(launch)).size()
    return {"sum": float(size), "avg": 1.0}.get(how)


def _take_out(gm: GraphModule, found: Residual) -> None:
    wait = next(iter(found.launch.users))
    found.total.replace_all_uses_with(found.other)
    add = torch.ops.aten.add.Tensor if isinstance(wait.target, OpOverload) else torch.add
    with gm.graph.inserting_after(wait):
        made = gm.graph.call_function(add, (found.value, wait))
    made.meta = dict(found.total.meta)
    wait.replace_all_uses_with(made, delete_user_cb=lambda user: user is not made)
    for node in (found.total, found.summand):
        if not node.users:
            gm.graph.erase_node(node)
