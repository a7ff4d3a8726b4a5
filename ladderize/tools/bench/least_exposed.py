"""The communication that no order of a step can hide, in a model of two lanes.

    compute   one op at a time, time proportional to FLOPs       h0 h1 ░░ h2
    link      one transfer at a time, timed by `Link`                ══D══

StepGraph       the compiled step, forward and backward, with any mixture of collectives
exposed_at_least   blocks that each end in one all-reduce, from their FLOPs alone
"""

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import functorch.compile as aot  # type: ignore[import-untyped]
from torch import nn
from torch.fx import GraphModule, Node

from ladderize.config.hardware import Link
from ladderize.graph.collectives import ALL_REDUCES, GATHERS, SCATTERS, launched_by
from ladderize.graph.flops import work_of
from ladderize.graph.in_flight import transfer_bytes
from ladderize.report.data import BlockReport
from ladderize.tools.predict.timeline.two_lanes import Branch, place, reduce_of, tasks_of


@dataclass(frozen=True)
class StepOp:
    """One op of a graph.

    Attributes:
        flops: FLOPs of the op; 0 for cheap ops.
        kind: collective that it launches, as `Link.seconds` names it, or "".
        num_bytes: bytes transferred.
        needs: indices of the ops whose results it reads.
    """

    flops: float
    kind: str
    num_bytes: int
    needs: tuple[int, ...]

    def seconds(self, per_flop: float, link: Link) -> float:
        return link.seconds(self.num_bytes, self.kind) if self.kind else self.flops * per_flop


@dataclass(frozen=True)
class StepGraph:
    """The ops of a step: its forward graph and, in training, its backward graph."""

    graphs: tuple[tuple[StepOp, ...], ...]

    @classmethod
    def of(cls, module: nn.Module, step: Callable[[nn.Module], Any]) -> "StepGraph":
        """Trace `step(module)`, which runs once, into the graphs that AOTAutograd makes of it."""
        seen: list[GraphModule] = []

        def see(gm: GraphModule, _: Any) -> Any:
            seen.append(gm)
            return aot.make_boxed_func(gm.forward)

        parts = {"partition_fn": aot.min_cut_rematerialization_partition}
        step(aot.aot_module(module, see, see, **parts))
        return cls(tuple(_ops(gm) for gm in seen))

    def least_exposed(self, seconds: float, link: Link) -> float:
        """Seconds that the step takes beyond its compute when ops run as soon as they are ready.

        Of several ready ops, the one with the longest path to the end runs first. A graph ends
        when its transfers are complete; the backward graph starts after that.

        Args:
            seconds: total compute time, divided over ops by FLOPs.
            link: link that carries one transfer at a time.
        """
        flops = sum(op.flops for graph in self.graphs for op in graph)
        per_flop = seconds / flops if flops else 0.0
        ends = (_end(graph, [op.seconds(per_flop, link) for op in graph]) for graph in self.graphs)
        return max(0.0, sum(ends) - seconds)


def _ops(gm: GraphModule) -> tuple[StepOp, ...]:
    numbers = {node: i for i, node in enumerate(gm.graph.nodes)}
    return tuple(
        StepOp(
            work_of(node),
            _kind(node),
            (transfer_bytes(node) or 0) if _kind(node) else 0,
            tuple(numbers[needed] for needed in node.all_input_nodes),
        )
        for node in gm.graph.nodes
    )


def _kind(node: Node) -> str:
    name = launched_by(node)
    kinds = ((ALL_REDUCES, "all_reduce"), (GATHERS, "all_gather"), (SCATTERS, "reduce_scatter"))
    other = {"all_to_all_single": "all_to_all", "broadcast": "broadcast"}
    return next((kind for names, kind in kinds if name in names), other.get(name, ""))


def _end(graph: Sequence[StepOp], seconds: Sequence[float]) -> float:
    """The end of the last op, for a graph that starts at 0."""
    users: list[list[int]] = [[] for _ in graph]
    for i, op in enumerate(graph):
        for needed in op.needs:
            users[needed].append(i)
    left = list(seconds)  # from the start of an op to the end of the graph
    for i in reversed(range(len(graph))):
        left[i] += max((left[user] for user in users[i]), default=0.0)
    missing = [len(op.needs) for op in graph]
    ready: dict[bool, list[tuple[float, int]]] = {True: [], False: []}  # by whether on the link
    done: list[tuple[float, int]] = []
    busy = {True: False, False: False}
    now = 0.0

    def release(number: int) -> None:
        heapq.heappush(ready[bool(graph[number].kind)], (-left[number], number))

    for i, count in enumerate(missing):
        if count == 0:
            release(i)
    while any(ready.values()) or done:
        for lane in (True, False):
            if ready[lane] and not busy[lane]:
                _, number = heapq.heappop(ready[lane])
                heapq.heappush(done, (now + seconds[number], number))
                busy[lane] = True
        now, number = heapq.heappop(done)
        busy[bool(graph[number].kind)] = False
        for user in users[number]:
            missing[user] -= 1
            if missing[user] == 0:
                release(user)
    return now


def exposed_at_least(
    blocks: Sequence[BlockReport], seconds: float, reduces: Sequence[float]
) -> float:
    """Exposed seconds of the ladder on two lanes: what no order can hide.

    Block i waits for the all-reduce of block i - 2; the end of the step waits for all of them.
    Nothing follows the last block to hide its all-reduce.

    Args:
        blocks: blocks of the step, with their FLOPs; each ends in one all-reduce.
        seconds: total compute time of the blocks, divided over them by FLOPs.
        reduces: duration of each block's all-reduce, in seconds.
    """
    flops = [block.flops or 0 for block in blocks]
    branches = [Branch(f"h{i}", (0, i), ((0, i - 2),)) for i in range(len(flops))]
    durations: dict[str, float] = {}
    for branch, part, reduce in zip(branches, flops, reduces, strict=False):
        durations[branch.name] = seconds * part / sum(flops)
        durations[reduce_of(branch.name)] = reduce
    return max(end for _, end in place(tasks_of(branches), durations).values()) - seconds
