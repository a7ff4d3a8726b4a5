"""Queries on one graph: static values, values a few steps before another, and reachability.

    x1 = add(x0, down(relu(up(norm(x0)))))

    walk_back(relu(x1))    includes x1, one cheap step before
    branch(x0, [down])     norm, up, relu, down: x0 reaches `down` through a mixing op

The queries have no side effects and do not know streams yet. Op kinds are those of `ops.py`.
"""

from collections.abc import Collection, Iterable, Sequence

from torch.fx import GraphModule, Node

from ladderize.graph import ops
from ladderize.graph.dataflow import find_sources, find_writes
from ladderize.graph.ops import Kind
from ladderize.graph.pieces import joined_again

# Maximum number of cheap steps between the stream and the skip operand of a sum. A cast, a dropout
# and a normalization written as single ops (8 of them in transformers' RMSNorm) fit.
MAX_SKIP_STEPS = 12
_DIFFERENCES = ("sub", "isub", "subtract")


class AnalysisContext:
    """Analysis of one graph with fake values.

    Attributes:
        gm: graph module.
        parameters: placeholders of parameters and buffers.
        nodes: nodes in graph order.
        position: index of each node in `nodes`.
        writes: for each reader of written memory, the last write before it, by operand.
        sources: for each node, the nodes that it reads, also through memory.
        shape: for each node, the shape of its floating-point tensor; None for other nodes.
        static: nodes that depend only on parameters, buffers and sizes.
    """

    def __init__(self, gm: GraphModule, parameters: Iterable[Node] = ()) -> None:
        self.gm = gm
        self.parameters = frozenset(parameters)
        self.nodes = list(gm.graph.nodes)
        self.position = {node: i for i, node in enumerate(self.nodes)}
        self.writes = find_writes(self.nodes)
        self.sources = find_sources(self.nodes, self.writes)
        self.shape = {node: ops.floating_shape(node) for node in self.nodes}
        self.static = self._find_static(self.parameters)

    def _find_static(self, parameters: frozenset[Node]) -> set[Node]:
        static: set[Node] = set()
        for node in self.nodes:
            if node.op == "placeholder":
                is_static = node in parameters or not ops.holds_tensor(node)
            else:
                is_static = not ops.holds_tensor(node) or all(
                    source in static for source in self.sources[node]
                )
            if is_static:
                static.add(node)
        return static

    def summands(self, node: Node) -> tuple[Node, ...]:
        """The two floating-point operands of a sum, with its own shape; empty for other nodes.

        Either may be scaled (`alpha=`). In a difference, only the first can be the skip.
        """
        is_sum = ops.kind(node) is Kind.ADD or ops.op_name(node).rstrip("_") in _DIFFERENCES
        if not is_sum or self.shape[node] is None:
            return ()
        operands = (*node.args, *(node.kwargs[k] for k in ("other",) if k in node.kwargs))[:2]
        if len(operands) < 2:
            return ()
        found = [o for o in operands if isinstance(o, Node) and self.shape[o] == self.shape[node]]
        return tuple(found) if len(found) == 2 else ()

    def as_written(self, node: Node, operand: Node) -> Node:
        """The value of `operand` that `node` reads: the last write to its memory, or `operand`."""
        return self.writes.get(node, {}).get(operand, operand)

    def is_plain_sum(self, node: Node) -> bool:
        """Whether `node` adds its two operands unscaled, so that sums can be reassociated."""
        is_plain = ops.kind(node) is Kind.ADD and not node.kwargs
        return is_plain and bool(self.summands(node))

    def is_same_size(self, a: Node, b: Node) -> bool:
        left, right = self.shape[a], self.shape[b]
        if left is None or right is None:
            return False
        return left == right or bool(ops.num_elements(left) == ops.num_elements(right))

    def steps_back(self, node: Node) -> list[Node]:
        """The operands of `node`. A cheap op with several results and its getitem are one step.

        `getitem(native_layer_norm(x), 0)` is one step from x.
        """
        return [
            step
            for operand in node.all_input_nodes
            for step in (operand.all_input_nodes if self._is_cheap_tuple(operand) else [operand])
        ]

    def _is_cheap_tuple(self, node: Node) -> bool:
        is_tuple = isinstance(ops.value(node), (tuple, list))
        return is_tuple and ops.kind(node) is Kind.CHEAP

    def carriers(self, step: Node, value: Node) -> list[Node]:
        """The values one step before `step` that may carry `value`: those of its size.

        Static ones (the parameter that a stream starts from) only if there are no others. For a
        `cat` of all pieces of one value, that value.
        """
        if (whole := joined_again(step)) is not None:
            return [whole]
        sources = [s for s in self.steps_back(step) if self.is_same_size(s, value)]
        return [s for s in sources if s not in self.static] or sources

    def walk_back(self, node: Node) -> list[Node]:
        """`node` and the values up to `MAX_SKIP_STEPS` cheap steps of its size before it.

        The latest value comes first.
        """
        found, frontier = [node], [node]
        for _ in range(MAX_SKIP_STEPS):
            frontier = [
                source
                for step in frontier
                if self._is_cheap(step)
                for source in self.carriers(step, node)
                if source not in found
            ]
            found.extend(dict.fromkeys(frontier))
        return sorted(set(found), key=self.position.__getitem__, reverse=True)

    def _is_cheap(self, step: Node) -> bool:
        """Whether `step` neither mixes nor adds two computed values. It may add a static bias."""
        summands = [self.as_written(step, summand) for summand in self.summands(step)]
        is_sum = bool(summands) and self.static.isdisjoint(summands)
        return ops.kind(step) in (Kind.CHEAP, Kind.LAYOUT, Kind.ADD) and not is_sum

    def ancestors(
        self, nodes: Iterable[Node], start: int, stop: Collection[Node] = ()
    ) -> set[Node]:
        """`nodes` and everything after position `start` that they depend on.

        The search does not enter nodes in `stop`.
        """
        seen: set[Node] = set()
        stack = list(nodes)
        while stack:
            node = stack.pop()
            if node not in seen and node not in stop and self.position[node] > start:
                seen.add(node)
                # Sizes do not count: `h.reshape(-1, x.shape[-1])` does not read the stream.
                stack.extend(s for s in self.sources[node] if ops.holds_tensor(s))
        return seen

    def reach(self, anchor: Node, outputs: Sequence[Node]) -> dict[Node, bool]:
        """The nodes from `anchor` to `outputs`, with whether a mixing op leads to each."""
        behind = self.ancestors(outputs, self.position[anchor])
        mixed: dict[Node, bool] = {anchor: False}
        for node in sorted(behind, key=self.position.__getitem__):
            sources = [mixed[source] for source in self.sources[node] if source in mixed]
            if sources:
                mixed[node] = any(sources) or ops.kind(node) is Kind.MIX
        return mixed

    def branch(self, anchor: Node, outputs: Sequence[Node]) -> tuple[Node, ...] | None:
        """The nodes from `anchor` to `outputs`; None unless each is reached through a mixing op."""
        mixed = self.reach(anchor, outputs)
        if not all(mixed.get(output) for output in outputs):
            return None
        return tuple(node for node in mixed if node is not anchor)

    def is_scaled(self, node: Node, value: Node) -> bool:
        """Whether `node` equals `value` up to scale, dtype and layout."""
        while node is not value:
            made = [source for source in node.all_input_nodes if self.depends_on([source], value)]
            if len(made) != 1 or not ops.only_scales(node):
                return False
            (node,) = made
        return True

    def depends_on(self, nodes: Iterable[Node], value: Node) -> bool:
        return value in self.ancestors(nodes, self.position[value] - 1)
