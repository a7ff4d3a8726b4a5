"""Find the residual stream: which adds carry it, what each branch computes, where it is read.

    x1 = add(x0, h0)      h0 reached from x0 through a mixing op   -> block 0, anchor x0
    x2 = add(norm(x1), h1)                                         -> block 1, anchor norm(x1)

Pure analysis; nothing here changes a graph. It matches structure alone: names serve the report
and the user's `layers=`. Words as in DESIGN: stream, block, branch, anchor, segment.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from torch.fx import GraphModule, Node

from ladderize import ops
from ladderize.block import Block, Stream
from ladderize.chains import longest_chains
from ladderize.errors import Blocker, module_path
from ladderize.layers import layer_indices
from ladderize.ops import Kind

# How many cheap steps behind a summand the skip may have left the stream: a cast, a dropout and a
# normalisation written out in single ops (8 of them in transformers' RMSNorm) fit.
MAX_SKIP_STEPS = 12


def find_streams(gm: GraphModule, parameters: Iterable[Node] = ()) -> tuple[Stream, ...]:
    """The residual streams of `gm`, in graph order. Linear in the size of the graph.

    Args:
        gm: a Dynamo graph or a pre-dispatch ATen graph, functionalized, with fake values.
        parameters: the placeholders that hold parameters and buffers.
    """
    return _Finder(gm, frozenset(parameters)).streams()


class _Finder:
    """The steps of DESIGN §4 over one graph."""

    def __init__(self, gm: GraphModule, parameters: frozenset[Node]) -> None:
        self.nodes = list(gm.graph.nodes)
        self.position = {node: i for i, node in enumerate(self.nodes)}
        self.shape = {node: ops.floating_shape(node) for node in self.nodes}
        self.static = self._find_static(parameters)

    def streams(self) -> tuple[Stream, ...]:
        candidates = self._without_groups(self._find_candidates())
        by_add = {block.add: block for block in candidates}
        parent = {block: self._find_writer(block.anchor, by_add) for block in candidates}
        chains = longest_chains(candidates, parent, self.position)
        return tuple(
            Stream(blocks, self._find_blockers(blocks, by_add))
            for blocks in map(self._number, chains)
        )

    # -- 1. what depends on parameters, buffers and sizes alone

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

    # -- 2. adds whose summands are a skip and branches that it reaches

    def _find_candidates(self) -> list[Block]:
        inner: set[Node] = set()
        candidates = []
        for node in reversed(self.nodes):
            if node in inner or not self._is_sum(node):
                continue
            leaves, flattened = self._flatten(node)
            inner.update(flattened)
            block = self._as_block(node, leaves, flattened)
            if block is None:  # `x + h` may hide in a sum that is none as a whole
                inner.difference_update(flattened)
                continue
            candidates.append(block)
        candidates.reverse()
        return candidates

    def _is_sum(self, node: Node) -> bool:
        if ops.kind(node) is not Kind.ADD or self.shape[node] is None or len(node.args) < 2:
            return False
        operands = node.args[:2]
        return all(
            isinstance(operand, Node) and self.shape[operand] == self.shape[node]
            for operand in operands
        ) and not any(node.kwargs.get(name, 1) != 1 for name in ("alpha",))

    def _flatten(self, node: Node) -> tuple[list[Node], list[Node]]:
        """The summands of `node`, and the partial sums with a single user that it flattens."""
        leaves, flattened, stack = [], [], [*node.args[:2]]
        while stack:
            operand = stack.pop(0)
            assert isinstance(operand, Node)
            if len(operand.users) == 1 and self._is_sum(operand):
                flattened.append(operand)
                stack[:0] = operand.args[:2]
            else:
                leaves.append(operand)
        return leaves, flattened

    def _as_block(
        self, node: Node, leaves: Sequence[Node], flattened: Sequence[Node]
    ) -> Block | None:
        for skip in leaves:
            outputs = [leaf for leaf in leaves if leaf is not skip and leaf not in self.static]
            if skip in self.static or not outputs:
                continue
            for anchor in self._walk_back(skip):
                if (branch := self._branch(anchor, outputs)) is not None:
                    return Block(
                        index=0,
                        anchor=anchor,
                        skip=skip,
                        branch=branch,
                        outputs=tuple(outputs),
                        add=node,
                        partial_sums=tuple(flattened),
                        module=module_path(node),
                    )
        return None

    def _walk_back(self, node: Node) -> list[Node]:
        """`node` and the values up to `MAX_SKIP_STEPS` cheap steps of its size behind it."""
        found, frontier = [node], [node]
        for _ in range(MAX_SKIP_STEPS):
            frontier = [
                source
                for step in frontier
                if ops.kind(step) in (Kind.CHEAP, Kind.LAYOUT)
                for source in step.all_input_nodes
                if source not in self.static
                and source not in found
                and self._same_size(source, node)
            ]
            found.extend(dict.fromkeys(frontier))
        return sorted(set(found), key=self.position.__getitem__, reverse=True)

    def _branch(self, anchor: Node, outputs: Sequence[Node]) -> tuple[Node, ...] | None:
        """The nodes from `anchor` to `outputs`; None unless each is reached through a mixing op."""
        start = self.position[anchor]
        behind = self._ancestors(outputs, start)
        mixed: dict[Node, bool] = {anchor: False}
        for node in sorted(behind, key=self.position.__getitem__):
            sources = [mixed[source] for source in node.all_input_nodes if source in mixed]
            if sources:
                mixed[node] = any(sources) or ops.kind(node) is Kind.MIX
        if not all(mixed.get(output) for output in outputs):
            return None
        return tuple(node for node in mixed if node is not anchor)

    def _ancestors(self, nodes: Iterable[Node], start: int) -> set[Node]:
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

    def _same_size(self, a: Node, b: Node) -> bool:
        left, right = self.shape[a], self.shape[b]
        if left is None or right is None:
            return False
        return left == right or bool(ops.num_elements(left) == ops.num_elements(right))

    # -- 3. the block that wrote what a block reads

    def _find_writer(self, value: Node, by_add: Mapping[Node, Block]) -> Block | None:
        """The block whose add is nearest behind `value`, with only cheap steps in between.

        None as well when what is added on the way was mixed from the stream: `x1 + m(x0)` is then
        neither a block nor a `T`, and breaks the link.
        """
        seen: set[Node] = set()
        mixed: list[Node] = []
        frontier = {value}
        while frontier:
            node = max(frontier, key=self.position.__getitem__)
            frontier.remove(node)
            if node in by_add:
                return None if self._reads(mixed, by_add[node].anchor) else by_add[node]
            seen.add(node)
            if ops.kind(node) is Kind.MIX:
                mixed.append(node)
            if ops.kind(node) in (Kind.CHEAP, Kind.LAYOUT, Kind.ADD):
                frontier.update(
                    source
                    for source in node.all_input_nodes
                    if source not in seen
                    and source not in self.static
                    and self._same_size(source, value)
                )
        return None

    def _reads(self, nodes: Sequence[Node], value: Node) -> bool:
        start = self.position[value] - 1
        return value in self._ancestors(nodes, start)

    # -- 4. skips around whole runs of blocks (group skips, re-injection of x0) are no blocks

    def _without_groups(self, candidates: Sequence[Block]) -> list[Block]:
        by_add = {block.add: block for block in candidates}
        writer = {block: self._find_writer(block.anchor, by_add) for block in candidates}

        def is_group(block: Block) -> bool:
            inside = {by_add[node] for node in block.branch if node in by_add}
            if any(writer[other] in inside for other in inside):
                return True
            ends = (self._find_writer(output, by_add) for output in block.outputs)
            return any(end in inside and end.anchor is block.anchor for end in ends if end)

        return [block for block in candidates if not is_group(block)]

    # -- 5. why a chain must be left alone

    def _find_blockers(
        self, blocks: Sequence[Block], by_add: Mapping[Node, Block]
    ) -> tuple[Blocker, ...]:
        anchors = {block.anchor: block for block in blocks}
        return (
            *(
                blocker
                for block in blocks
                for node in block.branch
                for blocker in self._find_foreign_reads(block, node, anchors, by_add)
            ),
            *self._find_overwrites(blocks),
        )

    def _find_foreign_reads(
        self,
        block: Block,
        node: Node,
        anchors: Mapping[Node, Block],
        by_add: Mapping[Node, Block],
    ) -> Iterator[Blocker]:
        other = by_add.get(node)
        if other is not None and other.anchor not in block.members | {block.anchor}:
            what = f"the branch of block {block.index} holds a second residual stream"
            yield Blocker.at(node, what)
        for source in node.all_input_nodes:
            if source in block.members or source in self.static or self.shape[source] is None:
                continue
            read = next((anchors[v] for v in self._walk_back(source) if v in anchors), block)
            if read is not block:
                what = (
                    f"block {block.index} also reads the stream before block {read.index}: "
                    "a dense connection, or a net that is a ladder already"
                )
                yield Blocker.at(node, what)

    def _find_overwrites(self, blocks: Sequence[Block]) -> Iterator[Blocker]:
        stream = {s for block in blocks for n in (block.anchor, block.add) for s in ops.storages(n)}
        for node in self.nodes:
            base = ops.mutated_operand(node)
            if base is not None and not stream.isdisjoint(ops.storages(base)):
                what = (
                    f"{ops.op_name(node)} writes a stream value in place that a graph input or "
                    "another view shares; write x = x + h, or clone the input first"
                )
                yield Blocker.at(node, what)

    def _number(self, chain: Sequence[Block]) -> tuple[Block, ...]:
        layers = layer_indices([block.add for block in chain])
        numbered: list[Block] = []
        segment = 0
        for index, (block, layer) in enumerate(zip(chain, layers, strict=True)):
            if index and not self._same_size(block.anchor, chain[index - 1].anchor):
                segment += 1
            numbered.append(replace(block, index=index, layer=layer, segment=segment))
        return tuple(numbered)
