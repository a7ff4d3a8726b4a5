"""Run a graph with blended reads repeatedly, each time from the first read that changed.

    weights   w1 w2 w3 w4        run 1: 1 0 0 0, kept       x0 ─ b1 ─ b2 ─ b3 ─ b4 ─ logits
                                 run 2: 1 0 1 0             from b3 on, with the values of run 1

At each block, the values that later nodes read are kept: the stream, its previous value, masks and
rotary tables. They are kept by reference, not copied.
"""

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch.fx import GraphModule, Interpreter, Node
from torch.fx.node import map_arg

from ladderize.backends.eager import lower_to_eager
from ladderize.backends.lowered import Lowered
from ladderize.config.options import LadderConfig
from ladderize.graph import ops
from ladderize.graph.writes import written_operands
from ladderize.passes.blend_reads import blend_inputs


class ReusingRun:
    """A callable that replaces a graph and runs it op by op.

    Attributes:
        keeps: whether a run keeps values that later runs may start from.
        num_nodes: number of nodes run so far.
    """

    def __init__(self, gm: GraphModule) -> None:
        self.keeps = False
        self.num_nodes = 0
        self._interpreter = Interpreter(gm, garbage_collect_values=False)
        self._inputs = gm.graph.find_nodes(op="placeholder")
        self._nodes = [node for node in gm.graph.nodes if node.op != "placeholder"]
        self._blends = set(blend_inputs(gm))
        self._starts = _starts(self._nodes, self._blends)
        self._dead = last_reads(self._nodes)
        self._kept: dict[int, dict[Node, Any]] = {}
        self._kept_inputs: tuple[Any, ...] = ()

    def __call__(self, *inputs: Any) -> Any:
        start = self._start(inputs)
        env = {**self._kept.get(start, {}), **dict(zip(self._inputs, inputs, strict=True))}
        if self.keeps:
            self._kept = {at: values for at, values in self._kept.items() if at <= start}
            self._kept_inputs = tuple(map(self._held, self._inputs, inputs))
        starts = set(self._starts.values()) if self.keeps else ()
        self._interpreter.env = env
        for position, node in enumerate(self._nodes[start:], start):
            if node.op == "output":
                break
            if position in starts:
                self._kept[position] = dict(env)
            env[node] = self._interpreter.run_node(node)
            for dead in self._dead[position]:
                del env[dead]
        self.num_nodes += len(self._nodes) - 1 - start
        return map_arg(self._nodes[-1].args[0], env.__getitem__)

    def forget(self) -> None:
        """Release the kept values."""
        self._kept, self._kept_inputs = {}, ()

    def _start(self, inputs: Sequence[Any]) -> int:
        """The position of the first node to run: a kept position, or 0."""
        if len(self._kept_inputs) != len(inputs):
            return 0
        pairs = zip(self._inputs, self._kept_inputs, inputs, strict=True)
        changed = [node for node, old, new in pairs if not self._is_same(node, old, new)]
        if not changed:
            return max(self._kept, default=0)
        first = min(self._starts.get(node, 0) for node in changed)
        return first if first in self._kept else 0

    def _held(self, node: Node, value: Any) -> Any:
        """The input to compare later ones with; blend weights, written in place, are copied."""
        return value.clone() if node in self._blends else value

    def _is_same(self, node: Node, old: Any, new: Any) -> bool:
        if node in self._blends:
            return old.shape == new.shape and torch.equal(old, new)
        return old is new


def reusing_lowering(runs: list[ReusingRun]) -> Callable[..., Lowered]:
    """A lowering that runs graphs op by op and appends each to `runs`."""

    def lower(gm: GraphModule, example_inputs: Sequence[Any], config: LadderConfig) -> Lowered:
        lower_to_eager(gm, example_inputs, config)
        runs.append(ReusingRun(gm))
        return Lowered(runs[-1])

    return lower


def _starts(nodes: Sequence[Node], blends: Collection[Node]) -> dict[Node, int]:
    """The position of the first reader of each blend weight, where a run may start.

    A run never starts between the creation of a value and an in-place write to it.
    """
    position = {node: i for i, node in enumerate(nodes)}
    first = {blend: min(position[user] for user in blend.users) for blend in blends}
    spans = _written_spans(nodes)
    return {
        blend: start
        for blend, start in first.items()
        if not any(made < start <= written for made, written in spans)
    }


def _written_spans(nodes: Sequence[Node]) -> Collection[tuple[int, int]]:
    """For each in-place write, the positions of the memory's creation (-1: input) and the write."""
    made: dict[Any, int] = {}
    spans = set()
    for i, node in enumerate(nodes):
        for operand in written_operands(node):
            memory = ops.storages(operand)
            spans |= {(made.get(storage, -1), i) for storage in memory} or {(-1, i)}
        for storage in ops.storages(node):
            made.setdefault(storage, i)
    return spans


def last_reads(nodes: Sequence[Node]) -> list[list[Node]]:
    """For each position, the values except inputs that no later node reads."""
    last = {node: i for i, node in enumerate(nodes)}
    last |= {source: i for i, node in enumerate(nodes) for source in node.all_input_nodes}
    dead: list[list[Node]] = [[] for _ in nodes]
    for node, position in last.items():
        if node.op != "placeholder":
            dead[position].append(node)
    return dead
