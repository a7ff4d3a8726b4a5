"""Names of blocks and of stream values, the same as in `recurrence.py`."""

import re
from dataclasses import dataclass

from ladderize.report.data import BlockReport

LANDED = "s"
"""Letter of a block's sum without the summands that are in flight: `s3`."""

_VALUE = re.compile(r"([a-z])(\d+)(?:_(\d+))?")


@dataclass(frozen=True)
class ValueName:
    """A parsed name: `x3_1` is the anchor of block 3 of stream 1."""

    letter: str
    index: int
    stream: int


def name(letter: str, block: BlockReport, offset: int = 0) -> str:
    """The name of the value `letter` at `block`, or `offset` blocks later."""
    suffix = f"_{block.stream}" if block.stream else ""
    return f"{letter}{block.index + offset}{suffix}"


def block_name(block: BlockReport) -> str:
    return name("h", block)


def parse(text: str) -> ValueName:
    found = _VALUE.fullmatch(text)
    assert found is not None, text
    letter, index, stream = found.groups()
    return ValueName(letter, int(index), int(stream or 0))
