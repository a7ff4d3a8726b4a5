"""How sure a plan is: the errors of the calibration, and what of the request lies outside of it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ladderize.tools.predict.hardware import Errors, Hardware, calibration_errors
from ladderize.tools.predict.planning.forecast import Request
from ladderize.tools.predict.planning.paper import NEW, PROMPT, table
from ladderize.tools.predict.planning.workload import Workload
from ladderize.tools.units import num_bytes

LINKS, DEVICE = ("nvlink", "nop2p"), "h100"
# Weights of a rank: from Llama 70B over 8 ranks to that over 2, with room on both sides.
WEIGHTS = (14e9, 75e9)


@dataclass(frozen=True)
class Confidence:
    """How sure a plan is.

    Attributes:
        errors: of the calibration.
        outside: what was asked for and never measured, as sentences; there the errors say little.
    """

    errors: Errors
    outside: tuple[str, ...]


def confidence(
    workload: Workload, requests: Sequence[Request], hardware: Hardware, kinds: Sequence[str] = ()
) -> Confidence:
    """Of a plan of `requests`; `kinds` are those of the model's branches."""
    found = (
        *_hardware(hardware),
        *_requests(requests),
        *_model(workload, hardware, kinds),
        *_memory(workload, requests, hardware),
    )
    return Confidence(calibration_errors(), found)


def _hardware(hardware: Hardware) -> Iterator[str]:
    device = hardware.name.partition("x")[0]
    if device != DEVICE:
        known = f"{device} was" if device else "these devices were"
        yield f"{known} not measured: it is taken to reach as much of its data sheet as {DEVICE}"
    kind = hardware.link.name.rpartition("-")[0]
    if kind not in LINKS:
        source = hardware.link.source or "as given"
        yield f"the link {hardware.link.name} was not measured: {source}"
    ranks = sorted({row.ranks for row in table()})
    if not ranks[0] <= hardware.ranks <= ranks[-1]:
        yield f"{hardware.ranks} ranks (measured: {ranks[0]} to {ranks[-1]})"


def _requests(requests: Sequence[Request]) -> Iterator[str]:
    batches = sorted({row.batch for row in table()})
    beyond = [str(r.batch) for r in requests if not batches[0] <= r.batch <= batches[-1]]
    if beyond:
        yield f"batch {', '.join(beyond)} (measured: {batches[0]} to {batches[-1]})"
    prompt, new = requests[0].prompt, requests[0].new
    if not (PROMPT / 2 <= prompt <= 2 * PROMPT and NEW / 2 <= new <= 2 * NEW):
        yield f"prompt {prompt} and {new} new tokens (measured: {PROMPT} and {NEW})"


def _model(workload: Workload, hardware: Hardware, kinds: Sequence[str]) -> Iterator[str]:
    held = workload.bytes_of_a_rank(hardware.ranks, 0, 0)
    if not WEIGHTS[0] <= held <= WEIGHTS[1]:
        yield f"{num_bytes(int(held))} of weights on a rank (measured: 19 to 72 GB)"
    if any("MoE" in kind for kind in kinds):
        yield "experts: all of their weights are taken to be read in every step"


def _memory(workload: Workload, requests: Sequence[Request], hardware: Hardware) -> Iterator[str]:
    if hardware.capacity is None:
        return
    for request in requests:
        keys = request.prompt + request.new
        held = workload.bytes_of_a_rank(hardware.ranks, request.batch, keys)
        if held > hardware.capacity:
            yield (
                f"batch {request.batch} does not fit: {num_bytes(int(held))} of weights and KV "
                f"cache on a rank of {num_bytes(int(hardware.capacity))}"
            )
