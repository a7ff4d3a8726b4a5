"""The accuracy of a plan: errors of the calibration, and parts of the request outside of it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ladderize.config.connectivity import LADDER
from ladderize.config.hardware import Errors, Hardware, calibration_errors
from ladderize.tools.predict.planning.forecast import Request
from ladderize.tools.predict.planning.workload import Workload
from ladderize.tools.units import num_bytes

# The measured range: bench/paper_70b.csv.
LINKS, DEVICE = ("nvlink", "nop2p"), "h100"
RANKS, BATCHES = (2, 8), (1, 64)
PROMPT, NEW = 1024, 512
# Bytes of weights per rank: Llama 70B over 8 ranks to 2 ranks, with a margin.
WEIGHTS = (14e9, 75e9)


@dataclass(frozen=True)
class Confidence:
    """The accuracy of a plan.

    Attributes:
        errors: errors of the calibration.
        outside: parts of the request that were never measured, as sentences.
    """

    errors: Errors
    outside: tuple[str, ...]


def confidence(
    workload: Workload, requests: Sequence[Request], hardware: Hardware, kinds: Sequence[str] = ()
) -> Confidence:
    """The confidence of a plan of `requests`; `kinds` are the kinds of the model's branches."""
    found = (
        *_hardware(hardware),
        *_requests(requests),
        *_model(workload, hardware, kinds),
        *_connectivity(workload),
        *_memory(workload, requests, hardware),
    )
    return Confidence(calibration_errors(), found)


def _hardware(hardware: Hardware) -> Iterator[str]:
    device = hardware.name.partition("x")[0]
    if device != DEVICE:
        known = f"{device} was" if device else "these devices were"
        yield f"{known} not measured: assumed to reach the same fraction of peak as {DEVICE}"
    kind = hardware.link.name.rpartition("-")[0]
    if kind not in LINKS:
        source = hardware.link.source or "as given"
        yield f"the link {hardware.link.name} was not measured: {source}"
    if not RANKS[0] <= hardware.ranks <= RANKS[1]:
        yield f"{hardware.ranks} ranks (measured: {RANKS[0]} to {RANKS[1]})"


def _requests(requests: Sequence[Request]) -> Iterator[str]:
    beyond = [str(r.batch) for r in requests if not BATCHES[0] <= r.batch <= BATCHES[1]]
    if beyond:
        yield f"batch {', '.join(beyond)} (measured: {BATCHES[0]} to {BATCHES[1]})"
    prompt, new = requests[0].prompt, requests[0].new
    if not (PROMPT / 2 <= prompt <= 2 * PROMPT and NEW / 2 <= new <= 2 * NEW):
        yield f"prompt {prompt} and {new} new tokens (measured: {PROMPT} and {NEW})"


def _model(workload: Workload, hardware: Hardware, kinds: Sequence[str]) -> Iterator[str]:
    held = workload.bytes_of_a_rank(hardware.ranks, 0, 0)
    if not WEIGHTS[0] <= held <= WEIGHTS[1]:
        yield f"{num_bytes(int(held))} of weights on a rank (measured: 19 to 72 GB)"
    if any("MoE" in kind for kind in kinds):
        yield "experts: all of their weights are assumed to be read in every step"
    if workload.is_expert_parallel:
        yield (
            "expert parallelism is not calibrated: tokens are assumed to be spread evenly over "
            "ranks and experts, and an all-to-all to have the latency of an all-reduce"
        )


def _connectivity(workload: Workload) -> Iterator[str]:
    name = workload.connectivity
    if name == LADDER:
        return
    if workload.is_expert_parallel:
        yield (
            f"{name} is not calibrated: shared experts are part of their block, so the same "
            "all-to-alls are hidden as in a ladder, and the times are those of a ladder"
        )
    elif any(block.reads_landed for block in workload.blocks):
        yield (
            f"{name} is not calibrated: shared experts have an all-reduce of their own, which is "
            "assumed to start when their whole block is computed, and so to be exposed"
        )
    else:
        yield f"{name} is not calibrated"


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
