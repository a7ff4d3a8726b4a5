"""Heal several sets of blocks for a short while, to choose by what is left of the damage.

candidates of a BlockPlan ── each: a copy of the model, healed ── KL, loss ── plan.healed(…)
"""

import copy
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import torch
import transformers
from torch import Tensor

from ladderize.config.block_plan import BlockPlan
from ladderize.errors import LadderError, counted
from ladderize.quality.fitting.least_squares import CannotFitError
from ladderize.quality.healing.healing_arguments import HealingArguments
from ladderize.quality.healing.trainer import HealingTrainer


def heal_candidates(
    plan: BlockPlan,
    model: Any,
    texts: Tensor,
    held_out: Tensor,
    *,
    shares: Sequence[float],
    tokens: int,
    candidates: int = 3,
    batch: int = 4,
    learning_rate: float = 1e-4,
    on_progress: Callable[[int, int], None] | None = None,
) -> BlockPlan:
    """`plan` with what its best sets for each share cost after a short heal.

    `plan.best` then chooses among these. Every set starts from the same weights: its reads are
    fitted by least squares where they can be, then it is trained, both on the same tokens.

    Args:
        plan: what `ladderize.sensitivity` found.
        model: the model that it found it on; it stays as it is.
        texts: to train on, int64 `[sequences, length]`.
        held_out: to measure on, `[sequences, length]`.
        shares: of hidden communication, 0 to 1.
        tokens: to fit and to train on, for each set.
        candidates: sets for each share, besides the plan's references.
        batch: sequences per step.
        learning_rate: of AdamW, with warmup and a cosine.
        on_progress: is told the number of sets that are healed, and of all.

    Raises:
        LadderError: the text is shorter than one batch; a model that cannot be healed.
    """
    if len(texts) < batch:
        raise LadderError(
            f"The text to heal on is too short: {counted(len(texts), 'sequence')}, needed is a "
            f"batch of {batch}.",
            cure="give more text, or a smaller batch",
        )
    found = (each for share in shares for each in plan.candidates(share, candidates))
    sets = list(dict.fromkeys(tuple(each.blocks) for each in found))
    measured = {}
    for number, blocks in enumerate(sets, 1):
        ladder = {"blocks": list(blocks), "staleness": plan.staleness, "lowering": "eager"}
        measured[blocks] = _healed(model, ladder, texts, held_out, tokens, batch, learning_rate)
        if on_progress is not None:
            on_progress(number, len(sets))
    return plan.healed(measured)


def _healed(
    model: Any,
    ladder: dict[str, Any],
    texts: Tensor,
    held_out: Tensor,
    tokens: int,
    batch: int,
    learning_rate: float,
) -> tuple[float, float | None]:
    """Divergence and loss of one ladder after its heal."""
    transformers.set_seed(0)
    steps = max(1, round(tokens / (batch * texts.shape[1])))
    has_cuda = model.device.type == "cuda"
    with tempfile.TemporaryDirectory() as folder:
        args = HealingArguments(
            output_dir=folder,
            max_steps=steps,
            per_device_train_batch_size=batch,
            per_device_eval_batch_size=batch,
            learning_rate=learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=steps // 20,
            dataloader_drop_last=True,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=not has_cuda,
            bf16=has_cuda and torch.cuda.is_bf16_supported(),
        )
        trainer = HealingTrainer(
            copy.deepcopy(model).float(),
            args,
            ladder=ladder,
            train_dataset=[{"input_ids": row} for row in texts],
            eval_dataset=[{"input_ids": row} for row in held_out],
        )
        trainer.remove_callback(transformers.PrinterCallback)
        with suppress(CannotFitError):
            rows = texts[: steps * batch]
            trainer.fit([{"input_ids": part} for part in torch.split(rows, batch)])
        trainer.train()
        metrics = trainer.evaluate()
    return metrics["eval_kl"], metrics.get("eval_loss")
