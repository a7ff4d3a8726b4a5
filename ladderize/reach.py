"""What can be asked of one graph: what is static, what lies behind a value, what reaches what.

    x1 = add(x0, down(relu(up(norm(x0)))))

    walk_back(relu(x1))    x1 is a cheap step behind
    branch(x0, [down])     norm, up, relu, down: x0 reaches `down` through a mixing op

Pure questions; no notion of a stream yet. Words of the ops as in `ops.py`.
"""

from collections.abc import Iterable, Sequence

from torch.fx import GraphModule, Node

from ladderize import ops
from ladderize.ops import Kind

# How many cheap steps behind a summand the skip may have left the stream: a cast, a dropout and a
# normalisation written out in single ops (8 of them in transformers' RMSNorm) fit.
MAX_SKIP_STEPS = 12


class Reach:
    """One graph with fake values, and the inputs that hold its parameters and buffers.

    Attributes:
        nodes: in graph order.
        position: of each node in that order.
        shape: of each node with a floating tensor, None for the others.
        static: what depends on parameters, buffers and sizes alone.
    """

    def __init__(self, gm: GraphModule, parameters: Iterable[Node] = ()) -> None:
        self.nodes = list(gm.graph.nodes)
        self.position = {node: i for i, node in enumerate(self.nodes)}
        self.shape = {node: ops.floating_shape(node) for node in self.nodes}
        self.static = self._find_static(frozenset(parameters))

    def _find_static(self, parameters: frozenset[Node]) -> set[Node]:
        static: set[Node] = set()
        for node in self.nodes:
            if node.op == "placeholder":
                is_static = node in parameters or not ops.holds_tensor(node)
            else:
                is_static = not ops.holds_tensor(node) or all(
                    source in static for source in node.all_input_nodes
                )
            if is_static:
                static.add(node)
        return static

    def is_sum(self, node: Node) -> bool:
        """Whether `node` adds two floating tensors of its own shape."""
        if ops.kind(node) is not Kind.ADD or self.shape[node] is None or len(node.args) < 2:
            return False
        return all(
            isinstance(operand, Node) and self.shape[operand] == self.shape[node]
            for operand in node.args[:2]
        ) and not any(node.kwargs.get(name, 1) != 1 for name in ("alpha",))

    def is_same_size(self, a: Node, b: Node) -> bool:
        left, right = self.shape[a], self.shape[b]
        if left is None or right is None:
            return False
        return left == right or bool(ops.num_elements(left) == ops.num_elements(right))

    def walk_back(self, node: Node) -> list[Node]:
        """`node` and the values up to `MAX_SKIP_STEPS` cheap steps of its size behind it.

        The latest value first.
        """
        found, frontier = [node], [node]
        for _ in range(MAX_SKIP_STEPS):
            frontier = [
                source
                for step in frontier
                if ops.kind(step) in (Kind.CHEAP, Kind.LAYOUT)
                for source in step.all_input_nodes
                if source not in self.static
                and source not in found
                and self.is_same_size(source, node)
            ]
            found.extend(dict.fromkeys(frontier))
        return sorted(set(found), key=self.position.__getitem__, reverse=True)

    def ancestors(self, nodes: Iterable[Node], start: int) -> set[Node]:
        """`nodes` and everything they depend on that comes after position `start`."""
        seen: set[Node] = set()
        stack = list(nodes)
        while stack:
            node = stack.pop()
            if node not in seen and self.position[node] > start:
                seen.add(node)
                # Not through sizes: `h.reshape(-1, x.shape[-1])` does not read the stream.
                stack.extend(s for s in node.all_input_nodes if s not in self.static)
        return seen

    def branch(self, anchor: Node, outputs: Sequence[Node]) -> tuple[Node, ...] | None:
        """The nodes from `anchor` to `outputs`; None unless each is reached through a mixing op."""
        behind = self.ancestors(outputs, self.position[anchor])
        mixed: dict[Node, bool] = {anchor: False}
        for node in sorted(behind, key=self.position.__getitem__):
            sources = [mixed[source] for source in node.all_input_nodes if source in mixed]
            if sources:
                mixed[node] = any(sources) or ops.kind(node) is Kind.MIX
        if not all(mixed.get(output) for output in outputs):
            return None
        return tuple(node for node in mixed if node is not anchor)

    def depends_on(self, nodes: Iterable[Node], value: Node) -> bool:
        return value in self.ancestors(nodes, self.position[value] - 1)
