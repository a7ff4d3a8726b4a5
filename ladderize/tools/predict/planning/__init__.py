"""`ladderize plan`: predict what a ladder gains on other hardware.

Report ── workload.py ── planned_nets.py ── forecast.py ──┬── plan ── plan_tables.py
 of a trace   costs for any   standard, ladder,           ├── limits.py: where the gain ends
              batch, length   parallel, bound             └── confidence.py

routed.py turns a workload into that of one rank of expert parallelism. bench/calibrate.py fits
hardware/calibrated.toml.
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
    """The predictions for one batch size.

    Attributes:
        batch: number of examples.
        forecasts: forecast of each variant.
        fewest: fewest layers that give 90 % of the ladder's gain.
    """

    batch: int
    forecasts: tuple[Forecast, ...]
    fewest: Fewest

    def of(self, variant: str) -> Forecast:
        return next(found for found in self.forecasts if found.variant == variant)

    def speedup(self, variant: str) -> float:
        """Tokens/s of `variant` over those of the standard model."""
        return self.of(variant).tokens_per_s / self.of("standard").tokens_per_s


@dataclass(frozen=True)
class LadderPlan:
    """A plan.

    Attributes:
        hardware: hardware that is predicted.
        prompt, new: prompt and generated tokens per example.
        num_blocks, num_stale, staleness: number of blocks, blocks that read stale, and staleness
            of the ladder.
        connectivity: connectivity of converted blocks, which also names its variant.
        batches: predictions for each batch size.
        limits: limits of the gain at the first batch size.
        confidence: accuracy of the plan.
        damage: sets of blocks at the first batch size with speed and damage, from slow to fast.
        dtype: dtype of the residual stream.
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
        """The plan as JSON; each batch includes its speedups."""
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
    """Predict the speed of the standard model, its ladder, parallel blocks and the bound.

    Args:
        report: report from `ladderize.explain` for any batch and length; costs are scaled. If its
            connectivity is not "ladder", that variant is predicted in addition to the ladder.
        hardware: hardware or its name, such as `h100x8-nvlink`.
        batches: batch sizes, with one prediction each.
        prompt, new: prompt and generated tokens per example.
        measured: measured sets of blocks, from `ladderize sensitivity`.
        experts: "tensor" splits every expert over the ranks. With "expert" each rank holds whole
            experts and its own tokens, which it sends to the experts and back.
        routed: routed experts of the model, from `routed_experts`; needed for "expert".
        desync: if given, also predict a desync residual that reduces every `desync`-th block.

    Raises:
        LadderError: the hardware is unknown, the model cannot be planned, its experts cannot be
            divided, or `measured` belongs to another model.

    Example:
        >>> found = plan(ladderize.explain(model, input_ids), "h100x8-nvlink", [1, 16])
        >>> found.batches[0].speedup("ladder")
    """
    if not batches or min(*batches, prompt, new) < 1:
        raise LadderError(f"batches={batches}, prompt={prompt}, new={new} must be at least 1.")
    if desync is not None and desync < 2:
        raise LadderError(f"desync={desync} must be at least 2.")
    hardware = hardware_of(hardware) if isinstance(hardware, str) else hardware
    workload = workload_of(report)
    if experts == "expert":
        modules = [block.module for block in report.blocks]
        workload = expert_parallel(workload, modules, routed, hardware.ranks)
    elif experts != "tensor":
        raise LadderError(f'experts={experts!r} must be "tensor" or "expert".')
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
