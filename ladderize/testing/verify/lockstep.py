"""Run the graphs of all ranks in one process, synchronized at collectives as processes would be.

    rank 0   x ── copy ── linear(x, w[:2]) ── reduce ┐            ┌ wait ── y
    rank 1   x ── copy ── linear(x, w[2:]) ── reduce ┴─ their sum ┴ wait ── y

A collective's result is NaN until it is waited for, so a read in flight is detected. Properties of
processes are not: hangs, memory, time.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from ladderize.errors import describe_origin
from ladderize.graph import parallel_ops

See = Callable[[int, Node, Any], None]
"""Called with the rank, the node and its value, as each is computed."""


class RanksPart(Exception):
    """The ranks call different collectives, or one calls more: processes would hang here.

    Attributes:
        number: index of the first collective that differs, from 0.
    """

    def __init__(self, number: int, calls: Sequence["Call | None"]) -> None:
        self.number = number
        listed = "; ".join(f"rank {r}: {call or 'none'}" for r, call in enumerate(calls))
        super().__init__(f"the ranks disagree at collective {number}: {listed}")


class NodeFails(Exception):
    """A node of one rank's graph cannot run.

    Attributes:
        rank: rank on which it fails.
        node: node that fails.
    """

    def __init__(self, rank: int, node: Node, error: Exception) -> None:
        self.rank, self.node = rank, node
        super().__init__(f"{node.name} fails on rank {rank}: {reason_of(error)}")


@dataclass(frozen=True)
class Call:
    """A rank's call of a collective."""

    node: Node
    value: Tensor
    args: tuple[Any, ...]

    @property
    def form(self) -> tuple[Any, ...]:
        """The properties that must be the same on all ranks."""
        settings = tuple(a for a in self.args if not isinstance(a, Tensor))
        home = self.node.meta.get("nn_module_stack")
        place = str(list(home.values())[-1][0]) if home else ""
        return self.node.target, tuple(self.value.shape), self.value.dtype, settings, place

    def __str__(self) -> str:
        shape = list(self.value.shape)
        return f"{self.node.name} of {shape} ({describe_origin(self.node)})"


def _sum(calls: Sequence[Call]) -> list[Tensor]:
    total = calls[0].value.clone()
    for call in calls[1:]:
        total = total + call.value
    return [total] * len(calls)


def _gather(calls: Sequence[Call]) -> list[Tensor]:
    dim = calls[0].args[1]
    return [torch.cat([call.value for call in calls], dim)] * len(calls)


def _cross_entropy(calls: Sequence[Call]) -> list[Tensor]:
    target, _, reduction, ignore_index, _ = calls[0].args
    logits = torch.cat([call.value for call in calls], min(1, calls[0].value.ndim - 1))
    how = ("none", "mean", "sum")[reduction]
    loss = torch.nn.functional.cross_entropy(
        logits, target, reduction=how, ignore_index=ignore_index
    )
    return [loss] * len(calls)


Join = Callable[[Sequence[Call]], Sequence[Tensor]]
"""Maps the calls of all ranks to their results."""

JOINED: dict[Any, Join] = {
    parallel_ops.reduce: _sum,
    parallel_ops.gather: _gather,
    parallel_ops.vocab_cross_entropy: _cross_entropy,
}
"""The ops that synchronize ranks. Forward only: all ranks get the same tensor."""


OP_ERRORS = (RuntimeError, IndexError, TypeError, ValueError, NotImplementedError)
"""Exceptions of ops that get invalid operands."""


def reason_of(error: Exception) -> str:
    """The first line of `error`."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def _ignore(_rank: int, _node: Node, _value: Any) -> None:
    pass


def run_ranks(
    graphs: Sequence[GraphModule],
    inputs: Sequence[Sequence[Any]],
    see: See = _ignore,
    joined: Mapping[Any, Join] = JOINED,
) -> list[tuple[Any, ...]]:
    """Run each rank's graph and return the outputs.

    Args:
        graphs: graph of each rank.
        inputs: values of each rank's placeholders.
        see: callback for every value.
        joined: ops that synchronize ranks, with functions that compute their results.

    Raises:
        RanksPart: the collectives of ranks differ.
        NodeFails: an op refuses its operands.
    """
    runs = [
        _run(rank, gm, given, see, joined)
        for rank, (gm, given) in enumerate(zip(graphs, inputs, strict=True))
    ]
    results: list[Any] = [None] * len(runs)
    answers: Sequence[Any] = [None] * len(runs)  # what starts a generator
    number = 0
    while True:
        calls: list[Call | None] = []
        for rank, run in enumerate(runs):
            try:
                calls.append(run.send(answers[rank]))
            except StopIteration as end:
                calls.append(None)
                results[rank] = end.value
        met = [call for call in calls if call is not None]
        if not met:
            return results
        if len(met) < len(calls) or len({call.form for call in met}) > 1:
            raise RanksPart(number, calls)
        answers = joined[met[0].node.target](met)
        number += 1


def _run(
    rank: int, gm: GraphModule, inputs: Sequence[Any], see: See, joined: Mapping[Any, Join]
) -> Generator[Call, Tensor, tuple[Any, ...]]:
    values: dict[Node, Any] = {}
    flying: dict[Node, Tensor] = {}
    given = iter(inputs)
    for node in gm.graph.nodes:
        args, kwargs = map_arg((node.args, dict(node.kwargs)), values.__getitem__)
        if node.op == "placeholder":
            value = next(given)
        elif node.op == "output":
            return tuple(args[0])
        elif node.op == "get_attr":
            value = getattr(gm, str(node.target))
        elif node.target in joined:
            value = yield Call(node, args[0], tuple(args[1:]))
            if node.target is parallel_ops.reduce:
                flying[node], value = value, torch.full_like(value, torch.nan)
        elif node.target is parallel_ops.wait:
            value = flying.get(node.args[0], args[0])
        elif node.target is parallel_ops.copy:
            value = args[0]
        else:
            value = _call(rank, gm, node, args, kwargs)
        values[node] = value
        see(rank, node, value)
    return ()


def _call(rank: int, gm: GraphModule, node: Node, args: Any, kwargs: Any) -> Any:
    is_module = node.op == "call_module"
    target: Any = gm.get_submodule(str(node.target)) if is_module else node.target
    try:
        return target(*args, **kwargs)
    except OP_ERRORS as error:
        raise NodeFails(rank, node, error) from error
