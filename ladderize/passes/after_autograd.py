"""The pipeline after autograd, for both forward and backward ATen graphs.

    JoinWaits ── DeferWaits ── PinOrder

Each lowering uses the part that it needs: an eager lowering runs nodes in order and needs no pins;
TensorRT cuts the deferred order into islands.
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
    """The state of the pipeline: a graph, the wait pass and the log."""

    gm: GraphModule
    waits: DeferWaits = field(default_factory=DeferWaits)
    log: Log = field(default_factory=Log)


DEFERRED: tuple[Step[Deferring], ...] = (
    apply(JoinWaits, invariant=lambda gm: check_in_flight(gm.graph)),
    Step("DeferWaits", lambda state: apply_pass(state.gm, state.waits)),
)
AFTER_AUTOGRAD: tuple[Step[Deferring], ...] = (
    *DEFERRED,
    apply(PinOrder),  # last, because it fixes the present order
)


def defer(
    gm: GraphModule,
    waits: DeferWaits | None = None,
    steps: Sequence[Step[Deferring]] = DEFERRED,
) -> None:
    """Run `steps` on `gm` in place.

    Args:
        gm: forward or backward graph.
        waits: configured pass; None uses its defaults.
        steps: steps of `AFTER_AUTOGRAD`.

    Raises:
        LadderError: a launched collective is not properly waited for.
    """
    run_steps(steps, Deferring(gm, waits or DeferWaits()))
