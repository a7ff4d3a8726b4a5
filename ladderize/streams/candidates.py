"""Find the adds that are residual sums, and their blocks.

    x1 = add(x0, h0)      h0 reached from x0 through a mixing op   -> block, anchor x0
    x2 = add(norm(x1), h1)                                         -> block, anchor norm(x1)
    x3 = add(x2, add(u, h2))   u = norm(x2), read by h2: a skip inside the branch     -> anchor x2
    s  = add(x0, x2)      its branch holds linked blocks           -> group skip, not a block
    c1 = add(c0, attn(cat(c0, x)))    c0 a parameter               -> block, anchor c0

Sums with single-user partial results, `x + a + m` in any association, are flattened unless that
hides a block: in `x0 + (x1 + h1)` around two blocks, `x1 + h1` is the second block.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch.fx import Node

from ladderize.errors import module_path
from ladderize.graph import ops
from ladderize.graph.ops import Kind
from ladderize.streams.block import Block
from ladderize.streams.chains import starting_at
from ladderize.streams.context import AnalysisContext
from ladderize.streams.static_starts import carried_values, is_made_of

StartTest = Callable[[Node, Sequence[Node]], bool]
"""Whether a stream starts at a static anchor, given the outputs of its branch."""


@dataclass(frozen=True)
class Candidates:
    """The residual sums of a graph, not yet numbered.

    Attributes:
        blocks: blocks in graph order, all with `index` 0.
        group_skips: adds with a skip around runs of blocks (group skips, re-injection of x0).
    """

    blocks: tuple[Block, ...]
    group_skips: frozenset[Node]

    def without(self, groups: Iterable[Block]) -> "Candidates":
        """The candidates with `groups`, blocks that hold runs of blocks, moved to `group_skips`."""
        more = frozenset(groups)
        kept = tuple(block for block in self.blocks if block not in more)
        return Candidates(kept, self.group_skips | {block.add for block in more})


def find_candidates(context: AnalysisContext) -> Candidates:
    groups: set[Node] = set()
    while True:
        found = _find_sums(context, groups)
        new = _find_groups(context, found)
        groups.update(block.add for block in new)
        # A flattened partial sum of a group may be a block: search again without the groups.
        if not any(block.partial_sums for block in new):
            return Candidates(tuple(b for b in found if b not in new), frozenset(groups))


def find_writer(
    context: AnalysisContext, value: Node, by_add: Mapping[Node, Block]
) -> Block | None:
    """The nearest block whose add leads to `value` through cheap steps only.

    None if there is none, or if a value mixed from the stream is added on the way: `x1 + m(x0)` is
    neither a block nor a `T`, and breaks the link.
    """
    seen: set[Node] = set()
    mixed: list[Node] = []
    frontier = {value}
    while frontier:
        node = max(frontier, key=context.position.__getitem__)
        frontier.remove(node)
        if node in by_add:
            return None if context.depends_on(mixed, by_add[node].anchor) else by_add[node]
        seen.add(node)
        if ops.kind(node) is Kind.MIX:
            mixed.append(node)
        if ops.kind(node) in (Kind.CHEAP, Kind.LAYOUT, Kind.ADD):
            frontier.update(s for s in context.carriers(node, value) if s not in seen)
    return None


def _find_sums(context: AnalysisContext, groups: set[Node]) -> list[Block]:
    inner: set[Node] = set()
    found: list[Block] = []
    others: list[Node] = []
    for node in reversed(context.nodes):
        if node in inner or node in groups or not context.summands(node):
            continue
        leaves, flattened = flatten(context, node)
        block = _as_block(context, node, leaves, flattened)
        if block is not None:
            inner.update(flattened)  # otherwise a partial sum `x + h` may be the block
            found.append(block)
        elif node not in context.static and not context.static.isdisjoint(leaves):
            others.append(node)
    found += _find_starts(context, found, others)
    return sorted(found, key=lambda block: context.position[block.add])


def _find_starts(
    context: AnalysisContext, found: Sequence[Block], sums: Sequence[Node]
) -> list[Block]:
    """The blocks with a static skip, which are the first of their streams.

    Args:
        found: blocks with other skips.
        sums: sums with a static summand that are not blocks of `found`.
    """
    carried = carried_values(context, found)
    by_add = {block.add: block for block in found}
    starts: list[Block] = []

    def starts_stream(anchor: Node, outputs: Sequence[Node]) -> bool:
        return all(is_made_of(context, output, anchor, by_add, carried) for output in outputs)

    for node in _earliest_first(context, sums):
        if node in by_add:
            continue
        block = _as_block(context, node, *flatten(context, node), starts_stream)
        while block is not None and block.add not in by_add:
            starts.append(block)
            by_add |= dict.fromkeys((block.add, *block.partial_sums), block)
            block = _static_block_behind(context, block.anchor, starts_stream)
    return starts


def _earliest_first(context: AnalysisContext, sums: Sequence[Node]) -> list[Node]:
    """`sums` in graph order, but each before the partial sums that it flattens."""
    position = context.position

    def begin(node: Node) -> tuple[int, int]:
        return min(position[part] for part in (node, *flatten(context, node)[1])), -position[node]

    return sorted(sums, key=begin)


def flatten(context: AnalysisContext, node: Node) -> tuple[list[Node], list[Node]]:
    """The summands of `node`, and the flattened partial sums, which have a single user."""
    if not context.is_plain_sum(node):
        return _as_written(context, node), []
    leaves: list[Node] = []
    flattened: list[Node] = []
    stack = _as_written(context, node)
    while stack:
        operand = stack.pop(0)
        if len(operand.users) == 1 and context.is_plain_sum(operand):
            flattened.append(operand)
            stack[:0] = _as_written(context, operand)
        else:
            leaves.append(operand)
    return leaves, flattened


def _as_written(context: AnalysisContext, node: Node) -> list[Node]:
    return [context.as_written(node, operand) for operand in context.summands(node)]


def _as_block(
    context: AnalysisContext,
    node: Node,
    leaves: Sequence[Node],
    flattened: Sequence[Node],
    starts_stream: StartTest | None = None,
) -> Block | None:
    """`node` as a block, or None. A static anchor counts only if `starts_stream` accepts it."""
    is_difference = ops.kind(node) is not Kind.ADD
    weights = set() if node in context.static else context.static
    outputs = {
        skip: tuple(leaf for leaf in leaves if leaf is not skip and leaf not in weights)
        for skip in (leaves[:1] if is_difference else leaves)
    }

    def is_carried(anchor: Node, others: Sequence[Node]) -> bool:
        is_static = anchor in context.static
        return not is_static or bool(starts_stream and starts_stream(anchor, others))

    read = _find_read(context, outputs, is_carried) or _find_read_of_own_skips(
        context, outputs, is_carried
    )
    if read is None:
        return None
    skip, anchor = read
    return Block(
        index=0,
        anchor=anchor,
        skip=skip,
        branch=tuple(n for n in context.reach(anchor, outputs[skip]) if n is not anchor),
        outputs=tuple(output for output in outputs[skip] if output is not anchor),
        add=node,
        partial_sums=tuple(flattened),
        module=module_path(node),
    )


def _find_read(
    context: AnalysisContext, outputs: Mapping[Node, Sequence[Node]], is_carried: StartTest
) -> tuple[Node, Node] | None:
    """The skip and the anchor, a value before it that reaches all others through mixing ops."""
    for skip, others in outputs.items():
        for anchor in context.walk_back(skip) if others else ():
            if is_carried(anchor, others) and context.branch(anchor, others) is not None:
                return skip, anchor
    return None


def _find_read_of_own_skips(
    context: AnalysisContext, outputs: Mapping[Node, Sequence[Node]], is_carried: StartTest
) -> tuple[Node, Node] | None:
    """The skip and the anchor if some other summands are skips inside the branch.

    These are a few cheap steps after the anchor. A value that the mixing ops of the branch read is
    not the skip of the block. Of several other values, the skip is the first that only scales the
    stream.
    """
    found: dict[Node, Node] = {}
    for skip, others in outputs.items():
        for anchor in context.walk_back(skip):
            if not is_carried(anchor, others):
                continue
            is_mixed = context.reach(anchor, others)
            own = [other for other in others if not is_mixed.get(other)]
            if len(own) < len(others):
                if all(anchor in context.walk_back(other) for other in own):
                    found[skip] = anchor
                break
    scaled = (read for read in found.items() if context.is_scaled(*read))
    return next(scaled if len(found) > 1 else iter(found.items()), None)


def _static_block_behind(
    context: AnalysisContext, value: Node, starts_stream: StartTest
) -> Block | None:
    """The block of static values whose sum leads to the static `value` through cheap steps."""
    for node in context.walk_back(value):
        if context.summands(node):
            return _as_block(context, node, *flatten(context, node), starts_stream)
    return None


def _find_groups(context: AnalysisContext, found: Sequence[Block]) -> list[Block]:
    """The blocks of `found` with a branch that holds two or more linked blocks."""
    by_add = {block.add: block for block in found}
    writer = {block: find_writer(context, block.anchor, by_add) for block in found}
    # A chain in a branch that starts at a static value does not continue the stream.
    apart = starting_at(context.static, found, writer)

    def is_group(block: Block) -> bool:
        inside = {by_add[node] for node in block.branch if node in by_add} - apart
        if any(writer[other] in inside for other in inside):
            return True
        return any(_ends_a_run(output, block, inside) for output in block.outputs if inside)

    def _ends_a_run(output: Node, block: Block, inside: Collection[Block]) -> bool:
        end = find_writer(context, output, by_add)
        if end is None or end not in inside:
            return False
        others = [other for other in block.outputs if other is not output]
        if end.skip is block.anchor or (others and end.anchor is block.anchor):
            return True
        return any(context.branch(output, [other]) for other in others)

    return [block for block in found if is_group(block)]
