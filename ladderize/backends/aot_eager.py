"""Trace forward and backward to ATen, defer the waits in both, and run them op by op."""

from collections.abc import Callable, Sequence
from typing import Any

from torch.fx import GraphModule

from ladderize import compat
from ladderize.backends.flights import FlightReport, find_flights
from ladderize.backends.lowered import Lowered
from ladderize.config.options import LadderConfig
from ladderize.passes.after_autograd import defer
from ladderize.passes.defer_waits import DeferWaits


def lower_to_aot_eager(
    gm: GraphModule,
    example_inputs: Sequence[Any],
    config: LadderConfig,
) -> Lowered:
    flights: list[FlightReport] = []

    def defer_and_run(gm: GraphModule, _: Sequence[Any]) -> Callable[..., Any]:
        defer(gm, DeferWaits.of(config))
        flights.extend(find_flights(gm))
        return compat.boxed(gm.forward)

    run = compat.aot_compile(gm, example_inputs, defer_and_run)
    return Lowered(run, flights=tuple(flights))
