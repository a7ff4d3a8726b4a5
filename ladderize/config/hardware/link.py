"""A link between ranks: how long a collective takes on it, in the alpha-beta model.

seconds = latency + share * bytes / bandwidth      share: 2 (n - 1) / n of an all-reduce,
                                                   (n - 1) / n of a reduce-scatter, an all-gather,
                                                   an all-to-all; 1 of a broadcast, a message
"""

import tomllib
from dataclasses import dataclass
from functools import cache
from importlib import resources
from math import inf
from typing import Any

from ladderize.errors import LadderError

# How often the bytes of the whole tensor cross the link of a rank, over (n - 1) / n.
_CROSSINGS = {"all_reduce": 2, "reduce_scatter": 1, "all_gather": 1, "all_to_all": 1}
# All of the bytes cross the link of a rank once, however many ranks there are.
_SENT_WHOLE = frozenset({"broadcast", "p2p"})


@dataclass(frozen=True)
class Link:
    """How ranks are connected.

    Attributes:
        name: as in `links.toml`.
        ranks: that share it.
        latency: alpha, seconds of a collective of nothing.
        bandwidth: beta, bytes per second that a rank sends.
        source: where the numbers are from.
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
        """Of a collective over all ranks, by rings (Thakur et al., 2005).

        Args:
            num_bytes: of the whole tensor: what an all-reduce returns, what a reduce-scatter is
                given, what an all-gather returns. Of an all-to-all what a rank is given; with
                unequal splits of the one that sends most.
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
    """A `.toml` file beside this module."""
    file = resources.files("ladderize.config.hardware").joinpath(f"{name}.toml")
    return tomllib.loads(file.read_text("utf-8"))


@cache
def known_links() -> dict[str, Link]:
    """Those of `links.toml` by name."""
    return {name: Link(name, **fields) for name, fields in read_table("links").items()}


def link_of(name: str) -> Link:
    """The link called `name`.

    Raises:
        LadderError: there is none; the known names are listed.
    """
    if name not in known_links():
        raise LadderError(f"There is no link called {name!r}.", cure=", ".join(known_links()))
    return known_links()[name]
