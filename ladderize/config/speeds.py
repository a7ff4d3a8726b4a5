"""What a rank reaches, as far as an order of transfers and compute depends on it."""

from dataclasses import dataclass
from math import inf

from ladderize.errors import LadderError


@dataclass(frozen=True)
class Speeds:
    """Rates of one rank and of its link, named by the user or measured.

    Attributes:
        flops: FLOPs per second.
        bandwidth: bytes per second that a rank sends.
        latency: seconds of a collective of nothing.
    """

    flops: float
    bandwidth: float
    latency: float = 0.0

    def __post_init__(self) -> None:
        rates = all(0 < rate < inf for rate in (self.flops, self.bandwidth))
        if not (rates and 0 <= self.latency < inf):
            raise LadderError(f"{self} is not possible: rates must be above 0, latency 0 or more.")
