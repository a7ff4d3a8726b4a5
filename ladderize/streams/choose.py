"""Which blocks of which stream the options choose."""

from collections.abc import Sequence

from ladderize.config.options import LadderConfig
from ladderize.errors import Blocker, LadderError
from ladderize.streams.block import Stream


def choose_blocks(streams: Sequence[Stream], config: LadderConfig) -> tuple[frozenset[int], ...]:
    """For each stream the indices of the blocks to convert.

    `blocks=` counts through all streams in graph order; `layers=` takes layer indices, the same
    ones in every stream (an encoder's and a decoder's). A prologue, blocks in no list ahead of the
    first layer, is chosen by `blocks=` alone. A stream that is a ladder already is left alone and
    not counted, except by `expect_blocks=`.

    Raises:
        LadderError: when the number of blocks is not the expected one, the selection is empty or
            out of range, `layers=` is asked of blocks that are in no module list, or blocks are
            chosen of a net that is a ladder already.
    """
    _check_count(streams, config.expect_blocks)
    _refuse_choice_of_ladders(streams, config)
    convertible = [stream for stream in streams if not stream.stale_blocks]
    if not convertible or (config.blocks is None and config.layers == "all"):
        found = tuple(map(by_default, convertible))
    elif config.blocks is not None:
        found = _by_block(convertible, config)
    else:
        found = _by_layer(convertible, config)
    by_stream = dict(zip(convertible, found, strict=True))
    return tuple(by_stream.get(stream, frozenset()) for stream in streams)


def by_default(stream: Stream) -> frozenset[int]:
    """The indices of all blocks behind a prologue."""
    return frozenset(block.index for block in stream.blocks if not block.is_prologue)


def _check_count(streams: Sequence[Stream], expected: int | None) -> None:
    total = sum(len(stream.blocks) + len(stream.stale_blocks) for stream in streams)
    if expected is None or total == expected:
        return
    found = [
        *((block.add, f"block {block.index}") for s in streams for block in s.blocks),
        *((b.add, "a block that reads stale already") for s in streams for b in s.stale_blocks),
    ]
    raise LadderError(
        f"{expected} blocks were expected, {total} were found:",
        [Blocker.at(node, what) for node, what in found],
        "compare with the list; a missing block is one whose add the analysis did not see",
    )


def _refuse_choice_of_ladders(streams: Sequence[Stream], config: LadderConfig) -> None:
    given = {"layers": config.layers, "blocks": config.blocks}
    chosen = [
        Blocker(f"{name}={value!r}") for name, value in given.items() if value not in ("all", None)
    ]
    stale = [block for stream in streams for block in stream.stale_blocks]
    if chosen and stale:
        raise LadderError(
            "These options choose blocks of a net that is a ladder already, whose reads are left "
            "as they are:",
            [*chosen, Blocker.at(stale[0].add, f"the first of {len(stale)} stale blocks")],
            "leave the options out; or ladder the standard net with them",
        )


def _by_block(streams: Sequence[Stream], config: LadderConfig) -> tuple[frozenset[int], ...]:
    total = sum(len(stream.blocks) for stream in streams)
    try:
        chosen = config.selection.resolve(total)
    except ValueError as error:
        raise LadderError(f"blocks={error}") from None
    offsets = [sum(len(s.blocks) for s in streams[:i]) for i in range(len(streams))]
    return tuple(
        frozenset(i for i in range(len(stream.blocks)) if i + offset in chosen)
        for stream, offset in zip(streams, offsets, strict=True)
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
