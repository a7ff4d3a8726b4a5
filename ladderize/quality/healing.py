"""`HealingTrainer`: transformers' Trainer, which teaches a ladder what its standard model says.

batch ─┬─ ladder, trained ────────── logits, stream ─┐
       └─ standard model, frozen ─── logits, stream ─┴── DistillationLoss ── AdamW
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers.trainer_utils import EvalLoopOutput

from ladderize.errors import Blocker, LadderError
from ladderize.quality.blended_start import BlendedStart
from ladderize.quality.distillation import (
    DistillationLoss,
    DistillationParts,
    counted_positions,
    next_tokens,
)
from ladderize.quality.heal_blockers import refuse_unhealable
from ladderize.quality.measures import Measures, measure
from ladderize.quality.saved_steps import told_last, whole_checkpoint
from ladderize.quality.stop_signals import StopSignals
from ladderize.quality.teacher import standard_copy


@dataclass
class HealingArguments(transformers.TrainingArguments):
    """Those of transformers, and the weights of the losses.

    Attributes:
        temperature: of the logits of both models, above 0.
        kl_weight: of the KL divergence from the standard model.
        label_weight: of the cross entropy with the labels.
        stream_weight: of the distance of the residual streams, after each layer.
        blend_steps: steps at the start whose reads are a blend of fresh and stale.
    """

    temperature: float = 1.0
    kl_weight: float = 1.0
    label_weight: float = 0.0
    stream_weight: float = 0.0
    blend_steps: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[no-untyped-call]
        if self.blend_steps < 0:
            raise LadderError(
                "These options cannot be used:",
                [Blocker(f"blend_steps={self.blend_steps} is below 0")],
            )
        self.loss()

    def loss(self) -> DistillationLoss:
        return DistillationLoss(
            self.temperature, self.kl_weight, self.label_weight, self.stream_weight
        )


class HealingTrainer(transformers.Trainer):
    """Heals a ladder by self-distillation: the standard model of the same weights teaches it.

    >>> trainer = HealingTrainer(model, args, train_dataset=texts, ladder={"blocks": "last:50%"})
    >>> trainer.train(resume_from_checkpoint=True)

    Everything else is transformers' Trainer: data, optimizers, checkpoints, callbacks, torchrun. It
    logs `kl`, `label_loss` and `stream_loss` with `loss`. A run that is resumed goes on exactly as
    it would have. SIGTERM and SIGINT end it after a step, with a checkpoint.

    Args:
        model: a causal language model of transformers, or a PEFT model around it; the standard
            model. It becomes a ladder in place, and stays one: `ladderize.restore` takes it back.
        args: of the run.
        ladder: the options of `ladderize.compile`.
        options: those of `transformers.Trainer`: `train_dataset` with `input_ids` and, if wanted,
            `attention_mask` and `labels` (-100: not counted), `eval_dataset`, `callbacks`, …

    Attributes:
        teacher: the frozen standard model. Parameters that are not trained are those of `model`.

    Raises:
        LadderError: listing everything that keeps `model` from being healed.
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
            _prepare_hidden_states(model)
        self._reads = BlendedStart(model, ladder or {}, args.blend_steps)
        super().__init__(model, args, **options)
        self.model_accepts_loss_kwargs = False  # the loss is a mean, which Trainer divides by the
        self.loss_is_scaled_for_ga = False  # number of accumulated batches
        self.add_callback(_HealingCallback(self))
        self.teacher.to(args.device)
        if hasattr(self.teacher, "config"):
            self.teacher.config.use_cache = False  # as Trainer does for its model
        self._parts: list[Tensor] = []
        self._loss = args.loss()

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> Any:
        """Train, from the start or from a checkpoint, as `transformers.Trainer.train`.

        Raises:
            LadderError: the loss or a gradient is not finite, a checkpoint cannot be written, or
                the run was stopped by a signal, after it saved a checkpoint.
        """
        # DDP would have Dynamo cut the model into a graph for each bucket of gradients.
        self.is_stopped = False
        with torch._dynamo.config.patch(optimize_ddp=False), StopSignals() as self.signals:
            done = super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)
        if self.state.global_step < self.state.max_steps and self.is_stopped:
            name = self.signals.received.name if self.signals.received else "another rank's signal"
            raise LadderError(
                f"The run was stopped by {name} after step "
                f"{self.state.global_step} of {self.state.max_steps}. "
                f"{told_last(self.run)}",
                cure="the same command resumes",
            )
        return done

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
        """Whether it is so on one of the ranks at least; a collective call."""
        if self.args.world_size == 1:
            return is_so
        found = self.accelerator.reduce(torch.tensor(float(is_so), device=self.args.device))
        return bool(found.item())

    def not_finite(self, what: str) -> LadderError:
        step = self.state.global_step + 1
        return LadderError(
            f"{what} is not finite at step {step}. {told_last(self.run)}",
            cure="a smaller learning rate; with float16, bfloat16 instead",
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
        """KL to the standard model, the losses of both and how often they prefer the same token."""
        with self._reads.as_ladder(), torch.no_grad():
            parts = [self._measured(self._prepare_inputs(inputs)) for inputs in dataloader]
        found = Measures.joined(parts)
        metrics = {
            "kl": found.mean_kl,
            "loss": found.mean_loss,
            "standard_loss": found.mean_standard_loss,
            "agreement": found.agreement,
        }
        named = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        return EvalLoopOutput(None, None, named, len(found.kl))  # type: ignore[arg-type]

    def _measured(self, inputs: dict[str, Any]) -> Measures:
        """Of the sequences of all ranks."""
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


@torch.no_grad()
def _prepare_hidden_states(model: Any) -> None:
    """At their first call transformers' models install hooks under a lock, which Dynamo refuses."""
    is_training = model.training
    one = torch.zeros(1, 1, dtype=torch.int64, device=next(model.parameters()).device)
    model.eval()(input_ids=one, output_hidden_states=True)
    model.train(is_training)


class _HealingCallback(transformers.TrainerCallback):
    """What a trainer does at certain points of a step."""

    def __init__(self, trainer: HealingTrainer) -> None:
        self._trainer = trainer

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        self._trainer._reads.begin_step(state.global_step)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **given: Any) -> None:  # noqa: ARG002
        """Gradients that are not finite would go into the weights, and into the next checkpoint."""
        if self._trainer.accelerator.scaler is not None:
            return  # float16: it leaves out such steps itself
        gradients = [each.grad for each in given["model"].parameters() if each.grad is not None]
        if not torch.nn.utils.get_total_norm(gradients).isfinite():
            raise self._trainer.not_finite("A gradient")

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        if self._trainer.on_any_rank(self._trainer.signals.received is not None):
            control.should_save = control.should_training_stop = self._trainer.is_stopped = True


def _without_labels(inputs: Mapping[str, Any]) -> tuple[dict[str, Any], Tensor]:
    """What the models are called with, and the labels: the tokens themselves if none are given."""
    given = dict(inputs)
    labels = given.pop("labels", None)
    return given, given["input_ids"] if labels is None else labels
