"""Run the rewritten graph op by op, with its waits deferred.

Only the forward pass has the deferred order; the autograd engine orders the backward pass.
`aot_eager` defers both.
"""

from collections.abc import Sequence
from typing import Any

from torch.fx import GraphModule

from ladderize.backends.flights import find_flights
from ladderize.backends.lowered import Lowered
from ladderize.config.options import LadderConfig
from ladderize.passes.defer_waits import DeferWaits
from ladderize.passes.runner import Log, run_pass


def lower_to_eager(
    gm: GraphModule,
    example_inputs: Sequence[Any],  # noqa: ARG001  # the signature of every lowering
    config: LadderConfig,
) -> Lowered:
    run_pass(gm, DeferWaits.of(config), Log())
    return Lowered(gm, flights=find_flights(gm))
