"""Damage against tokens per second: which set of blocks to convert for given hardware.

sets of `ladderize sensitivity` ── each as a ladder of the workload ── points ── the advised one
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ladderize.config.block_plan import BlockPlan, MeasuredSet
from ladderize.config.connectivity import LADDER
from ladderize.config.hardware import Hardware
from ladderize.errors import LadderError
from ladderize.tools.predict.planning.forecast import Request, tokens_per_s
from ladderize.tools.predict.planning.planned_nets import ladder, standard
from ladderize.tools.predict.planning.workload import Workload


@dataclass(frozen=True)
class DamagePoint:
    """One set of blocks.

    Attributes:
        blocks: indices of the blocks.
        share: fraction of the hideable communication that the set hides, 0 to 1.
        kl: KL(standard ‖ ladder) before healing, in nats per token.
        tokens_per_s: predicted tokens per second of the whole batch.
        speedup: tokens/s over those of the standard model.
    """

    blocks: tuple[int, ...]
    share: float
    kl: float
    tokens_per_s: float
    speedup: float


def damage_curve(
    workload: Workload, request: Request, hardware: Hardware, measured: BlockPlan
) -> tuple[DamagePoint, ...]:
    """A point for each set of `measured` that no other set beats in both damage and speed.

    Args:
        workload: model that is planned.
        request: batch, prompt and new tokens.
        hardware: hardware that is predicted.
        measured: sets measured on the same model by `ladderize sensitivity`.

    Raises:
        LadderError: `measured` belongs to a model with other blocks, or the connectivity of the
            plan is not "ladder".
    """
    if (planned := workload.connectivity) != LADDER:
        raise LadderError(
            f"Sets of blocks are measured as ladders, not with connectivity={planned!r}.",
            cure="plan without --sensitivity, or with --connectivity ladder",
        )
    if measured.layers != [block.layer for block in workload.blocks]:
        raise LadderError(
            f"The sets were measured on another model ({measured.model}): it has "
            f"{len(measured.blocks)} blocks, this one has {len(workload.blocks)}, or their layers "
            "differ.",
            cure="measure this model: ladderize sensitivity",
        )
    alone = tokens_per_s(standard(workload), request, hardware)
    points = [_point(workload, request, hardware, each, alone) for each in measured.sets]
    return tuple(_unbeaten(points))


def _point(
    workload: Workload, request: Request, hardware: Hardware, each: MeasuredSet, alone: float
) -> DamagePoint:
    speed = tokens_per_s(ladder(workload, each.blocks), request, hardware)
    return DamagePoint(tuple(each.blocks), each.share, each.kl, speed, speed / alone)


def _unbeaten(points: Sequence[DamagePoint]) -> Iterator[DamagePoint]:
    """The points from slow to fast, without those that a faster one beats in damage."""
    least = float("inf")
    kept = []
    for point in sorted(points, key=lambda each: (each.tokens_per_s, -each.kl), reverse=True):
        if point.kl < least:
            least = point.kl
            kept.append(point)
    yield from reversed(kept)


def advised(points: Sequence[DamagePoint]) -> DamagePoint | None:
    """The knee of the curve: the point that maximizes relative gain minus relative damage.

    None if no set is faster than the standard model. Damage is measured before healing. Healing
    helps sets with few decisive blocks most, so also compare the neighbors after a short heal.
    """
    gains = [point.speedup - 1 for point in points]
    most, worst = max(gains, default=0.0), max((point.kl for point in points), default=0.0)
    if most <= 0 or worst <= 0:
        return None
    scores = [gain / most - point.kl / worst for gain, point in zip(gains, points, strict=True)]
    return points[scores.index(max(scores))]
