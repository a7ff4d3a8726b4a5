"""The callback of a healing run: what happens at each step of transformers' Trainer.

begin      move blended reads toward stale ones
gradients  end the run unless they are finite
end        save and stop, if some rank got a signal
"""

from typing import Any

import torch
import transformers


class HealingSteps(transformers.TrainerCallback):
    """Acts on the trainer that made it."""

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        self._trainer.reads.begin_step(state.global_step)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **given: Any) -> None:  # noqa: ARG002
        """Stop before gradients that are not finite reach the weights and the next checkpoint."""
        if self._trainer.accelerator.scaler is not None:
            return  # the float16 scaler skips such steps
        gradients = [each.grad for each in given["model"].parameters() if each.grad is not None]
        if not torch.nn.utils.get_total_norm(gradients).isfinite():
            raise self._trainer.not_finite("A gradient")

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        if self._trainer.on_any_rank(self._trainer.signals.received is not None):
            control.should_save = control.should_training_stop = self._trainer.is_stopped = True
