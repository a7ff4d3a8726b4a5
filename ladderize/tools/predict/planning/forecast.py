"""How fast a net generates: one prefill, and decode steps whose KV cache grows.

tokens/s = batch * new / (prefill + (new - 1) * decode)      all tokens made over all time, as
                                                             gpt-fast and the paper's table count

The prefill makes the first token. Costs grow evenly with the keys, so that the decode step in the
middle stands for all of them.
"""

from dataclasses import dataclass

from ladderize.config.hardware import Hardware
from ladderize.tools.predict.planning.planned_nets import PlannedNet
from ladderize.tools.predict.planning.workload import Phase


@dataclass(frozen=True)
class Request:
    """So many examples at once, with a prompt of so many tokens, and so many new ones of each."""

    batch: int
    prompt: int
    new: int

    @property
    def prefill(self) -> Phase:
        return Phase(self.batch, self.prompt, self.prompt)

    @property
    def decode(self) -> Phase:
        """The step in the middle."""
        return Phase(self.batch, 1, self.prompt + self.new / 2)


@dataclass(frozen=True)
class Forecast:
    """Seconds of one variant.

    Attributes:
        prefill, decode: of the prompt, and of a step of one token.
        prefill_exposed, decode_exposed: of them, while the link is busy and nothing is computed.
        tokens_per_s: of the whole batch, prefill included.
    """

    variant: str
    prefill: float
    decode: float
    prefill_exposed: float
    decode_exposed: float
    tokens_per_s: float


def tokens_per_s(variant: PlannedNet, request: Request, hardware: Hardware) -> float:
    prefill = variant.seconds(request.prefill, hardware)
    decode = variant.seconds(request.decode, hardware) if request.new > 1 else 0.0
    return request.batch * request.new / (prefill + (request.new - 1) * decode)


def forecast(variant: PlannedNet, request: Request, hardware: Hardware) -> Forecast:
    phases = (request.prefill, request.decode)
    prefill, decode = (variant.seconds(phase, hardware) for phase in phases)
    shown, seen = (variant.step(phase, hardware).exposed_seconds for phase in phases)
    speed = tokens_per_s(variant, request, hardware)
    return Forecast(variant.name, prefill, decode, shown, seen, speed)
