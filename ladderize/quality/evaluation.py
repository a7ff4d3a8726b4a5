"""Compare a ladder with its standard model on text, with intervals over sequences.

standard, ladder, batches ── measures of each sequence ── Evaluation
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ladderize.errors import LadderError
from ladderize.quality.measures import Measures, logits_of, measure, positions_of

_RESAMPLES = 1000


@dataclass(frozen=True)
class Estimate:
    """A value with a 95 % interval, by resampling whole sequences (bootstrap).

    Attributes:
        value: estimate over all tokens.
        low, high: ends of the interval; None with fewer than two sequences.
    """

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Evaluation:
    """A ladder next to its standard model, on the same tokens.

    Attributes:
        sequences: number of sequences.
        tokens: number of compared predictions.
        kl: KL(standard ‖ ladder), in nats per token.
        agreement: fraction of predictions with the same most probable token, 0 to 1.
        standard_perplexity, perplexity: exp(loss) of the standard model and of the ladder.
        added_loss: loss of the ladder minus that of the standard model, in nats per token.
    """

    sequences: int
    tokens: int
    kl: Estimate
    agreement: Estimate
    standard_perplexity: Estimate
    perplexity: Estimate
    added_loss: Estimate


def evaluate(
    standard: Callable[..., Any],
    ladder: Callable[..., Any],
    batches: Sequence[Mapping[str, Any]],
    on_progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Compare two causal language models on the same tokens.

    >>> ladder = ladderize.compile(copy.deepcopy(standard), blocks=plan.best(0.5).blocks)
    >>> print(evaluate(standard, ladder, [{"input_ids": ids}]).kl)

    Args:
        standard, ladder: models in eval mode, whose logits have the same shape.
        batches: keyword arguments of both models, one mapping per call.
        on_progress: called with the number of finished batches and of all batches.

    Raises:
        LadderError: the logits differ in shape, or the batches have no next tokens.
    """
    parts = []
    for number, batch in enumerate(batches, 1):
        with torch.no_grad():
            wanted, found = (logits_of(model(**batch)) for model in (standard, ladder))
        if wanted.shape != found.shape:
            raise LadderError(
                f"The logits of the models differ in shape: {list(wanted.shape)} and "
                f"{list(found.shape)}.",
                cure="compare a ladder with the standard model of the same weights or vocabulary",
            )
        positions = positions_of(batch, wanted, predicts_next=True)
        parts.append(measure(wanted, found, *positions))
        if on_progress is not None:
            on_progress(number, len(batches))
    return evaluation_of(Measures.joined(parts))


def evaluation_of(measures: Measures) -> Evaluation:
    """The estimates from measures of sequences.

    Raises:
        LadderError: there are no next tokens.
    """
    if not measures.targets.sum():
        raise LadderError("The batches have no next tokens, so there is no perplexity.")
    drawn = _resampled(measures)
    losses = (_ratio(drawn, "standard_loss"), _ratio(drawn, "loss"))
    return Evaluation(
        sequences=len(measures.tokens),
        tokens=int(measures.tokens.sum()),
        kl=_estimate(_ratio(drawn, "kl")),
        agreement=_estimate(_ratio(drawn, "agreeing")),
        standard_perplexity=_estimate(losses[0].exp()),
        perplexity=_estimate(losses[1].exp()),
        added_loss=_estimate(losses[1] - losses[0]),
    )


_COUNTS = {"kl": "tokens", "agreeing": "tokens", "loss": "targets", "standard_loss": "targets"}


def _resampled(measures: Measures) -> dict[str, Tensor]:
    """Sums over all sequences, then over resamples with replacement, `[1 + resamples]` each."""
    count = len(measures.tokens)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(0, count, (_RESAMPLES if count > 1 else 0, count), generator=generator)
    rows = torch.cat([torch.arange(count)[None], drawn])
    names = (*_COUNTS, "tokens", "targets")
    return {name: getattr(measures, name)[rows].sum(1) for name in names}


def _ratio(drawn: Mapping[str, Tensor], name: str) -> Tensor:
    return drawn[name] / drawn[_COUNTS[name]]


def _estimate(values: Tensor) -> Estimate:
    """The value over all sequences, with the quantiles of the resamples."""
    if len(values) == 1:
        return Estimate(float(values[0]))
    ends = torch.quantile(values[1:], torch.tensor([0.025, 0.975], dtype=values.dtype))
    return Estimate(float(values[0]), *map(float, ends))
