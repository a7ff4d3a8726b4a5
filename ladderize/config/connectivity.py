"""The option `connectivity`: what a converted branch leaves out of the block before it.

                  after x + shared + routed     after x + attention
    "ladder"      reads x                       reads x
    "farskip"     reads x + shared              reads x + attention; experts read x
    "instella"    reads x + shared              the next block of the same layer reads x

`streams/contributions.py` applies it to the blocks and summands of a graph.
"""

from collections.abc import Iterator, Sequence
from typing import Literal

from ladderize.errors import nearest

Name = Literal["ladder", "farskip", "instella"]
LADDER, FARSKIP, INSTELLA = "ladder", "farskip", "instella"
NAMES = (LADDER, FARSKIP, INSTELLA)


def connectivity_problems(name: object, staleness: object, routed: object) -> Iterator[str]:
    """Problems with the options `connectivity`, `staleness` and `routed`, alone or together.

    Args:
        name, staleness, routed: values of the three options.
    """
    if name not in NAMES:
        shown = ", ".join(map(repr, NAMES))
        yield f"connectivity={name!r} is not one of {shown}{nearest(name, NAMES)}"
    elif name != LADDER and staleness != 1:
        yield f"staleness={staleness!r} goes with connectivity='ladder', {name!r} has 1"
    if routed is None:
        return
    if not patterns_of(routed):
        yield f"routed={routed!r} is neither a module path nor a list of them"
    elif name == LADDER:
        yield "routed= goes with connectivity='farskip'; a ladder leaves out whole blocks"


def patterns_of(routed: object) -> tuple[str, ...]:
    """The module path patterns in the option `routed`; empty if it is None or not text."""
    found = [routed] if isinstance(routed, str) else routed
    if not isinstance(found, Sequence) or not all(isinstance(each, str) and each for each in found):
        return ()
    return tuple(found)
