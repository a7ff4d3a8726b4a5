"""The order of collectives in emitted code, and code with a line moved to plant a fault."""

import re

from ladderize.backends.emitted import order_string, read_events


def collectives(source: str) -> str:
    """`AR_0 AR_1 W_0 W_1`: only launches and waits."""
    words = order_string(read_events(source)).split()
    return " ".join(word for word in words if re.match(r"(AR|RS|AG|A2A|W)_", word))


def moved(lines: list[str], line: int, before: int) -> str:
    """The code with one line moved before another; all others keep their numbers."""
    rest = [*lines[:line], "", *lines[line + 1 :]]
    return "\n".join([*rest[:before], lines[line], *rest[before:]])
