"""KL against the share of hidden communication, on text that was not used to choose the blocks.

    python bench/quality/held_out_curve.py FOLDER --out bench/results/sensitivity.json
                                                  --plan FOLDER/plan.json

FOLDER comes from real_model.py. `ladderize.sensitivity` chooses sets on 512 tokens, unless the file
of --plan exists. The sets are then measured on 4096 other tokens, together with the last blocks,
single kinds of block, and the blocks that cost least alone. About 25 minutes on one core.
"""

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

import torch
from real_model import split
from rich.console import Console
from rich.progress import Progress
from transformers import AutoModelForCausalLM

import ladderize
from ladderize.config.block_plan import BlockPlan, MeasuredSet, read_block_plan
from ladderize.quality.sensitivity.damage_meter import DamageMeter
from ladderize.report.files import write_file
from ladderize.tools.bench.record import ResultRow, Results

IMPROVED = (0.25, 0.5, 0.75, 0.92)
SHARES = (0.1, 0.25, 0.4, 0.5, 0.6, 0.75, 0.85, 0.92, 1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--plan", type=Path, required=True, help="the file for --blocks")
    parser.add_argument("--width", type=int, default=8)
    given = parser.parse_args()
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(given.folder / "model", dtype=torch.float32)
    model.config.use_cache = False
    model.eval()
    texts = split(given.folder, 128, num_chosen=4, num_held_out=32)
    plan = read_block_plan(given.plan) if given.plan.exists() else None
    if plan is None:
        plan = choose(model, texts.chosen, given.plan, given.width)
    sets = {f"sensitivity:{share:g}": plan.best(share) for share in SHARES} | plan.references
    sets |= {f"ranked alone:{share:g}": ranked_alone(plan, share) for share in SHARES}
    meter = DamageMeter(model, [{"input_ids": part} for part in texts.held_out.split(4)], {})
    found = meter.measure(frozenset(), [frozenset(each.blocks) for each in sets.values()])
    rows = [
        ResultRow(
            {"set": name},
            {
                "blocks": len(each.blocks),
                "hidden_fraction": each.share,
                "kl_choosing": None if name.startswith("ranked") else each.kl,
                "kl": damage.kl,
                "loss": damage.loss,
                "standard_loss": meter.standard_loss,
            },
        )
        for (name, each), damage in zip(sets.items(), found, strict=True)
    ]
    Results(shlex.join(["python", *sys.argv]), tuple(rows)).write(given.out, force=True)
    for row in rows:
        print(row.name, {name: value and round(value, 3) for name, value in row.values.items()})


def choose(model: Any, tokens: torch.Tensor, path: Path, width: int) -> BlockPlan:
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("measuring sets", total=None)
        plan = ladderize.sensitivity(
            model,
            [{"input_ids": tokens}],
            shares=IMPROVED,
            width=width,
            notes=path.with_suffix(".notes"),
            on_progress=lambda done, total: progress.update(task, completed=done, total=total),
        )
    write_file(path, plan.model_dump_json(indent=1) + "\n")
    return plan


def ranked_alone(plan: BlockPlan, share: float) -> MeasuredSet:
    """The blocks that cost least alone, as many as in the best set for that share."""
    alone = {number: block.kl for number, block in enumerate(plan.blocks) if block.kl is not None}
    ranked = sorted(alone, key=alone.__getitem__)[: len(plan.best(share).blocks)]
    hidden = min(sum(plan.blocks[number].share for number in ranked), 1.0)
    return MeasuredSet(blocks=sorted(ranked), share=hidden, kl=0.0)


if __name__ == "__main__":
    main()
