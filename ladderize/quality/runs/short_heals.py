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
