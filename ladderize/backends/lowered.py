"""What every lowering returns."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ladderize.backends.flights import FlightReport
from ladderize.backends.tensorrt.engines.engine_report import EnginesReport


@dataclass(frozen=True)
class Lowered:
    """A graph that runs.

    Attributes:
        run: takes the inputs of the graph, returns its outputs.
        engines: what is to be said of them, None where there are none.
        flights: the collectives in the order that was compiled; empty where that is not known, as
            for code out of a cache.
    """

    run: Callable[..., Any]
    engines: EnginesReport | None = None
    flights: tuple[FlightReport, ...] = ()
