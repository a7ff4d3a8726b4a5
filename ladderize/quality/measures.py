"""Measure the distance of a ladder from its standard model: KL, loss and top-1 agreement.

logits of both [sequences, tokens, vocabulary] ── for each sequence ── sums over its tokens
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ladderize.errors import LadderError

IGNORED = -100
"""The label of tokens that losses ignore, as in transformers."""


@dataclass(frozen=True)
class Measures:
    """Sums over the tokens of each sequence, float64 on the CPU, `[sequences]` each.

    Attributes:
        tokens: number of compared predictions.
        kl: KL(standard ‖ ladder), in nats.
        agreeing: number of predictions with the same most probable token.
        targets: number of tokens with a known next token; 0 without labels.
        loss: negative log probability of the next token in the ladder, in nats.
        standard_loss: the same in the standard model.
    """

    tokens: Tensor
    kl: Tensor
    agreeing: Tensor
    targets: Tensor
    loss: Tensor
    standard_loss: Tensor

    @classmethod
    def joined(cls, parts: "list[Measures]") -> "Measures":
        """The measures of several batches."""
        return cls(*(torch.cat([getattr(p, name) for p in parts]) for name in _SUMS))

    @property
    def mean_kl(self) -> float:
        """KL in nats per token."""
        return _ratio(self.kl, self.tokens)

    @property
    def agreement(self) -> float:
        """Fraction of predictions with the same most probable token, 0 to 1."""
        return _ratio(self.agreeing, self.tokens)

    @property
    def mean_loss(self) -> float | None:
        """Loss of the ladder in nats per token; None without labels."""
        return _ratio(self.loss, self.targets) if self.targets.sum() else None

    @property
    def mean_standard_loss(self) -> float | None:
        """Loss of the standard model in nats per token; None without labels."""
        return _ratio(self.standard_loss, self.targets) if self.targets.sum() else None


_SUMS = ("tokens", "kl", "agreeing", "targets", "loss", "standard_loss")


def _ratio(total: Tensor, count: Tensor) -> float:
    return float(total.sum() / count.sum())


def measure(standard: Tensor, ladder: Tensor, targets: Tensor, compared: Tensor) -> Measures:
    """Compare the logits of two models, one sequence at a time, in float32.

    Args:
        standard, ladder: logits, `[sequences, tokens, vocabulary]`.
        targets: next token at each position, -100 if unknown; `[sequences, tokens]`.
        compared: whether each position counts for the divergence; bool `[sequences, tokens]`.
    """
    rows = [_measure_row(*row) for row in zip(standard, ladder, targets, compared, strict=True)]
    return Measures(*torch.tensor(rows, dtype=torch.float64).view(-1, len(_SUMS)).unbind(1))


def _measure_row(
    standard: Tensor, ladder: Tensor, targets: Tensor, compared: Tensor
) -> tuple[float, ...]:
    wanted = F.log_softmax(standard[compared].float(), -1)
    found = F.log_softmax(ladder[compared].float(), -1)
    kl = F.kl_div(found, wanted, reduction="sum", log_target=True)
    agreeing = (wanted.argmax(-1) == found.argmax(-1)).sum()
    known = targets[compared] != IGNORED
    at = targets[compared][known, None]
    return (
        float(compared.sum()),
        float(kl),
        float(agreeing),
        float(known.sum()),
        -float(found[known].gather(1, at).sum()),
        -float(wanted[known].gather(1, at).sum()),
    )


# ---- the tokens of a batch


def logits_of(output: Any) -> Tensor:
    """The logits in a model's output, `[sequences, tokens, vocabulary]`.

    Logits of a classifier, `[examples, classes]`, become one token each.

    Raises:
        LadderError: the output has no logits.
    """
    found = getattr(output, "logits", None)
    if found is None:
        found = output[0] if isinstance(output, tuple | list) and output else output
    if not isinstance(found, Tensor) or found.dim() < 2 or not found.is_floating_point():
        raise LadderError(
            f"The model returns {type(output).__name__}, not logits.",
            cure="use a model with a head, whose output has .logits or is the logits",
        )
    return found.flatten(1, -2) if found.dim() > 2 else found[:, None]


def positions_of(
    batch: Mapping[str, Any], logits: Tensor, *, predicts_next: bool
) -> tuple[Tensor, Tensor]:
    """The targets for `measure`, and the positions to compare.

    Padded positions (`attention_mask` 0) are neither compared nor targets.

    Args:
        batch: keyword arguments of the model.
        logits: logits of either model.
        predicts_next: whether the model predicts the next token. Targets are then `labels` (-100:
            unknown) or `input_ids`; otherwise there are none.
    """
    shape = logits.shape[:2]
    mask = batch.get("attention_mask")
    compared = logits.new_ones(shape, dtype=torch.bool)
    if isinstance(mask, Tensor) and mask.shape == shape:
        compared = mask.bool()
    targets = logits.new_full(shape, IGNORED, dtype=torch.int64)
    tokens = batch.get("labels", batch.get("input_ids"))
    if predicts_next and isinstance(tokens, Tensor) and tokens.shape == shape:
        targets = next_tokens(tokens.long(), compared)
    return targets, compared


def next_tokens(labels: Tensor, mask: Tensor | None = None) -> Tensor:
    """The label that each position predicts, `[batch, length]`; -100 if none."""
    if mask is not None:
        labels = labels.masked_fill(mask == 0, IGNORED)
    return F.pad(labels[:, 1:], (0, 1), value=IGNORED)
