"""What a healing run does at each step, as a callback of transformers' Trainer.

begin      reads are blended a little less
gradients  they are finite, or the run ends
end        a signal came on some rank: save, and stop
"""

from typing import Any

import torch
import transformers


class HealingSteps(transformers.TrainerCallback):
    """The trainer that made it is asked and told."""

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        self._trainer.reads.begin_step(state.global_step)

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
