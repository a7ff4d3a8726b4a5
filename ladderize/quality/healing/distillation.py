"""The losses of healing: how far a ladder is from its standard model on the same tokens.

student's logits [batch, length, words] ─┐
teacher's logits [batch, length, words] ─┴ chunks of rows, in float32 ── KL, cross entropy: [rows]

Logits are converted to float32 one chunk of rows at a time, and again in the backward pass.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ladderize.errors import Blocker, LadderError
from ladderize.quality.measures import IGNORED, next_tokens

_WORDS_PER_CHUNK = 2**24
"""Number of logits in float32 at a time: 64 MiB per copy."""


@dataclass(frozen=True)
class DistillationParts:
    """A loss and its unweighted parts; scalars in float32.

    Attributes:
        total: loss, with gradients to the student.
        kl: KL divergence of the student from the teacher per token, times the temperature squared.
        label: cross entropy of the student per token.
        stream: squared relative distance of the residual streams; 0 unless it has a weight.
    """

    total: Tensor
    kl: Tensor
    label: Tensor
    stream: Tensor


@dataclass(frozen=True)
class DistillationLoss:
    """`kl_weight * KL + label_weight * CE + stream_weight * S`, each a mean over tokens.

    KL is `T² Σ p_t log(p_t / p_s)` with `p = softmax(logits / T)` (Hinton, Vinyals and Dean,
    arXiv 1503.02531). S is the mean over layers of `‖s - t‖² / ‖t‖²`, of the stream after each.

    Attributes:
        temperature: temperature T, above 0.
        kl_weight, label_weight, stream_weight: weights, at least 0 and not all 0.

    Raises:
        LadderError: listing invalid numbers.
    """

    temperature: float = 1.0
    kl_weight: float = 1.0
    label_weight: float = 0.0
    stream_weight: float = 0.0

    def __post_init__(self) -> None:
        weights = {name: getattr(self, name) for name in _WEIGHTS}
        blockers = [
            Blocker(f"{name}={weight!r} is below 0")
            for name, weight in weights.items()
            if not weight >= 0
        ]
        if not self.temperature > 0:
            blockers.append(Blocker(f"temperature={self.temperature!r} is not above 0"))
        if not any(weights.values()):
            blockers.append(Blocker(f"{', '.join(weights)} are all 0"))
        if blockers:
            raise LadderError("These options cannot be used:", blockers)

    def __call__(
        self, student: Any, teacher: Any, labels: Tensor, mask: Tensor | None = None
    ) -> DistillationParts:
        """The loss of one batch.

        Args:
            student, teacher: outputs of a causal language model, with `logits` and, for the stream
                loss, `hidden_states`.
            labels: `[batch, length]`, the tokens, or -100 for tokens that do not count.
            mask: `[batch, length]`, 0 for padding.
        """
        counted = counted_positions(labels, mask)
        rows = _Rows(self.temperature, has_label_gradients=self.label_weight > 0)
        kl, cross_entropy = rows(student.logits, teacher.logits, next_tokens(labels, mask))
        parts = {
            "kl": _mean(kl, counted),
            "label": _mean(cross_entropy, next_tokens(labels, mask) != IGNORED),
            "stream": kl.new_zeros(()),
        }
        if self.stream_weight:
            parts["stream"] = stream_distance(student.hidden_states, teacher.hidden_states, counted)
        weighted = zip(_WEIGHTS, parts.values(), strict=True)
        used = [getattr(self, name) * part for name, part in weighted if getattr(self, name)]
        return DistillationParts(
            torch.stack(used).sum(), **{name: part.detach() for name, part in parts.items()}
        )


_WEIGHTS = ("kl_weight", "label_weight", "stream_weight")


def counted_positions(labels: Tensor, mask: Tensor | None = None) -> Tensor:
    """The positions at which student and teacher are compared, bool `[batch, length]`.

    A position counts if its next token does; the last one counts if its own token does.
    """
    if mask is not None:
        labels = labels.masked_fill(mask == 0, IGNORED)
    return torch.cat([labels[:, 1:], labels[:, -1:]], dim=1) != IGNORED


def stream_distance(
    student: Sequence[Tensor], teacher: Sequence[Tensor], counted: Tensor
) -> Tensor:
    """The mean over layers and counted positions of `‖s - t‖² / ‖t‖²`.

    Args:
        student, teacher: `hidden_states` of transformers: the embedding, which is ignored, and the
            stream after each layer, `[batch, length, features]`.
        counted: bool `[batch, length]`.
    """
    layers = zip(student[1:], teacher[1:], strict=True)
    distances = [_squares(s.float() - t.float()) / _squares(t.float()) for s, t in layers]
    return torch.stack([_mean(each, counted) for each in distances]).mean()


def _squares(values: Tensor) -> Tensor:
    return values.square().sum(-1).clamp_min(torch.finfo(torch.float32).tiny)


def _mean(values: Tensor, counted: Tensor) -> Tensor:
    return (values * counted).sum() / counted.sum().clamp_min(1)


@dataclass(frozen=True)
class _Rows:
    """Computes KL and cross entropy of each row of logits, `[batch, length]` each, in chunks."""

    temperature: float
    has_label_gradients: bool

    def __call__(self, student: Tensor, teacher: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        chunks = _chunks(student, teacher, targets)
        found = [
            checkpoint(self._of_chunk, *chunk, use_reentrant=False, preserve_rng_state=False)
            for chunk in chunks
        ]
        kl, cross_entropy = (
            torch.cat(column).view(targets.shape) for column in zip(*found, strict=True)
        )
        return kl, cross_entropy

    def _of_chunk(self, student: Tensor, teacher: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        labeled = student if self.has_label_gradients else student.detach()
        return (
            divergence(student, teacher, self.temperature),
            F.cross_entropy(labeled.float(), targets, ignore_index=IGNORED, reduction="none"),
        )


def _chunks(student: Tensor, teacher: Tensor, targets: Tensor) -> Iterator[tuple[Tensor, ...]]:
    num_rows = max(1, _WORDS_PER_CHUNK // student.shape[-1])
    flat = student.flatten(0, 1), teacher.flatten(0, 1), targets.flatten()
    return zip(*(torch.split(each, num_rows) for each in flat), strict=True)


def divergence(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """`T² KL(teacher ‖ student)` of each row of logits, in nats: `[rows]`, float32.

    Args:
        student, teacher: logits, `[rows, words]`.
        temperature: temperature T, by which both logits are divided.
    """
    mine = F.log_softmax(student.float() / temperature, dim=-1)
    other = F.log_softmax(teacher.float() / temperature, dim=-1)
    return F.kl_div(mine, other, log_target=True, reduction="none").sum(-1) * temperature**2
