"""`HealingTrainer`: a transformers Trainer that distills a standard model into its ladder.

batch ─┬─ ladder, trained ────────── logits, stream ─┐
       └─ standard model, frozen ─── logits, stream ─┴── DistillationLoss ── AdamW
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import TrainerState
from transformers.trainer_utils import EvalLoopOutput, TrainOutput

from ladderize.errors import LadderError
from ladderize.quality.fitting.least_squares import FittedReads, OnProgress, fit_reads
from ladderize.quality.healing.blended_start import BlendedStart
from ladderize.quality.healing.distillation import (
    DistillationParts,
    counted_positions,
)
from ladderize.quality.healing.heal_blockers import refuse_unhealable
from ladderize.quality.healing.healing_arguments import HealingArguments
from ladderize.quality.healing.healing_steps import HealingSteps
from ladderize.quality.healing.saved_steps import last_checkpoint, told_last, whole_checkpoint
from ladderize.quality.healing.stop_signals import StopSignals
from ladderize.quality.healing.teacher import prepare_hidden_states, standard_copy
from ladderize.quality.measures import Measures, measure, next_tokens


class HealingTrainer(transformers.Trainer):
    """Heals a ladder by self-distillation from the standard model with the same weights.

    >>> trainer = HealingTrainer(model, args, train_dataset=texts, ladder={"blocks": "last:50%"})
    >>> trainer.train(resume_from_checkpoint=True)

    Everything else is as in transformers' Trainer: data, optimizers, checkpoints, callbacks,
    torchrun. It logs `kl`, `label_loss` and `stream_loss` with `loss`. A resumed run continues
    exactly as an uninterrupted one. SIGTERM and SIGINT end it after a step, with a checkpoint.

    Args:
        model: standard model: a transformers causal language model, or a PEFT model around one.
            It becomes a ladder in place; `ladderize.restore` undoes that.
        args: arguments of the run.
        ladder: options of `ladderize.compile`.
        options: arguments of `transformers.Trainer`: `train_dataset` with `input_ids` and
            optionally `attention_mask` and `labels` (-100: not counted), `eval_dataset`,
            `callbacks`, …

    Attributes:
        teacher: frozen standard model. It shares parameters that are not trained with `model`.

    Raises:
        LadderError: `model` cannot be healed; the message lists all reasons.
    """

    args: HealingArguments

    def __init__(
        self,
        model: Any,
        args: HealingArguments,
        *,
        ladder: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        refuse_unhealable(model, args)
        self.teacher: Any = standard_copy(model)
        if args.stream_weight:
            prepare_hidden_states(model)
        self._ladder = dict(ladder or {})
        self.reads = BlendedStart(model, self._ladder, args.blend_steps)
        super().__init__(model, args, **options)
        self.model_accepts_loss_kwargs = False  # the loss is a mean, which Trainer divides by the
        self.loss_is_scaled_for_ga = False  # number of accumulated batches
        self.add_callback(HealingSteps(self))
        self.teacher.to(args.device)
        if hasattr(self.teacher, "config"):
            self.teacher.config.use_cache = False  # as Trainer does for its model
        self._parts: list[Tensor] = []
        self._loss = args.loss()

    def fit(
        self, batches: Sequence[Mapping[str, Any]], on_progress: OnProgress | None = None
    ) -> FittedReads:
        """Fit the first weights that read the stream by least squares, before `train`.

        Call it again when resuming a LoRA run, whose checkpoints hold only the adapters.

        Args:
            batches: inputs of the model, the same on all ranks.
            on_progress: called with the number of fitted reads and of all reads.

        Raises:
            LadderError: there are no batches, or a weight would not be finite.
        """
        given = [_without_labels(self._prepare_inputs(dict(batch)))[0] for batch in batches]
        model: Any = self.model
        with self.accelerator.autocast():
            return fit_reads(model, self.teacher, given, self._ladder, on_progress=on_progress)

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> Any:
        """Train, from the start or from a checkpoint, as `transformers.Trainer.train`.

        Args:
            resume_from_checkpoint: folder of a checkpoint, or True for the last complete one.
            trial, ignore_keys_for_eval: as in `transformers.Trainer.train`.

        Raises:
            LadderError: the loss or a gradient is not finite, a checkpoint cannot be written, or a
                signal stopped the run after it saved a checkpoint.
        """
        if resume_from_checkpoint is True and (last := last_checkpoint(self.run)):
            resume_from_checkpoint = str(last)
        if isinstance(resume_from_checkpoint, str) and self._is_done(resume_from_checkpoint):
            return TrainOutput(self.state.global_step, 0.0, {})
        self.is_stopped = False
        # With optimize_ddp, Dynamo splits the model into a graph per gradient bucket.
        with torch._dynamo.config.patch(optimize_ddp=False), StopSignals() as self.signals:
            done = super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)
        if self.state.global_step < self.state.max_steps and self.is_stopped:
            name = self.signals.received.name if self.signals.received else "another rank's signal"
            raise LadderError(
                f"The run was stopped by {name} after step {self.state.global_step} of "
                f"{self.state.max_steps}. {told_last(self.run)}",
                cure="the same command resumes",
            )
        return done

    def _is_done(self, checkpoint: str) -> bool:
        """Load a checkpoint and return True if no step is left; Trainer would do one more step."""
        state = TrainerState.load_from_json(str(Path(checkpoint) / "trainer_state.json"))
        if not 0 < self.args.max_steps <= state.global_step:
            return False
        self._load_from_checkpoint(checkpoint)
        self.state = state
        self.reads.begin_step(state.global_step)
        return True

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,  # noqa: ARG002  as Trainer calls it
    ) -> Any:
        given, labels = _without_labels(inputs)
        if self._loss.stream_weight:
            given["output_hidden_states"] = True
        student = model(**given)
        parts = self._loss(student, self._taught(given), labels, given.get("attention_mask"))
        self._note(parts)
        return (parts.total, student) if return_outputs else parts.total

    def _taught(self, given: Mapping[str, Any]) -> Any:
        with torch.no_grad(), self.accelerator.autocast():
            return self.teacher(**given)

    @property
    def run(self) -> Path:
        """The folder of the checkpoints."""
        return Path(str(self.args.output_dir))

    # ---- what is logged

    def _note(self, parts: DistillationParts) -> None:
        self._parts.append(torch.stack([parts.kl, parts.label, parts.stream]))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs and self._parts:
            mean = self.accelerator.reduce(torch.stack(self._parts).mean(0), "mean")
            logs |= dict(zip(("kl", "label_loss", "stream_loss"), mean.tolist(), strict=True))
            self._parts.clear()
        super().log(logs, start_time)

    # ---- what ends a run

    def training_step(self, *args: Any, **options: Any) -> Tensor:
        loss: Tensor = super().training_step(*args, **options)
        if self.on_any_rank(not loss.isfinite().item()):
            raise self.not_finite("The loss")
        return loss

    def on_any_rank(self, is_so: bool) -> bool:
        """Whether `is_so` is true on any rank; all ranks must call this."""
        if self.args.world_size == 1:
            return is_so
        found = self.accelerator.reduce(torch.tensor(float(is_so), device=self.args.device))
        return bool(found.item())

    def not_finite(self, what: str) -> LadderError:
        step = self.state.global_step + 1
        return LadderError(
            f"{what} is not finite at step {step}. {told_last(self.run)}",
            cure="use a smaller learning rate, and bfloat16 instead of float16",
        )

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        with whole_checkpoint(self.run / f"checkpoint-{self.state.global_step}"):
            super()._save_checkpoint(model, trial)

    # ---- evaluation

    def evaluation_loop(  # as Trainer's
        self,
        dataloader: Any,
        description: str,  # noqa: ARG002
        prediction_loss_only: bool | None = None,  # noqa: ARG002
        ignore_keys: list[str] | None = None,  # noqa: ARG002
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """KL to the standard model, the losses of both models and their top-1 agreement."""
        with self.reads.as_ladder(), torch.no_grad():
            parts = [self._measured(self._prepare_inputs(inputs)) for inputs in dataloader]
        found = Measures.joined(parts)
        values = {
            "kl": found.mean_kl,
            "loss": found.mean_loss,
            "standard_loss": found.mean_standard_loss,
            "agreement": found.agreement,
        }
        metrics = {f"{metric_key_prefix}_{n}": v for n, v in values.items() if v is not None}
        return EvalLoopOutput(None, None, metrics, len(found.kl))  # type: ignore[arg-type]

    def _measured(self, inputs: dict[str, Any]) -> Measures:
        """The measures of the sequences of all ranks."""
        given, labels = _without_labels(inputs)
        mask = given.get("attention_mask")
        model: Any = self.model
        model.eval()
        with self.accelerator.autocast():
            ladder = model(**given).logits
        targets, counted = next_tokens(labels, mask), counted_positions(labels, mask)
        found = measure(self._taught(given).logits, ladder, targets, counted)
        columns = torch.stack(list(vars(found).values()), 1).to(self.args.device)
        return Measures(*self.accelerator.gather_for_metrics(columns).cpu().unbind(1))


def _without_labels(inputs: Mapping[str, Any]) -> tuple[dict[str, Any], Tensor]:
    """The arguments of the models, and the labels, which default to the tokens."""
    given = dict(inputs)
    labels = given.pop("labels", None)
    return given, given["input_ids"] if labels is None else labels
