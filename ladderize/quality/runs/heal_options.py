"""`HealOptions`: all options that affect the result of `heal`."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ladderize.config.connectivity import LADDER
from ladderize.config.options import LadderConfig
from ladderize.config.residual_form import PLAIN
from ladderize.errors import Blocker, LadderError


@dataclass(frozen=True)
class HealOptions:
    """The options of `heal`. A run is resumed with the same options.

    Attributes:
        blocks, layers, staleness, connectivity, routed, variant, lowering: options of
            `LadderConfig` for the ladder.
        fit_tokens: number of tokens for the least-squares fit of the first weights that read the
            stream, before training; 0 for no fit.
        tokens: number of training tokens over all ranks; a shorter text is repeated.
        steps: number of optimizer steps, instead of `tokens`.
        batch: sequences per step and rank.
        length: tokens per sequence.
        learning_rate: peak learning rate; None for 1e-4, or 1e-3 with LoRA. It warms up over the
            first 5 % of the steps, then decays along a cosine.
        lora: rank of adapters on all linear layers; None trains all weights.
        temperature, label_weight, stream_weight, blend_steps: as in `HealingArguments`.
        bfloat16: whether to compute in bfloat16, with float32 weights; None for yes on CUDA
            devices that support it.
        self_generated: number of training tokens that the standard model generates.
        seed: random seed.

    Raises:
        LadderError: listing invalid options.
    """

    blocks: str | int | Sequence[int] | None = None
    layers: str | int | Sequence[int] | None = None
    staleness: int = 1
    connectivity: str = LADDER
    routed: str | Sequence[str] | None = None
    variant: str = PLAIN
    lowering: str = "inductor"
    fit_tokens: int = 0
    tokens: int = 100_000
    steps: int | None = None
    batch: int = 4
    length: int = 128
    learning_rate: float | None = None
    lora: int | None = None
    temperature: float = 1.0
    label_weight: float = 0.0
    stream_weight: float = 0.0
    blend_steps: int = 0
    bfloat16: bool | None = None
    self_generated: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        blockers = [Blocker(what) for what in self._problems()]
        if blockers:
            raise LadderError("These options cannot be used:", blockers)
        LadderConfig.from_options(self.ladder)

    def _problems(self) -> Iterator[str]:
        for name in ("tokens", "batch", "length", "steps", "lora", "learning_rate"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                yield f"{name}={value!r} is not above 0"
        for name in ("self_generated", "blend_steps", "fit_tokens"):
            if getattr(self, name) < 0:
                yield f"{name}={getattr(self, name)!r} is below 0"
        if self.length == 1:
            yield "length=1 leaves no next token to predict"

    @property
    def ladder(self) -> dict[str, Any]:
        """The options of `ladderize.compile`."""
        names = ("blocks", "layers", "staleness", "connectivity", "routed", "variant", "lowering")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    def num_steps(self, num_ranks: int) -> int:
        tokens_per_step = self.batch * self.length * num_ranks
        return self.steps or max(1, round(self.tokens / tokens_per_step))

    @property
    def peak_learning_rate(self) -> float:
        return self.learning_rate or (1e-4 if self.lora is None else 1e-3)

    def as_data(self) -> dict[str, Any]:
        """The options as JSON data."""
        return {n: list(v) if isinstance(v, tuple) else v for n, v in asdict(self).items()}
