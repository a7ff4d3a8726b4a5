"""Find out what a wrong block computes instead, by trying guesses.

y3 = x3 + h3(x2)  is not found;  x3 + h3(x3) is   ── "its branch reads x3, not x2"
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.fx import Node

from ladderize.errors import source_line
from ladderize.report.snapshot import module_of
from ladderize.streams.block import Block
from ladderize.testing.verify.candidate import Candidate
from ladderize.testing.verify.locate import Wanted, relative_error
from ladderize.testing.verify.lockstep import run_ranks
from ladderize.testing.verify.reads import spell_name
from ladderize.testing.verify.substituted import Original, evaluate, without_part


def describe_block(wanted: Wanted) -> str:
    return describe(wanted.block, wanted.name[0])


def describe(block: Block, number: int) -> str:
    """`block 3 (model.layers.1.mlp, modeling_llama.py:312)`, of the stream `number`."""
    stream = f" of stream {number}" if number else ""
    source = source_line(block.add).rpartition("/")[2]
    place = ", ".join(part for part in (module_of(block), source) if part)
    return f"block {block.index}{stream}" + (f" ({place})" if place else "")


def diagnose(
    original: Original,
    values: Mapping[Node, Any],
    missing: Wanted,
    candidate: Candidate,
    arguments: Sequence[Sequence[Any]],
    rank: int,
    close: float,
) -> str:
    """Describe what `rank` computes instead of `missing`.

    Args:
        original: standard graph.
        values: values of the reference ladder.
        missing: first sum that the rank never computes.
        candidate: program to verify.
        arguments: arguments of each rank, as in the run that missed it.
        rank: rank that missed it.
        close: relative error up to which two values count as equal.
    """
    guesses = [*_guesses(original, values, missing)]
    hits: list[str] = []
    nearest: list[tuple[float, Tensor]] = []

    def see(at: int, node: Node, value: Any) -> None:
        if at != rank or node.op == "placeholder" or not isinstance(value, Tensor):
            return
        hits.extend(text for text, guess in guesses if relative_error(value, guess) <= close)
        off = missing.error(value)
        if off < (nearest[0][0] if nearest else float("inf")):
            nearest[:] = [(off, value)]

    run_ranks([part.gm for part in candidate.parts], arguments, see)
    spelled = spell_name(missing.name)
    if hits:
        return hits[0]
    if not nearest:
        return f"{spelled} is never computed: a result is read in flight, or shapes differ"
    off, value = nearest[0]
    if _is_one_vector(value - missing.value, close):
        return f"the same vector is added to {spelled} at every position (a bias added twice?)"
    return f"{spelled} is never computed; the nearest value is off by {off:.1e}"


def _guesses(
    original: Original, values: Mapping[Node, Any], missing: Wanted
) -> Iterator[tuple[str, Tensor]]:
    """What a block might compute instead, with the sum that would result."""
    number, _, index = missing.name
    stream = original.streams[number]
    block = missing.block
    source = original.reads[number].sources.get(index, index)
    right = values[stream.blocks[source].anchor]
    wanted = spell_name((number, "x", source))
    part = next((r for r in original.reads[number].partial if r.block is block), None)
    if part is not None:
        right = without_part(original.gm, part, values)
        wanted += " without what is in flight"
    for other in stream.blocks:
        if other.index == source and part is None:
            continue
        read = values[other.anchor]
        if read.shape == values[block.anchor].shape:
            how = _compared(other.index, index)
            text = f"its branch reads {spell_name((number, 'x', other.index))}, {how}"
            text += f", not {wanted}"
            yield text, _sum(original, values, block, read, None)
    for earlier in stream.blocks[: index + 1]:
        skip = values[earlier.anchor]
        if earlier.anchor is not block.skip and skip.shape == values[block.skip].shape:
            text = f"its skip carries {spell_name((number, 'x', earlier.index))}"
            yield text, _sum(original, values, block, _like(right, values, block), skip)


def _like(value: Tensor, values: Mapping[Node, Any], block: Block) -> Tensor | None:
    """`value` if it has the shape of the block's anchor, else None."""
    return value if value.shape == values[block.anchor].shape else None


def _compared(other: int, index: int) -> str:
    behind = index - other
    if behind == 0:
        return "fresh"
    return f"{behind} blocks stale" if behind > 1 else "one block stale"


def _sum(
    original: Original,
    values: Mapping[Node, Any],
    block: Block,
    read: Tensor | None,
    skip: Tensor | None,
) -> Tensor:
    """The sum of `block` with another value at its anchor or its skip."""
    inside: dict[Node, Any] = dict(values)
    if read is not None:
        inside[block.anchor] = read
        for node in block.branch:
            inside[node] = evaluate(original.gm, node, inside)
        inside[block.anchor] = values[block.anchor]
    if skip is not None:
        inside[block.skip] = skip
    for node in original.gm.graph.nodes:
        if node in block.partial_sums or node is block.add:
            inside[node] = evaluate(original.gm, node, inside)
    result: Tensor = inside[block.add]
    return result


def _is_one_vector(difference: Tensor, close: float) -> bool:
    """Whether it varies only along its last dim (along dim 1 for images)."""
    if difference.dim() < 2:
        return False
    flat = difference.movedim(1, -1) if difference.dim() == 4 else difference
    flat = flat.reshape(-1, flat.shape[-1])
    size = float(flat.abs().max())
    return size > 0 and float((flat - flat[0]).abs().max()) <= max(close, 1e-3) * size
