"""The inputs of a `heal` run: arguments, blocks, training and held-out text, adapters."""

import hashlib
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from ladderize.errors import LadderError
from ladderize.frontends.explain import explain
from ladderize.quality.healing.healing_arguments import HealingArguments
from ladderize.quality.runs import self_generated
from ladderize.quality.runs.heal_options import HealOptions
from ladderize.quality.runs.heal_watcher import HealWatcher
from ladderize.quality.runs.run_folder import RunFolder
from ladderize.quality.texts import read_tokens
from ladderize.report.report import Report

_HELD_OUT = 0.05
_LOGS, _EVALUATIONS = 50, 10


def new_arguments(
    folder: Path | str,
    batch: int,
    learning_rate: float,
    *,
    on_cuda: bool,
    bfloat16: bool | None = None,
    **others: Any,
) -> HealingArguments:
    """The arguments of any heal; `set_steps` sets its length.

    Args:
        folder: folder of checkpoints.
        batch: sequences per step and rank.
        learning_rate: peak learning rate.
        on_cuda: whether it runs on CUDA instead of the CPU.
        bfloat16: as in `HealOptions`.
        others: further fields of `HealingArguments`.
    """
    has_bfloat16 = on_cuda and torch.cuda.is_bf16_supported()
    return HealingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=batch,
        per_device_eval_batch_size=batch,
        learning_rate=learning_rate,
        lr_scheduler_type="cosine",
        dataloader_drop_last=True,
        report_to=[],
        disable_tqdm=True,
        use_cpu=not on_cuda,
        bf16=has_bfloat16 if bfloat16 is None else bfloat16,
        **others,
    )


def set_steps(args: HealingArguments, steps: int) -> None:
    """Set the number of steps; the learning rate warms up over the first 5 % of them."""
    args.max_steps, args.warmup_steps = steps, steps // 20


def arguments_of(options: HealOptions, checkpoints: Path) -> HealingArguments:
    args = new_arguments(
        checkpoints,
        options.batch,
        options.peak_learning_rate,
        on_cuda=torch.cuda.is_available(),
        bfloat16=options.bfloat16,
        temperature=options.temperature,
        label_weight=options.label_weight,
        stream_weight=options.stream_weight,
        blend_steps=options.blend_steps,
        seed=options.seed,
        eval_strategy="steps",
        save_strategy="steps",
        save_total_limit=2,
    )
    steps = options.num_steps(args.world_size)
    set_steps(args, steps)
    args.logging_steps = max(1, steps // _LOGS)
    args.eval_steps = args.save_steps = max(1, steps // _EVALUATIONS)
    return args


def explained(model: Any, options: HealOptions) -> Report:
    """The report on the blocks to convert, before text is read or anything is trained.

    Raises:
        LadderError: the model cannot be converted with these options.
    """
    ids = torch.zeros(options.batch, options.length, dtype=torch.int64, device=model.device)
    report = explain(model, input_ids=ids, use_cache=False, options=options.ladder)
    report.raise_refusal()
    return report


def begin_with_text(
    folder: RunFolder,
    texts: Sequence[str | Path],
    model: Any,
    tokenizer: Any,
    options: HealOptions,
    args: HealingArguments,
    watcher: HealWatcher,
) -> Tensor:
    """The tokens of `texts` and of generated text, `[sequences, length]`.

    The first rank starts the run and generates the text; the other ranks wait for it.
    """
    with args.main_process_first(local=False):
        is_first = args.process_index == 0
        if is_first:
            folder.begin()
        if options.self_generated:
            own = folder.out / self_generated.NAME
            texts = [*texts, own]
            if is_first and not own.is_file():
                watcher.stage("generating text with the standard model")
                self_generated.write_own_text(
                    own,
                    model,
                    tokenizer,
                    options.self_generated,
                    options.length,
                    options.seed,
                    tell=lambda done, total: watcher.progress(done, total, {}),
                )
        needed = 2 * options.batch * args.world_size
        tokens = read_tokens(texts, tokenizer, options.length, model=model, at_least=needed)
        if is_first:
            folder.settle_text(hashlib.sha256(tokens.numpy().tobytes()).hexdigest())
    return tokens


def parted(tokens: Tensor, options: HealOptions, num_ranks: int) -> tuple[Tensor, Tensor]:
    """Split tokens into training and held-out ones: whole batches, spread over the text."""
    batch = options.batch * num_ranks
    most = min(len(tokens), batch * options.num_steps(num_ranks))
    count = batch * max(1, round(_HELD_OUT * most / batch))
    is_held_out = torch.zeros(len(tokens), dtype=torch.bool)
    is_held_out[torch.linspace(0, len(tokens) - 1, count).round().long()] = True
    return tokens[~is_held_out], tokens[is_held_out]


def fitted_on(trained: Tensor, options: HealOptions) -> list[dict[str, Tensor]]:
    """Batches for the least-squares fit, spread over the training tokens."""
    wanted = max(1, round(options.fit_tokens / (options.batch * options.length)))
    count = min(wanted, len(trained) // options.batch) * options.batch
    rows = trained[torch.linspace(0, len(trained) - 1, count).round().long()]
    return [{"input_ids": each} for each in torch.split(rows, options.batch)]


def as_examples(tokens: Tensor) -> list[dict[str, Tensor]]:
    return [{"input_ids": row} for row in tokens]


def with_adapters(model: Any, options: HealOptions) -> Any:
    """`model`, with LoRA adapters on all linear layers if `options.lora` is set.

    Raises:
        LadderError: PEFT is not installed.
    """
    transformers.set_seed(options.seed)
    if options.lora is None:
        return model
    if find_spec("peft") is None:
        raise LadderError("LoRA needs the package peft.", cure="pip install peft")
    import peft

    settings = peft.LoraConfig(
        r=options.lora,
        lora_alpha=2 * options.lora,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    return peft.get_peft_model(model, settings)
