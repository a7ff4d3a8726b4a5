"""Heal several sets of blocks briefly, to choose one by the remaining damage.

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
from ladderize.quality.healing.trainer import HealingTrainer
from ladderize.quality.runs.heal_inputs import as_examples, new_arguments, set_steps


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
    """`plan` with the damage of its best sets for each share after a short heal.

    `plan.best` then chooses among these. Every set starts from the same weights. Its reads are
    fitted by least squares if possible, then it is trained, both on the same tokens.

    Args:
        plan: result of `ladderize.sensitivity`.
        model: model that it was measured on; it is not changed.
        texts: training tokens, int64 `[sequences, length]`.
        held_out: evaluation tokens, `[sequences, length]`.
        shares: shares of hidden communication, 0 to 1.
        tokens: number of tokens to fit and to train on, per set.
        candidates: number of sets per share, in addition to the plan's references.
        batch: sequences per step.
        learning_rate: peak learning rate of AdamW, with warmup and cosine decay.
        on_progress: called with the number of healed sets and of all sets.

    Raises:
        LadderError: the text is shorter than one batch, or the model cannot be healed.
    """
    if len(texts) < batch:
        raise LadderError(
            f"The text to heal on is too short: it has {counted(len(texts), 'sequence')}, but a "
            f"batch needs {batch}.",
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
    on_cuda = model.device.type == "cuda"
    with tempfile.TemporaryDirectory() as folder:
        args = new_arguments(folder, batch, learning_rate, on_cuda=on_cuda, save_strategy="no")
        set_steps(args, steps)
        trainer = HealingTrainer(
            copy.deepcopy(model).float(),
            args,
            ladder=ladder,
            train_dataset=as_examples(texts),
            eval_dataset=as_examples(held_out),
        )
        trainer.remove_callback(transformers.PrinterCallback)
        with suppress(CannotFitError):
            rows = texts[: steps * batch]
            trainer.fit([{"input_ids": part} for part in torch.split(rows, batch)])
        trainer.train()
        metrics = trainer.evaluate()
    return metrics["eval_kl"], metrics.get("eval_loss")
