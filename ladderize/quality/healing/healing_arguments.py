"""`HealingArguments`: transformers' TrainingArguments with the weights of the losses."""

from dataclasses import dataclass

import transformers

from ladderize.errors import Blocker, LadderError
from ladderize.quality.healing.distillation import DistillationLoss


@dataclass
class HealingArguments(transformers.TrainingArguments):
    """transformers' TrainingArguments with the weights of the losses.

    Attributes:
        temperature: temperature of the logits of both models, above 0.
        kl_weight: weight of the KL divergence from the standard model.
        label_weight: weight of the cross entropy with the labels.
        stream_weight: weight of the distance between the residual streams after each layer.
        blend_steps: number of first steps whose reads blend fresh and stale values.
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
