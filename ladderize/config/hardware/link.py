"""A link between ranks: the time of a collective in the alpha-beta model.

seconds = latency + share * bytes / bandwidth      share: 2 (n - 1) / n for an all-reduce,
                                                   (n - 1) / n for a reduce-scatter, all-gather
                                                   or all-to-all; 1 for a broadcast or a message
"""

import tomllib
from dataclasses import dataclass
from functools import cache
from importlib import resources
from math import inf
from typing import Any

from ladderize.errors import LadderError

# Times that the whole tensor crosses a rank's link, divided by (n - 1) / n.
_CROSSINGS = {"all_reduce": 2, "reduce_scatter": 1, "all_gather": 1, "all_to_all": 1}
# The whole tensor crosses a rank's link once, for any number of ranks.
_SENT_WHOLE = frozenset({"broadcast", "p2p"})


@dataclass(frozen=True)
class Link:
    """The connection between ranks.

    Attributes:
        name: name in `links.toml`.
        ranks: number of ranks.
        latency: alpha, seconds of an empty collective.
        bandwidth: beta, bytes per second that a rank sends.
        source: reference for the numbers.
    """

    name: str
    ranks: int
    latency: float
    bandwidth: float
    source: str = ""

    def __post_init__(self) -> None:
        is_possible = self.ranks >= 1 and 0 < self.bandwidth < inf and 0 <= self.latency < inf
        if not is_possible:
            raise LadderError(
                f"{self} is not a possible link: ranks must be at least 1, bandwidth above 0, "
                "latency 0 or more, all finite."
            )

    def seconds(self, num_bytes: float, op: str = "all_reduce") -> float:
        """Seconds of a ring collective over all ranks (Thakur et al., 2005).

        Args:
            num_bytes: bytes of the whole tensor: the output of an all-reduce or all-gather, the
                input of a reduce-scatter. For an all-to-all, the input of one rank; with unequal
                splits, of the rank that sends the most.
            op: "all_reduce", "reduce_scatter", "all_gather", "all_to_all", "broadcast" or "p2p".
        """
        return self.latency + self.bytes_sent(num_bytes, op) / self.bandwidth

    def bytes_sent(self, num_bytes: float, op: str) -> float:
        """Bytes that a rank sends; the arguments are those of `seconds`."""
        share = 1.0 if op in _SENT_WHOLE else _CROSSINGS[op] * (self.ranks - 1) / self.ranks
        return share * num_bytes

    def __str__(self) -> str:
        return (
            f"{self.name} ({self.ranks} ranks, {self.bandwidth / 1e9:g} GB/s, "
            f"latency {self.latency * 1e6:g} µs)"
        )


@cache
def read_table(name: str) -> dict[str, dict[str, Any]]:
    """A `.toml` file next to this module."""
    file = resources.files("ladderize.config.hardware").joinpath(f"{name}.toml")
    return tomllib.loads(file.read_text("utf-8"))


@cache
def known_links() -> dict[str, Link]:
    """The links of `links.toml` by name."""
    return {name: Link(name, **fields) for name, fields in read_table("links").items()}


def link_of(name: str) -> Link:
    """The link called `name`.

    Raises:
        LadderError: no such link; the known names are listed.
    """
    if name not in known_links():
        raise LadderError(f"There is no link called {name!r}.", cure=", ".join(known_links()))
    return known_links()[name]
