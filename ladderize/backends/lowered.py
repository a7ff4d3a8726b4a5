"""The result of a lowering."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ladderize.backends.flights import FlightReport
from ladderize.backends.tensorrt.engines.engine_report import EnginesReport


@dataclass(frozen=True)
class Lowered:
    """A lowered graph.

    Attributes:
        run: callable from the inputs of the graph to its outputs.
        engines: report on TensorRT engines, None without engines.
        flights: collectives in the compiled order; empty if unknown, as for code from a cache.
    """

    run: Callable[..., Any]
    engines: EnginesReport | None = None
    flights: tuple[FlightReport, ...] = ()
