"""The pipeline after autograd, on the forward and the backward ATen graph alike.

    JoinWaits ── DeferWaits ── PinOrder

Each lowering takes as much of it as survives there: an eager one runs the nodes in their order and
needs no pins, TensorRT cuts the deferred order into islands.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch.fx import GraphModule

from ladderize.graph.in_flight import check_in_flight
from ladderize.passes.defer_waits import DeferWaits
from ladderize.passes.join_waits import JoinWaits
from ladderize.passes.pin_order import PinOrder
from ladderize.passes.runner import Log, Step, apply, apply_pass, run_steps


@dataclass
class Deferring:
    """A graph on its way through the pipeline."""

    gm: GraphModule
    waits: DeferWaits = field(default_factory=DeferWaits)
    log: Log = field(default_factory=Log)


DEFERRED: tuple[Step[Deferring], ...] = (
    apply(JoinWaits, invariant=lambda gm: check_in_flight(gm.graph)),
    Step("DeferWaits", lambda state: apply_pass(state.gm, state.waits)),
)
AFTER_AUTOGRAD: tuple[Step[Deferring], ...] = (
    *DEFERRED,
    apply(PinOrder),  # last: it ties nodes together in the order that it finds
)


def defer(
    gm: GraphModule,
    waits: DeferWaits | None = None,
    steps: Sequence[Step[Deferring]] = DEFERRED,
) -> None:
    """Run `steps` on `gm` in place.

    Args:
        gm: forward or backward.
        waits: the pass as configured; with its defaults if not given.
        steps: of `AFTER_AUTOGRAD`.

    Raises:
        LadderError: a collective is launched and not properly waited for.
    """
    run_steps(steps, Deferring(gm, waits or DeferWaits()))
