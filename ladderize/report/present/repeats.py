"""Find runs of repeated layers, which are shown once and then folded.

layers  A B B B B B      A  B  (4 like B)
        A M M A M M A    A M M (4 like these)
"""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from ladderize.report.data import BlockReport
from ladderize.report.naming import parse

Layer = tuple[BlockReport, ...]

# Length of the longest pattern of layers (Jamba repeats after 8).
MAX_PERIOD = 12
# Least number of layers to fold.
MIN_HIDDEN = 2


@dataclass(frozen=True)
class Run:
    """Blocks to show, ending in the `pattern` that the `hidden` ones repeat."""

    shown: Layer
    pattern: Layer = ()
    hidden: Layer = ()


def find_runs(blocks: Sequence[BlockReport]) -> Iterator[Run]:
    """Cut `blocks` into runs, in order, in linear time."""
    layers = [tuple(group) for _, group in groupby(blocks, _layer)]
    looks = [_look(layer) for layer in layers]
    start, at = 0, 0
    while at < len(layers):
        period, end = _repetition(looks, at)
        if end - at - period < MIN_HIDDEN:
            at += 1
            continue
        pattern = _flat(layers[at : at + period])
        yield Run(_flat(layers[start : at + period]), pattern, _flat(layers[at + period : end]))
        start = at = end
    if start < len(layers):
        yield Run(_flat(layers[start:]))


def _layer(block: BlockReport) -> Hashable:
    return ("block", block.index) if block.layer is None else ("layer", block.layer)


def _repetition(looks: Sequence[Hashable], start: int) -> tuple[int, int]:
    """The shortest pattern that repeats from `start`: its period and the end of the run."""
    for period in range(1, MAX_PERIOD + 1):
        end = start + period
        while end < len(looks) and looks[end] == looks[end - period]:
            end += 1
        if end - start >= 2 * period and end - start - period >= MIN_HIDDEN:
            return period, end
    return 0, start


def _look(layer: Layer) -> Hashable:
    """What is shown of a layer, with numbers relative to the layer."""
    return tuple(
        (
            block.kind,
            _relative_path(block),
            _relative_reads(block, block.reads_before),
            _relative_reads(block, block.reads_after),
            block.is_converted,
            block.was_stale,
            block.source,
        )
        for block in layer
    )


def _relative_path(block: BlockReport) -> tuple[str, ...]:
    parts = block.module.split(".")
    number = str(block.layer)
    if number in parts:
        parts[parts.index(number)] = "#"
    return tuple(parts)


def _relative_reads(block: BlockReport, reads: tuple[str, ...]) -> Hashable:
    values = [parse(read) for read in reads]
    return tuple(
        (value.letter, value.stream, value.index - block.index * (value.stream == block.stream))
        for value in values
    )


def _flat(layers: Sequence[Layer]) -> Layer:
    return tuple(block for layer in layers for block in layer)
