"""A `BlockPlan` as a picture, with matplotlib.

divergence over the share of hidden communication │ divergence of each block alone
"""

from pathlib import Path
from typing import Any

from ladderize.config.block_plan import BlockPlan
from ladderize.tools.pictures import refuse_picture, save_picture
from ladderize.tools.plot.palettes import LIGHT, color_name


def draw(plan: BlockPlan, path: Path, force: bool = False) -> None:
    """Draw `plan` to `path`.

    Raises:
        LadderError: matplotlib is missing, or `path` exists or has an unknown suffix.
    """
    refuse_picture(path, force)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    sets, blocks = figure.subplots(1, 2)
    for axes in (sets, blocks):
        axes.spines[["top", "right"]].set_visible(False)
    _draw_sets(plan, sets)
    _draw_blocks(plan, blocks)
    figure.suptitle(f"{plan.model}, {plan.tokens} tokens", fontsize=8, color=LIGHT["muted"])
    save_picture(figure, path, force)


def _draw_sets(plan: BlockPlan, axes: Any) -> None:
    shares = [100 * each.share for each in plan.sets]
    axes.plot(
        shares, [each.kl for each in plan.sets], color=LIGHT["stale"], label="best sets found"
    )
    last = [each for name, each in plan.references.items() if name.startswith("last:")]
    if last:
        places = [100 * each.share for each in last]
        values = [each.kl for each in last]
        axes.plot(places, values, "o--", color=LIGHT["muted"], label="the last blocks")
    for name, each in plan.references.items():
        if name.endswith(" only"):
            axes.plot([100 * each.share], [each.kl], "s", color=_color(name), label=name)
    axes.set(xlabel="hidden communication, %", ylabel="KL(standard ‖ ladder), nats per token")
    axes.legend(frameon=False, fontsize=8)


def _draw_blocks(plan: BlockPlan, axes: Any) -> None:
    found = [(i, block) for i, block in enumerate(plan.blocks) if block.kl is not None]
    for kind in dict.fromkeys(block.kind for _, block in found):
        of_kind = [(i, block.kl) for i, block in found if block.kind == kind]
        axes.bar(*zip(*of_kind, strict=True), color=_color(kind), label=kind)
    axes.set(xlabel="block", ylabel="KL with this block alone converted")
    axes.legend(frameon=False, fontsize=8)


def _color(kind: str) -> str:
    return LIGHT[f"{color_name(kind.removesuffix(' only'))}-line"]
