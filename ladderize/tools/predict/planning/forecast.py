"""Predict generation speed: one prefill, and decode steps with a growing KV cache.

tokens/s = batch * new / (prefill + (new - 1) * decode)      generated tokens over total time, as
                                                             in gpt-fast and the paper's table

The prefill makes the first token. Costs are linear in the keys, so the middle decode step stands
for all of them.
"""

from dataclasses import dataclass

from ladderize.config.hardware import Hardware
from ladderize.tools.predict.planning.planned_nets import PlannedNet
from ladderize.tools.predict.planning.workload import Phase


@dataclass(frozen=True)
class Request:
    """Examples to generate for: batch size, and prompt and new tokens per example."""

    batch: int
    prompt: int
    new: int

    @property
    def prefill(self) -> Phase:
        return Phase(self.batch, self.prompt, self.prompt)

    @property
    def decode(self) -> Phase:
        """The middle decode step."""
        return Phase(self.batch, 1, self.prompt + self.new / 2)


@dataclass(frozen=True)
class Forecast:
    """The predicted times of one variant, in seconds.

    Attributes:
        prefill, decode: time of the prefill, and of a decode step.
        prefill_exposed, decode_exposed: exposed communication in each.
        tokens_per_s: tokens per second of the whole batch, including prefill.
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
