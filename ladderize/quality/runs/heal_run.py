"""`heal`: a whole run, from a folder with a standard model to a folder with its healed ladder.

MODEL ── standard model ─┬─ explain: which blocks
TEXT ─── tokens ─────────┤
                         ├─ measure on held-out text ── train ── measure again
                         └─ OUT: model, tokenizer, config.json with "ladder", heal.json
"""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
import transformers

from ladderize.config.ladder_entry import LadderEntry
from ladderize.errors import Blocker, LadderError, nearest
from ladderize.frontends.checkpoints.saving import save_with_entry
from ladderize.frontends.compile import restore
from ladderize.frontends.sharded.directory import whole_directory
from ladderize.quality.healing.heal_blockers import refuse_unhealable
from ladderize.quality.healing.saved_steps import last_checkpoint
from ladderize.quality.healing.trainer import HealingTrainer
from ladderize.quality.runs import heal_inputs, self_generated
from ladderize.quality.runs.heal_options import HealOptions
from ladderize.quality.runs.heal_result import HealResult, curve_of, metrics_of
from ladderize.quality.runs.heal_watcher import HealWatcher, RunClock
from ladderize.quality.runs.run_folder import RESULT, RunFolder
from ladderize.quality.runs.standard_model import Standard, load_standard
from ladderize.report.publish import versions
from ladderize.report.report import Report


def heal(
    model: str | Path,
    out: str | Path,
    texts: Sequence[str | Path] = (),
    *,
    force: bool = False,
    watcher: HealWatcher | None = None,
    **options: Any,
) -> HealResult:
    """Heal a ladder of the model in a folder, and write it to another one.

    >>> heal("SmolLM2-135M", "healed", ["notes.txt"], blocks="last:50%", tokens=100_000)

    A part of the text, 5 % of the training tokens, is held out and evaluated before and after.
    During the run, `out` holds checkpoints, and the same call resumes from the last one. At the end
    `out` is replaced atomically by the model (with LoRA merged), its tokenizer and `heal.json`.
    Under torchrun, training is data parallel.

    Args:
        model: folder with a transformers causal language model and its tokenizer, or with one
            `.gguf` file.
        out: folder to write.
        texts: text files, as for `read_tokens`.
        force: overwrite a finished run, or one that was started with other options.
        watcher: shows progress.
        options: options of `HealOptions`.

    Raises:
        LadderError: options, texts or model are invalid; the loss is not finite; the disk is full;
            or a signal stopped the run after it saved a checkpoint.
    """
    settings = HealOptions(**_known(options))
    decides = {"model": str(Path(model).absolute()), **settings.as_data()}
    folder = RunFolder(Path(out), decides, force)
    args = heal_inputs.arguments_of(settings, folder.checkpoints)
    told = watcher if watcher is not None and args.process_index == 0 else HealWatcher()
    told.stage(f"loading {model}")
    standard = load_standard(Path(model), torch.float32 if settings.lora is None else None)
    standard.model.to(args.device)
    refuse_unhealable(standard.model, args)
    told.stage("finding the blocks")
    report = heal_inputs.explained(standard.model, settings)
    told.stage("reading text")
    tokens = heal_inputs.begin_with_text(
        folder, texts, standard.model, standard.tokenizer, settings, args, told
    )
    trained, held_out = heal_inputs.parted(tokens, settings, args.world_size)
    trainer = HealingTrainer(
        heal_inputs.with_adapters(standard.model, settings),
        args,
        ladder={**settings.ladder, "layers": None, "blocks": _converted(report)},
        train_dataset=heal_inputs.as_examples(trained),
        eval_dataset=heal_inputs.as_examples(held_out),
    )
    trainer.remove_callback(transformers.PrinterCallback)
    fitted_on = heal_inputs.fitted_on(trained, settings)
    run = _Run(standard, folder, settings, report, trainer, fitted_on, told)
    return run.result({"model": str(model), "texts": [*map(str, texts)]})


def _known(options: Mapping[str, Any]) -> Mapping[str, Any]:
    names = [each.name for each in fields(HealOptions)]
    unknown = [Blocker(f"{n!r}{nearest(n, names)}") for n in options if n not in names]
    if unknown:
        raise LadderError("These options are not known:", unknown)
    return options


def _converted(report: Report) -> list[int]:
    """The indices of the converted blocks, as for `blocks=`."""
    return [number for number, block in enumerate(report.blocks) if block.is_converted]


@dataclass(frozen=True)
class _Run:
    """A run with all its inputs."""

    standard: Standard
    folder: RunFolder
    options: HealOptions
    report: Report
    trainer: HealingTrainer
    fitted_on: Sequence[Mapping[str, Any]]
    watcher: HealWatcher

    def result(self, names: Mapping[str, Any]) -> HealResult:
        trainer = self.trainer
        before = self._measured("before", "measuring the ladder")
        fitted = self._fitted()
        clock = RunClock(self.watcher, self.folder)
        trainer.add_callback(clock)
        self.watcher.stage("training")
        transformers.set_seed(self.options.seed)  # independent of earlier evaluations
        trainer.train(last_checkpoint(self.folder.checkpoints) is not None)
        after = self._after()
        num_ranks = trainer.args.world_size
        per_step = self.options.batch * self.options.length * num_ranks
        result = HealResult(
            blocks=tuple(_converted(self.report)),
            num_blocks=len(self.report.blocks),
            before=before,
            fitted=fitted,
            after=after,
            curve=curve_of(
                [before, *([fitted] if fitted else [])], trainer.state.log_history, per_step
            ),
            tokens=trainer.state.global_step * per_step,
            held_out_tokens=len(trainer.eval_dataset) * self.options.length,  # type: ignore[arg-type]
            seconds=clock.seconds,
            options={**names, **self.options.as_data(), "ranks": num_ranks},
            versions={**dict(versions()), "transformers": transformers.__version__},
        )
        if trainer.is_world_process_zero():
            self.watcher.stage(f"writing {self.folder.out}")
            self._write(result)
        trainer.accelerator.wait_for_everyone()
        return result

    def _fitted(self) -> dict[str, float] | None:
        """The metrics of the ladder with fitted reads; None without `fit_tokens`.

        Checkpoints hold fitted weights, except with LoRA: then they are fitted again.
        """
        if not self.options.fit_tokens:
            return None
        has_fitted = last_checkpoint(self.folder.checkpoints) is not None
        if self.options.lora is not None or not has_fitted:
            self.watcher.stage("fitting the reads")
            self.trainer.fit(self.fitted_on, lambda n, of: self.watcher.progress(n, of, {}))
        return self._measured("fitted", "measuring the fitted ladder")

    def _measured(self, name: str, stage: str) -> dict[str, float]:
        """The metrics of the untrained ladder; a resumed run reads them from its record."""
        noted = self.folder.noted(name)
        self.trainer.accelerator.wait_for_everyone()
        if noted is not None:
            return dict(noted)
        self.watcher.stage(stage)
        found = metrics_of(self.trainer.evaluate())
        if self.trainer.is_world_process_zero():
            self.folder.note(name, found)
        return found

    def _after(self) -> dict[str, float]:
        """The metrics after the last step, from the log if they were measured there."""
        last = self.trainer.state.log_history[-2:]
        for row in last:
            if "eval_kl" in row and row["step"] == self.trainer.state.global_step:
                return metrics_of(row)
        self.watcher.stage("measuring the healed ladder")
        return metrics_of(self.trainer.evaluate())

    def _write(self, result: HealResult) -> None:
        model = restore(self.trainer.accelerator.unwrap_model(self.trainer.model))
        if self.options.lora is not None:
            model = model.merge_and_unload()
        model = model.to(self.standard.dtype)
        model.config.use_cache = self.standard.use_cache
        own = self.folder.out / self_generated.NAME
        num_bytes = sum(each.numel() * each.element_size() for each in model.parameters())
        with whole_directory(self.folder.out, num_bytes) as folder:
            asked = self.options
            reads = asked.staleness, asked.connectivity, asked.routed, asked.variant
            entry = LadderEntry(None, result.blocks, *reads)
            save_with_entry(model, entry, folder)
            self.standard.tokenizer.save_pretrained(folder)
            if own.is_file():
                shutil.copy(own, folder)
            (folder / RESULT).write_text(result.to_json())
