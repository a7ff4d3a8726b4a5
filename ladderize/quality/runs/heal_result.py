"""`HealResult`: the options and results of a `heal` run, as in OUT/heal.json."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

_FORMAT = {"format": "ladderize-heal", "format_version": 1}
METRICS = ("kl", "loss", "standard_loss", "agreement")


@dataclass(frozen=True)
class HealResult:
    """The result of a finished run.

    Attributes:
        blocks: indices of the converted blocks, as for `blocks=`.
        num_blocks: number of blocks of the model.
        before, after: metrics of the ladder on held-out text: `kl` to the standard model in nats
            per token, `loss` and `standard_loss` (cross entropy in nats per token), and
            `agreement`, the fraction of tokens for which both predict the same next token.
        fitted: the same metrics after the least-squares fit; None without one.
        curve: rows by `tokens` seen, with training losses (`loss`, `kl`, `label_loss`,
            `stream_loss`) or metrics on held-out text (`eval_…`).
        tokens: number of training tokens.
        held_out_tokens: number of held-out tokens.
        seconds: time of training and evaluation, in seconds.
        options: options of the run (`HealOptions`).
        versions: versions of ladderize, torch and transformers.
    """

    blocks: tuple[int, ...]
    num_blocks: int
    before: Mapping[str, float]
    fitted: Mapping[str, float] | None
    after: Mapping[str, float]
    curve: Sequence[Mapping[str, float]]
    tokens: int
    held_out_tokens: int
    seconds: float
    options: Mapping[str, Any]
    versions: Mapping[str, str]

    def recovered(self, name: str) -> float | None:
        """Fraction of the damage in "kl" or "loss" that is healed; None if there was no damage."""
        standard = self.before["standard_loss"] if name == "loss" else 0.0
        added, left = self.before[name] - standard, self.after[name] - standard
        return 1 - left / added if added > 0 else None

    def to_json(self) -> str:
        return json.dumps(
            {"format": "ladderize-heal", "format_version": 1, **asdict(self)}, indent=1
        )


def metrics_of(evaluation: Mapping[str, float]) -> dict[str, float]:
    """The metrics of `HealingTrainer.evaluate()`, without their prefix."""
    return {name: evaluation[f"eval_{name}"] for name in METRICS}


def curve_of(
    measured: Sequence[Mapping[str, float]],
    history: Sequence[Mapping[str, Any]],
    tokens_per_step: int,
) -> list[dict[str, float]]:
    """The rows of a Trainer's log that hold losses, by tokens instead of steps.

    Args:
        measured: metrics on held-out text before the first step, in order.
        history: log of the Trainer.
        tokens_per_step: tokens per step over all ranks.
    """
    curve: list[dict[str, float]] = [
        {"tokens": 0, **{f"eval_{n}": v for n, v in each.items()}} for each in measured
    ]
    for row in history:
        if losses := {name: row[name] for name in _LOGGED if name in row}:
            curve.append({"tokens": row["step"] * tokens_per_step, **losses})
    return curve


_LOGGED = ("loss", "kl", "label_loss", "stream_loss", *(f"eval_{name}" for name in METRICS))
