"""The blocks of each stream that the options choose."""

from collections.abc import Mapping, Sequence

from ladderize.config.ladder_entry import FOR_ANOTHER_LADDER, ContradictionError, LadderEntry
from ladderize.config.options import LadderConfig
from ladderize.config.selection import ranges_of
from ladderize.errors import Blocker, LadderError, counted
from ladderize.streams.block import Block, Stream
from ladderize.streams.joins import StaleReads


def choose_blocks(streams: Sequence[Stream], config: LadderConfig) -> tuple[frozenset[int], ...]:
    """For each stream, the indices of the blocks to convert.

    `blocks=` counts the blocks of all streams in graph order. `layers=` takes layer indices, which
    apply to every stream (an encoder's and a decoder's). Only `blocks=` can choose a prologue. A
    stream with stale blocks is left unchanged and not counted, except by `expect_blocks=`.

    Raises:
        LadderError: the number of blocks is not the expected one, the selection is empty or out of
            range, `layers=` is used with blocks outside of any module list, or the checkpoint is a
            ladder of other blocks.
    """
    _check_count(streams, config.expect_blocks)
    convertible = _convertible(streams)
    found = _chosen_by(convertible, config)
    if config.checkpoint is not None:
        _refuse_another_ladder(convertible, found, config, config.checkpoint)
    by_stream = dict(zip(convertible, found, strict=True))
    return tuple(by_stream.get(stream, frozenset()) for stream in streams)


def number_blocks(streams: Sequence[Stream]) -> dict[Block, int]:
    """The number of each block for `blocks=`: blocks of all convertible streams, in graph order."""
    counted = (block for stream in _convertible(streams) for block in stream.blocks)
    return {block: number for number, block in enumerate(counted)}


def chosen_numbers(streams: Sequence[Stream], chosen: Sequence[frozenset[int]]) -> tuple[int, ...]:
    """The numbers of the chosen blocks.

    Args:
        streams: streams of the graph.
        chosen: for each stream, the indices of its chosen blocks.
    """
    pairs = list(zip(streams, chosen, strict=True))
    of_block = {block: indices for stream, indices in pairs for block in stream.blocks}
    numbers = number_blocks(streams)
    return tuple(number for block, number in numbers.items() if block.index in of_block[block])


def _convertible(streams: Sequence[Stream]) -> list[Stream]:
    return [stream for stream in streams if not stream.stale_blocks]


def _chosen_by(convertible: Sequence[Stream], config: LadderConfig) -> tuple[frozenset[int], ...]:
    if not convertible or not config.names_blocks:
        return tuple(map(by_default, convertible))
    if config.blocks is not None or config.selection.plan is not None:
        return _by_block(convertible, config)
    return _by_layer(convertible, config)


def _refuse_another_ladder(
    convertible: Sequence[Stream],
    found: Sequence[frozenset[int]],
    config: LadderConfig,
    entry: LadderEntry,
) -> None:
    """Raise `ContradictionError` unless `found` has the blocks of the checkpoint's ladder."""
    said = _chosen_by(convertible, LadderConfig(**entry.selection))
    if list(said) != list(found):
        name = "layers" if config.blocks is None else "blocks"
        asked, own = (ranges_of(chosen_numbers(convertible, each)) for each in (found, said))
        raise ContradictionError(
            "The options choose other blocks than the checkpoint's ladder has:",
            [
                Blocker(f"{name}={getattr(config, name)!r} chooses blocks {asked}"),
                Blocker(f"config.json has {entry}: blocks {own}"),
            ],
            FOR_ANOTHER_LADDER,
        )


def refuse_other_reads(reads: Sequence[StaleReads], stale: Sequence[Mapping[int, int]]) -> None:
    """Raise `LadderError` for the blocks that already read stale and should read another value.

    Args:
        reads: for each stream of the standard model, the wanted reads of its blocks.
        stale: for each stream, the blocks that already read stale, with the index of the block
            whose anchor they read.
    """
    others = [
        Blocker.at(
            wanted.stream.blocks[index].add,
            _other_read(index, source, wanted.sources.get(index, index)),
        )
        for wanted, already in zip(reads, stale, strict=True)
        for index, source in already.items()
        if wanted.sources.get(index, index) != source
    ]
    if others:
        raise LadderError(
            "These blocks already read stale, but not as the options ask:",
            others,
            "choose them too, with their present staleness; or convert the standard model",
        )


def _other_read(index: int, source: int, wanted: int) -> str:
    asked = "is not chosen" if wanted == index else f"should read {_earlier(index - wanted)}"
    return f"block {index} already reads {_earlier(index - source)} and {asked}"


def _earlier(count: int) -> str:
    return f"{counted(count, 'block')} earlier"


def by_default(stream: Stream) -> frozenset[int]:
    """The indices of all blocks except the prologues."""
    return frozenset(block.index for block in stream.blocks if not block.is_prologue)


def _check_count(streams: Sequence[Stream], expected: int | None) -> None:
    total = sum(len(stream.blocks) + len(stream.stale_blocks) for stream in streams)
    if expected is None or total == expected:
        return
    found = [
        *((block.add, f"block {block.index}") for s in streams for block in s.blocks),
        *((b.add, "a block that already reads stale") for s in streams for b in s.stale_blocks),
    ]
    raise LadderError(
        f"{expected} blocks were expected, {total} were found:",
        [Blocker.at(node, what) for node, what in found],
        "compare with the list; the analysis did not find the add of a missing block",
    )


def _by_block(streams: Sequence[Stream], config: LadderConfig) -> tuple[frozenset[int], ...]:
    numbers, plan = number_blocks(streams), config.selection.plan
    option = "blocks" if config.layers is None else "layers"
    try:
        chosen = config.selection.resolve(len(numbers))
    except ValueError as error:
        raise LadderError(f"{option}={error}") from None
    if plan is not None and plan.layers != [block.layer for block in numbers]:
        raise LadderError(
            f"{option}={config.selection.text!r} was measured on another model ({plan.model}), "
            "whose blocks are in other layers.",
            cure="measure this model: ladderize sensitivity",
        )
    return tuple(
        frozenset(block.index for block in stream.blocks if numbers[block] in chosen)
        for stream in streams
    )


def _by_layer(streams: Sequence[Stream], config: LadderConfig) -> tuple[frozenset[int], ...]:
    homeless = [
        Blocker.at(block.add, f"block {block.index} is in no module list")
        for stream in streams
        for block in stream.blocks
        if block.layer is None and not block.is_prologue
    ]
    if homeless:
        raise LadderError(
            "layers= needs every block to be in a module list:", homeless, "count with blocks="
        )
    count = 1 + max((b.layer for s in streams for b in s.blocks if b.layer is not None), default=-1)
    try:
        chosen = config.selection.resolve(count)
    except ValueError as error:
        raise LadderError(f"layers={error}") from None
    return tuple(
        frozenset(block.index for block in stream.blocks if block.layer in chosen)
        for stream in streams
    )
