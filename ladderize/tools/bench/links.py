"""The links to measure on, from what was given on the command line."""

from collections.abc import Sequence

from ladderize.errors import LadderError
from ladderize.tools.bench.bench_settings import UNLIMITED, Share
from ladderize.tools.predict.hardware import Link, link_of


def choose_links(
    names: Sequence[str],
    shares: Sequence[float],
    latencies: Sequence[float],
    bandwidth: float | None,
    ranks: int,
) -> tuple[Link | Share, ...]:
    """In the order given.

    Args:
        names: of `links.toml`.
        shares: of a block's compute, that a collective takes.
        latencies: in seconds, of links with `bandwidth` bytes per second, None for no limit.
        ranks: that share a link which has no name.

    Raises:
        LadderError: there is no such link, or a bandwidth without a latency.
    """
    if bandwidth is not None and not latencies:
        raise LadderError(
            "A link needs a latency as well as a bandwidth.", cure="give --alpha-us too"
        )
    named = [link_of(name) for name in names]  # two processes stand in for eight GPUs
    made = [
        Link(f"{latency * 1e6:g} µs", ranks, latency, bandwidth or UNLIMITED)
        for latency in latencies
    ]
    return (*named, *map(Share, shares), *made)
