"""`HealResult`: what a run of `heal` was and what it reached; OUT/heal.json."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

_FORMAT = {"format": "ladderize-heal", "format_version": 1}
METRICS = ("kl", "loss", "standard_loss", "agreement")


@dataclass(frozen=True)
class HealResult:
    """A run that is done.

    Attributes:
        blocks: the converted blocks, as `blocks=` counts them.
        num_blocks: of the model.
        before, after: of the ladder, on text that was held out: `kl` to the standard model in nats
            per token, `loss` and `standard_loss` (cross entropy in nats per token), `agreement`,
            the share of tokens for which both prefer the same next one.
        fitted: as `before`, after the start by least squares; None without one.
        curve: rows by `tokens` seen: losses of training (`loss`, `kl`, `label_loss`,
            `stream_loss`), or on the held-out text (`eval_…`).
        tokens: that were trained on.
        held_out_tokens: that were only measured on.
        seconds: of training and measuring.
        options: those of `HealOptions`.
        versions: of ladderize, torch and transformers.
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
        """The share of the damage that is healed, of "kl" or "loss"; None if there was none."""
        standard = self.before["standard_loss"] if name == "loss" else 0.0
        added, left = self.before[name] - standard, self.after[name] - standard
        return 1 - left / added if added > 0 else None

    def to_json(self) -> str:
        return json.dumps(
            {"format": "ladderize-heal", "format_version": 1, **asdict(self)}, indent=1
        )


def metrics_of(evaluation: Mapping[str, float]) -> dict[str, float]:
    """Those of `HealingTrainer.evaluate()`, by their plain names."""
    return {name: evaluation[f"eval_{name}"] for name in METRICS}


def curve_of(
    measured: Sequence[Mapping[str, float]],
    history: Sequence[Mapping[str, Any]],
    tokens_per_step: int,
) -> list[dict[str, float]]:
    """The rows of a Trainer's log that hold losses, by tokens instead of steps.

    Args:
        measured: on the held-out text before the first step, in order.
        history: the log.
        tokens_per_step: over all ranks.
    """
    curve: list[dict[str, float]] = [
        {"tokens": 0, **{f"eval_{n}": v for n, v in each.items()}} for each in measured
    ]
    for row in history:
        if losses := {name: row[name] for name in _LOGGED if name in row}:
            curve.append({"tokens": row["step"] * tokens_per_step, **losses})
    return curve


_LOGGED = ("loss", "kl", "label_loss", "stream_loss", *(f"eval_{name}" for name in METRICS))
