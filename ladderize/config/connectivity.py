"""The option `connectivity`: how much of the block before it a converted branch leaves out.

                  of a sum  x + shared + routed         of a sum  x + attention
    "ladder"      nothing of it is read                 nothing of it is read
    "farskip"     x + shared is read                    all of it is read, but by experts: x
    "instella"    x + shared is read                    x is read by the next block of its layer

`streams/connectivity.py` decides by it which blocks and which summands those are.
"""

from collections.abc import Iterator, Sequence
from typing import Literal

from ladderize.errors import nearest

Name = Literal["ladder", "farskip", "instella"]
LADDER, FARSKIP, INSTELLA = "ladder", "farskip", "instella"
NAMES = (LADDER, FARSKIP, INSTELLA)


def connectivity_problems(name: object, staleness: object, routed: object) -> Iterator[str]:
    """What is wrong with the options `connectivity`, `routed` and `staleness` together.

    Args:
        name, staleness, routed: the values of `connectivity`, `staleness` and `routed`.
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
    """The patterns of module paths in the option `routed`; none if it is not given, or no text."""
    found = [routed] if isinstance(routed, str) else routed
    if not isinstance(found, Sequence) or not all(isinstance(each, str) and each for each in found):
        return ()
    return tuple(found)
