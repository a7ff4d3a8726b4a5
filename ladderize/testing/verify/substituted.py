"""The reference ladder: the original's graph, run with stale values in its branches.

    standard graph   n = norm(x1)      h = linear(n)   y1 = add(x1, h)
    run as           n = norm(x0)      h = linear(n)   y1 = add(x1, h)

Nothing is rewritten: nodes of a converted branch get the value of the earlier anchor instead of
their own. This is independent of `passes/reroute.py`.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from ladderize.graph import ops
from ladderize.passes.reroute import layout_steps
from ladderize.streams.block import Block, Stream
from ladderize.streams.joins import JoinedRead, StaleReads
from ladderize.streams.left_out import Connectivity
from ladderize.streams.partial_reads import PartialRead


@dataclass(frozen=True)
class Original:
    """A standard graph and the reads of its ladder.

    Attributes:
        gm: functionalized graph.
        streams: its streams.
        reads: reads of its rerouted blocks, by stream.
        names: names of the parameters, buffers and constants among its inputs.
    """

    gm: GraphModule
    streams: tuple[Stream, ...]
    reads: tuple[StaleReads, ...]
    names: Mapping[Node, str]

    @classmethod
    def of(
        cls,
        gm: GraphModule,
        streams: tuple[Stream, ...],
        chosen: Sequence[frozenset[int]],
        connectivity: Connectivity,
        names: Mapping[Node, str],
    ) -> "Original":
        pairs = zip(streams, chosen, strict=True)
        return cls(gm, streams, tuple(StaleReads.of(*p, connectivity) for p in pairs), names)

    @property
    def num_stale(self) -> int:
        """Number of blocks whose reads differ from those in the standard model."""
        return sum(len(reads.left_out()) for reads in self.reads)

    def inner_sums(self) -> set[Node]:
        """The sums between two branches that read the same value, if nothing else reads them.

        A sharded model may add both branches before the reduction.
        """
        found = set()
        for of_stream in self.reads:
            for before, block in itertools.pairwise(of_stream.stream.blocks):
                source = of_stream.sources.get(before.index, before.index)
                others = set(before.add.users) - {block.add, *block.readers}
                is_read = any(user.op == "output" or ops.holds_tensor(user) for user in others)
                if of_stream.sources.get(block.index) == source and not is_read:
                    found.add(before.add)
        return found

    def stale_reads(self) -> dict[Node, dict[Node, tuple[Block, ...]]]:
        """For each reader in a rerouted branch, its anchor and the blocks from the stale one on.

        The last of these blocks is the reader's own.
        """
        reads: dict[Node, dict[Node, tuple[Block, ...]]] = {}
        for of_stream in self.reads:
            for index, source in of_stream.sources.items():
                path = of_stream.stream.blocks[source : index + 1]
                for node in path[-1].readers:
                    reads.setdefault(node, {})[path[-1].anchor] = path
        return reads

    def joined_reads(self) -> dict[Node, dict[Node, JoinedRead]]:
        """For each reader in a branch that reads from before a join, its anchor and the read."""
        reads: dict[Node, dict[Node, JoinedRead]] = {}
        for read in (read for of_stream in self.reads for read in of_stream.joined):
            for node in read.block.readers:
                reads.setdefault(node, {})[read.block.anchor] = read
        return reads

    def partial_reads(self) -> dict[Node, dict[Node, PartialRead]]:
        """For each reader that leaves out part of the previous block, its anchor and the read."""
        reads: dict[Node, dict[Node, PartialRead]] = {}
        for read in (read for of_stream in self.reads for read in of_stream.partial):
            for node in read.block.readers:
                reads.setdefault(node, {})[read.block.anchor] = read
        return reads


def run_reference(original: Original, inputs: Sequence[Any]) -> dict[Node, Any]:
    """The values of all nodes of the reference ladder; that of the output is a tuple.

    Stream values are copied, so later in-place writes do not change them.
    """
    stale, joined = original.stale_reads(), original.joined_reads()
    partial = original.partial_reads()
    kept = {node for s in original.streams for b in s.blocks for node in (b.add, b.anchor)}
    values: dict[Node, Any] = {}
    given = iter(inputs)
    for node in original.gm.graph.nodes:
        if node.op == "placeholder":
            value = next(given)
        else:
            moved = {
                anchor: _in_form_of(path, values) for anchor, path in stale.get(node, {}).items()
            }
            for anchor, read in joined.get(node, {}).items():
                earlier = {end: values[source] for end, source in read.instead.items()}
                moved[anchor] = evaluate(original.gm, read.join, {**values, **earlier})
            for anchor, part in partial.get(node, {}).items():
                moved[anchor] = without_part(original.gm, part, values)
            value = evaluate(original.gm, node, {**values, **moved} if moved else values)
        is_kept = node in kept and isinstance(value, Tensor)
        values[node] = value.clone() if is_kept else value
    return values


def without_part(gm: GraphModule, read: PartialRead, values: Mapping[Node, Any]) -> Any:
    """The anchor of a block without the summands in flight, in its dtype."""

    def call(step: Node, operands: Mapping[Node, Any]) -> Any:
        return evaluate(gm, step, {**values, **operands})

    found = read.build(values.__getitem__, call, lambda value, other: value + other)
    return found.to(values[read.block.anchor].dtype)


def evaluate(gm: GraphModule, node: Node, values: Mapping[Node, Any]) -> Any:
    """Compute `node` from `values`."""
    args, kwargs = map_arg((node.args, dict(node.kwargs)), values.__getitem__)
    if node.op == "output":
        return tuple(args[0])  # type: ignore[arg-type]
    if node.op == "get_attr":
        return getattr(gm, str(node.target))
    return node.target(*args, **kwargs)  # type: ignore[operator]


def _in_form_of(path: Sequence[Block], values: Mapping[Node, Any]) -> Any:
    """The value of the first block's anchor, in the layout and dtype of the last block's."""
    stale, fresh = values[path[0].anchor], values[path[-1].anchor]
    if stale.shape != fresh.shape:
        for earlier, later in itertools.pairwise(path):
            for step in layout_steps(earlier.add, later.anchor):
                source = next(s for s in step.all_input_nodes if ops.holds_tensor(s))
                args, kwargs = map_arg(
                    (step.args, dict(step.kwargs)), {**values, source: stale}.__getitem__
                )
                stale = step.target(*args, **kwargs)  # type: ignore[operator]
    return stale.to(fresh.dtype)
