"""Lines that say which blocks hide each collective, in the compiled order.

8 all_to_all_single behind attention, forward
1 all_to_all_single exposed, forward: nothing is left to compute
"""

from collections import Counter
from collections.abc import Iterator

from ladderize.backends.flights import FlightReport
from ladderize.report.data import BlockReport, GraphReport
from ladderize.report.naming import block_name


def describe_flights(graph: GraphReport, full: bool) -> Iterator[str]:
    """Lines about `graph.flights`; equal collectives are counted, unless `full`."""
    blocks = [block for stream in graph.streams for block in stream.blocks]
    if full:
        yield from (_line(flight, blocks) for flight in graph.flights)
        return
    alike = Counter((f.op, _where(f), _kinds(f, blocks)) for f in graph.flights)
    for (op, where, how), count in alike.items():
        yield f"{count} {op} {how}, {where}"


def _line(flight: FlightReport, blocks: list[BlockReport]) -> str:
    names = [block_name(b) for b in blocks if _is_in(b, flight)] or list(flight.behind)
    how = f"exposed: {flight.reason}" if flight.reason else f"behind {', '.join(names)}"
    return f"{flight.op} of {flight.source}, {_where(flight)}: {how}"


def _kinds(flight: FlightReport, blocks: list[BlockReport]) -> str:
    """The kinds of the blocks that compute in the meantime, each once."""
    if flight.reason:
        return f"exposed ({flight.reason.partition(' by ')[0]})"
    kinds = dict.fromkeys(block.kind for block in blocks if _is_in(block, flight))
    return f"behind {', '.join(kinds) or 'ops outside of the blocks'}"


def _is_in(block: BlockReport, flight: FlightReport) -> bool:
    """Whether a module of `block` computes while `flight` is in flight."""
    return bool(block.module) and any(
        path == block.module or path.startswith(f"{block.module}.") for path in flight.behind
    )


def _where(flight: FlightReport) -> str:
    return "backward" if flight.is_backward else "forward"
