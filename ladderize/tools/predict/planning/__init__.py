"""What a ladder would gain on hardware that one need not have: `ladderize plan`.

Report ── workload.py ── planned_nets.py ── forecast.py ──┬── plan ── plan_tables.py
 of a trace   costs for any   standard, ladder,           ├── limits.py: where the gain ends
              batch, length   parallel, bound             └── confidence.py

routed.py makes of a workload that of one rank, where each rank holds whole experts.
hardware/calibrated.toml is fitted by bench/calibrate.py.
"""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass

from ladderize.config.block_plan import BlockPlan
from ladderize.config.hardware import Hardware, hardware_of
from ladderize.errors import LadderError
from ladderize.report.report import Report
from ladderize.tools.predict.planning.confidence import Confidence, confidence
from ladderize.tools.predict.planning.damage_curve import DamagePoint, damage_curve
from ladderize.tools.predict.planning.forecast import Forecast, Request, forecast
from ladderize.tools.predict.planning.limits import Fewest, Limits, fewest_layers, limits
from ladderize.tools.predict.planning.planned_nets import variants
from ladderize.tools.predict.planning.routed import RoutedExperts, expert_parallel
from ladderize.tools.predict.planning.workload import workload_of


@dataclass(frozen=True)
class PlannedBatch:
    """What is predicted for one batch.

    Attributes:
        batch: examples at once.
        forecasts: of each variant.
        fewest: layers that give 90 % of the ladder's gain.
    """

    batch: int
    forecasts: tuple[Forecast, ...]
    fewest: Fewest

    def of(self, variant: str) -> Forecast:
        return next(found for found in self.forecasts if found.variant == variant)

    def speedup(self, variant: str) -> float:
        """Tokens/s over those of the standard model."""
        return self.of(variant).tokens_per_s / self.of("standard").tokens_per_s


@dataclass(frozen=True)
class LadderPlan:
    """A plan.

    Attributes:
        hardware: what it is of.
        prompt, new: tokens of each example.
        num_blocks, num_stale, staleness: of the ladder.
        dtype: of the residual stream.
        connectivity: what converted blocks leave out, and the name of the variant with it.
        batches: what is predicted for each.
        limits: where the gain of the first batch ends.
        confidence: how sure all of it is.
        damage: for the first batch, sets of blocks with what they cost; from slow to fast.
    """

    hardware: Hardware
    prompt: int
    new: int
    num_blocks: int
    num_stale: int
    staleness: int
    connectivity: str
    batches: tuple[PlannedBatch, ...]
    limits: Limits
    confidence: Confidence
    damage: tuple[DamagePoint, ...] = ()
    dtype: str = ""

    def to_json(self) -> str:
        """All of it; each batch with its speed-ups."""
        data = dataclasses.asdict(self)
        for found, held in zip(self.batches, data["batches"], strict=True):
            held["speedup"] = {f.variant: found.speedup(f.variant) for f in found.forecasts}
        return json.dumps(data, indent=1)


def plan(
    report: Report,
    hardware: Hardware | str,
    batches: Sequence[int] = (1,),
    prompt: int = 1024,
    new: int = 512,
    measured: BlockPlan | None = None,
    experts: str = "tensor",
    routed: RoutedExperts | None = None,
    desync: int | None = None,
) -> LadderPlan:
    """Predict the model in `report` as it is, as the ladder that was asked for, and two others.

    Args:
        report: of `ladderize.explain`, for any batch and length: costs are scaled. If its
            connectivity is not a ladder's, that variant is predicted next to the ladder.
        hardware: or its name, as `h100x8-nvlink`.
        batches: how many examples at once, one prediction for each.
        prompt, new: tokens of each example, given and generated.
        measured: what sets of its blocks cost, by `ladderize sensitivity`.
        experts: "tensor", every expert split over the ranks, or "expert", whole ones on each rank,
            which has its own tokens and sends them to the experts and back.
        routed: the experts of the model, by `routed_experts`; needed for "expert".
        desync: predict a desync residual too, of whose blocks every so many-th is reduced.

    Raises:
        LadderError: the hardware is not known, the model cannot be planned, its experts cannot be
            divided, or `measured` is of another one.

    Example:
        >>> found = plan(ladderize.explain(model, input_ids), "h100x8-nvlink", [1, 16])
        >>> found.batches[0].speedup("ladder")
    """
    if not batches or min(*batches, prompt, new) < 1:
        raise LadderError(f"batches={batches}, prompt={prompt}, new={new}: each is at least 1.")
    if desync is not None and desync < 2:
        raise LadderError(f"desync={desync}: of at least 2 blocks one is reduced.")
    hardware = hardware_of(hardware) if isinstance(hardware, str) else hardware
    workload = workload_of(report)
    if experts == "expert":
        modules = [block.module for block in report.blocks]
        workload = expert_parallel(workload, modules, routed, hardware.ranks)
    elif experts != "tensor":
        raise LadderError(f'experts={experts!r}: it is "tensor" or "expert".')
    nets = variants(workload, desync or 0)
    requests = [Request(batch, prompt, new) for batch in batches]
    rows = tuple(
        PlannedBatch(
            request.batch,
            tuple(forecast(net, request, hardware) for net in nets),
            fewest_layers(workload, request, hardware),
        )
        for request in requests
    )
    return LadderPlan(
        hardware,
        prompt,
        new,
        len(workload.blocks),
        report.num_stale,
        workload.staleness,
        workload.connectivity,
        rows,
        limits(workload, requests[0], hardware),
        confidence(workload, requests, hardware, [block.kind for block in report.blocks]),
        () if measured is None else damage_curve(workload, requests[0], hardware, measured),
        report.dtype,
    )
