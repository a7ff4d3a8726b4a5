"""KL and loss of ladders of SmolLM2-135M against the number of healing tokens.

    python bench/quality/healed_curves.py FOLDER --plan FOLDER/plan.json --tokens 100000
                                          --out bench/results/healing.json [--only NAME …] [--bf16]

FOLDER comes from real_model.py, the plan from held_out_curve.py. Each run starts from the
pretrained weights and trains on the same sequences in the same order; KL and loss are measured on
held-out text. A run of 100,000 tokens takes 20 minutes on one core with AMX and --bf16, 80 without;
a run of 10,000 an eighth of that. Rows of runs that are not repeated stay in the file.
"""

import argparse
import json
import shlex
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from real_model import split
from transformers import AutoModelForCausalLM

from ladderize.config.selection import Selection
from ladderize.quality import HealingArguments, HealingTrainer
from ladderize.tools.bench.record import ResultRow, Results

LENGTH, BATCH = 128, 4


@dataclass(frozen=True)
class HealedRun:
    """One run: a set of blocks, and how it is healed.

    Attributes:
        blocks: share of the plan, or selection.
        options: the `HealingArguments` that differ from their defaults.
        lora: rank of the adapters; None: all weights.
        blend: fraction of the steps that blend their reads.
        fit_tokens: tokens of the least-squares start.
    """

    blocks: str
    options: dict[str, Any] = field(default_factory=dict)
    lora: int | None = None
    blend: float = 0.0
    fit_tokens: int = 0


FIT_TOKENS = 20_480
RUNS = {
    "25 %": HealedRun("25%"),
    "50 %": HealedRun("50%"),
    "75 %": HealedRun("75%"),
    "92 %": HealedRun("92%"),
    "100 %": HealedRun("100%"),
    "50 %, last blocks": HealedRun("last:50%"),
    "50 %, LoRA": HealedRun("50%", {"learning_rate": 1e-3}, lora=32),
    "50 %, labels": HealedRun("50%", {"kl_weight": 0.0, "label_weight": 1.0}),
    "50 %, stream": HealedRun("50%", {"stream_weight": 1.0}),
    "50 %, blended": HealedRun("50%", blend=0.2),
    "100 %, blended": HealedRun("100%", blend=0.2),
    "25 %, fitted": HealedRun("25%", fit_tokens=FIT_TOKENS),
    "50 %, fitted": HealedRun("50%", fit_tokens=FIT_TOKENS),
    "75 %, fitted": HealedRun("75%", fit_tokens=FIT_TOKENS),
    "92 %, fitted": HealedRun("92%", fit_tokens=FIT_TOKENS),
    "100 %, fitted": HealedRun("100%", fit_tokens=FIT_TOKENS),
    "50 %, last blocks, fitted": HealedRun("last:50%", fit_tokens=FIT_TOKENS),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--plan", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=10_000)
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--only", nargs="*", choices=RUNS, default=list(RUNS))
    parser.add_argument("--bf16", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    for name in given.only:
        rows = list(healed(name, RUNS[name], given))
        kept = [row for row in known_rows(given.out) if not is_repeated(row, rows)]
        Results(shlex.join(["python", *sys.argv]), (*kept, *rows)).write(given.out, force=True)
        print(name, rows[-1].values, flush=True)


def known_rows(path: Path) -> Iterator[ResultRow]:
    data = json.loads(path.read_text()) if path.exists() else {"rows": []}
    yield from (ResultRow(row["key"], row["values"]) for row in data["rows"])


def is_repeated(row: ResultRow, rows: list[ResultRow]) -> bool:
    """Whether `rows` come from the same run."""
    return all(row.key[name] == rows[0].key[name] for name in ("run", "of_tokens"))


def healed(name: str, run: HealedRun, given: argparse.Namespace) -> Iterator[ResultRow]:
    """Yield a row for each evaluation; the first one is before healing."""
    trainer, blocks = trainer_of(run, given)
    before = trainer.evaluate()
    history = [{**before, "step": -1}]
    if run.fit_tokens:
        rows = trainer.train_dataset[: run.fit_tokens // LENGTH]
        ids = torch.stack([row["input_ids"] for row in rows])
        trainer.fit([{"input_ids": part} for part in ids.split(BATCH)])
        history.append({**trainer.evaluate(), "step": 0})
    trainer.train()
    history += [row for row in trainer.state.log_history if "eval_kl" in row and row["step"]]
    added = before["eval_loss"] - before["eval_standard_loss"]
    for row in {row["step"]: row for row in history}.values():
        yield ResultRow(
            {
                "run": name,
                "of_tokens": given.tokens,
                "tokens": max(row["step"], 0) * LENGTH * BATCH,
                "state": {-1: "converted", 0: "fitted"}.get(row["step"], "trained"),
            },
            {
                "kl": row["eval_kl"],
                "loss": row["eval_loss"],
                "standard_loss": row["eval_standard_loss"],
                "agreement_fraction": row["eval_agreement"],
                "kl_recovered_fraction": 1 - row["eval_kl"] / before["eval_kl"],
                "loss_recovered_fraction": (before["eval_loss"] - row["eval_loss"]) / added,
                "learning_rate": trainer.args.learning_rate,
                "blocks": len(blocks),
            },
        )


def trainer_of(run: HealedRun, given: argparse.Namespace) -> tuple[HealingTrainer, list[int]]:
    transformers.set_seed(0)
    model = AutoModelForCausalLM.from_pretrained(given.folder / "model", dtype=torch.float32)
    texts = split(given.folder, LENGTH, num_chosen=4, num_held_out=32)
    blocks = run.blocks if run.blocks.startswith("last:") else f"{given.plan}:{run.blocks}"
    steps = given.tokens // (LENGTH * BATCH)
    settings = {"learning_rate": given.learning_rate, **run.options}
    args = HealingArguments(
        output_dir=tempfile.mkdtemp(),
        max_steps=steps,
        per_device_train_batch_size=BATCH,
        per_device_eval_batch_size=BATCH,
        lr_scheduler_type="cosine",
        warmup_steps=max(1, steps // 20),
        blend_steps=round(run.blend * steps),
        eval_strategy="steps",
        eval_steps=max(1, steps // 5),
        save_strategy="no",
        logging_steps=max(1, steps // 5),
        bf16=given.bf16,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        **settings,
    )
    if run.lora is not None:
        adapters = peft.LoraConfig(
            r=run.lora, lora_alpha=2 * run.lora, target_modules="all-linear", task_type="CAUSAL_LM"
        )
        model = peft.get_peft_model(model, adapters)
    trainer = HealingTrainer(
        model,
        args,
        ladder={"blocks": blocks, "lowering": "eager"},
        train_dataset=[{"input_ids": row} for row in texts.training],
        eval_dataset=[{"input_ids": row} for row in texts.held_out[::2]],
    )
    trainer.remove_callback(transformers.PrinterCallback)
    return trainer, sorted(Selection.parse(blocks).resolve(2 * model.config.num_hidden_layers))


if __name__ == "__main__":
    main()
