"""Find where the gain of a ladder ends, by predictions for the model.

    gain(batch), gain(prompt), gain(bandwidth), gain(latency)      tokens/s of ladder / standard - 1

The end is where the gain falls below the accuracy of the planner; see confidence.py.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from math import inf

from ladderize.config.hardware import Hardware
from ladderize.tools.predict.planning.forecast import Request, tokens_per_s
from ladderize.tools.predict.planning.planned_nets import PlannedNet, converted, standard
from ladderize.tools.predict.planning.workload import Phase, Workload

LEAST_GAIN = 0.02
MOST_DOUBLINGS = 20


@dataclass(frozen=True)
class Hiding:
    """What a block can hide in one phase.

    Attributes:
        reduce: duration of a collective, in seconds.
        hidden: duration of the longest collective that the shortest block hides, in seconds.
        bandwidth: least bandwidth at which it hides a collective, in bytes per second; None if
            latency alone is too long.
        op: kind of the collective: "all_reduce", or "all_to_all" with expert parallelism.
    """

    reduce: float
    hidden: float
    bandwidth: float | None
    op: str = "all_reduce"


@dataclass(frozen=True)
class Limits:
    """The range in which the gain is at least `LEAST_GAIN`, varying one quantity at a time.

    Attributes:
        batch: batch size of the request.
        gain: gain for the request.
        prefill, decode: what blocks hide in each phase of the request.
        full_batch, full_prompt: largest values that fit into memory, None if unknown.
        last_batch, last_prompt: largest values with that gain, None if memory ends first.
        last_bandwidth: highest bandwidth with that gain, in bytes per second; None if unlimited.
        least_latency: lowest latency with that gain, in seconds; None if there is none.
    """

    batch: int
    gain: float
    prefill: Hiding
    decode: Hiding
    full_batch: int | None = None
    full_prompt: int | None = None
    last_batch: int | None = None
    last_prompt: int | None = None
    last_bandwidth: float | None = None
    least_latency: float | None = None


def limits(workload: Workload, request: Request, hardware: Hardware) -> Limits:
    """The limits around `request`. If its gain is too small, no ends are given."""
    nets = (standard(workload), converted(workload))

    def gain(**changes: float) -> float:
        """The gain with some fields of the request or of the link changed."""
        given = {k: int(v) for k, v in changes.items() if k in ("batch", "prompt")}
        link = {k: v for k, v in changes.items() if k not in given}
        there = dataclasses.replace(hardware, link=dataclasses.replace(hardware.link, **link))  # type: ignore[arg-type]
        return gain_of(nets, dataclasses.replace(request, **given), there)

    full_batch, full_prompt = _full(workload, request, hardware)
    prefill, decode = (
        _hiding(workload, phase, hardware) for phase in (request.prefill, request.decode)
    )
    found = Limits(request.batch, gain(), prefill, decode, full_batch, full_prompt)
    if found.gain < LEAST_GAIN:
        return found
    link = hardware.link
    return dataclasses.replace(
        found,
        last_batch=_whole(_end(request.batch, 2, lambda b: gain(batch=b), full_batch)),
        last_prompt=_whole(_end(request.prompt, 2, lambda p: gain(prompt=p), full_prompt)),
        last_bandwidth=_end(link.bandwidth, 2, lambda b: gain(bandwidth=b)),
        least_latency=_end(link.latency, 0.5, lambda a: gain(latency=a)),
    )


def _whole(value: float | None) -> int | None:
    """Round down to three digits, which is finer than the search."""
    if value is None:
        return None
    unit = int(10 ** max(len(str(int(value))) - 3, 0))
    return int(value) // unit * unit


def _hiding(workload: Workload, phase: Phase, hardware: Hardware) -> Hiding:
    """What hides an all-reduce is a block with one; an all-to-all, a block without one."""
    ranks, link = hardware.ranks, hardware.link
    is_exchanged = workload.is_expert_parallel
    blocks = [
        b for b in workload.blocks if (not b.exchanged_bytes if is_exchanged else b.reduce_bytes)
    ]
    each = [block.costs.seconds(phase, hardware, block.ranks(ranks)) for block in blocks]
    compute = min(each, default=0.0)
    most = max((b.reduce_bytes + b.exchanged_bytes for b in workload.blocks), default=0.0)
    sent = most * phase.tokens
    hidden = compute / (1 - hardware.contention)
    op = "all_to_all" if is_exchanged else "all_reduce"
    bandwidth = None
    if sent and hidden > link.latency:
        bandwidth = link.bytes_sent(sent, op) / (hidden - link.latency)
    seconds = link.seconds(sent, op) if ranks > 1 else 0.0
    return Hiding(seconds, hidden, bandwidth, op)


def _full(
    workload: Workload, request: Request, hardware: Hardware
) -> tuple[int | None, int | None]:
    """The largest batch and prompt that fit into a rank's memory with the weights."""
    if hardware.capacity is None:
        return None, None
    keys, ranks = request.prompt + request.new, hardware.ranks
    weights = workload.bytes_of_a_rank(ranks, 0, 0)
    token = (workload.bytes_of_a_rank(ranks, 1, 1) - weights) or inf
    held = max(hardware.capacity - weights, 0.0) / token  # tokens of all examples
    return int(held / keys) or None, max(int(held / request.batch) - request.new, 0) or None


def gain_of(nets: tuple[PlannedNet, PlannedNet], request: Request, hardware: Hardware) -> float:
    """Tokens/s of the second model over those of the first, minus 1."""
    slow, fast = (tokens_per_s(net, request, hardware) for net in nets)
    return fast / slow - 1


def _end(
    start: float, factor: float, gain: Callable[[float], float], most: float | None = None
) -> float | None:
    """The last value with the gain, searched from `start` by `factor`, then in smaller steps.

    None if the gain does not end up to `most`.
    """
    value = start
    for _ in range(MOST_DOUBLINGS):
        if most is not None and value * factor > most:
            if gain(most) >= LEAST_GAIN:
                return None
            break
        if gain(value * factor) < LEAST_GAIN:
            break
        value *= factor
    else:
        return None
    for _ in range(6):
        factor **= 0.5
        if gain(value * factor) >= LEAST_GAIN:
            value *= factor
    return value


# ---- which layers


@dataclass(frozen=True)
class Fewest:
    """The fewest layers (or blocks, for a model without layers) that give most of the gain.

    Attributes:
        indices: indices of the layers to convert.
        total: number of layers that the whole ladder converts.
        unit: "layers" or "blocks".
    """

    indices: tuple[int, ...]
    total: int
    unit: str

    @property
    def text(self) -> str:
        """The indices as `--layers` and `--blocks` take them."""
        number = len(self.indices)
        if not number:
            return "none"
        run = range(self.indices[0], self.indices[0] + number)
        if self.indices == tuple(run):
            return f"{run.start}:{run.stop}"
        return str(list(self.indices))


def fewest_layers(
    workload: Workload, request: Request, hardware: Hardware, share: float = 0.9
) -> Fewest:
    """The fewest layers that give `share` of the gain of the whole ladder.

    Layers are taken in the order of their gain alone. Of equal ones, later layers come first,
    because they change a trained model least.
    """
    unit, groups = _groups(workload)
    base = standard(workload)

    def gain(layers: tuple[int, ...]) -> float:
        chosen = {block for layer in layers for block in groups[layer]}
        return gain_of((base, converted(workload, chosen)), request, hardware)

    enough = share * gain(tuple(groups))
    if enough <= 0:
        return Fewest((), len(groups), unit)
    alone = {layer: round(gain((layer,)), 7) for layer in groups}
    order = sorted(groups, key=lambda layer: (alone[layer], layer), reverse=True)
    low, high = 0, len(order)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if gain(tuple(order[:middle])) >= enough else (middle + 1, high)
    return Fewest(tuple(sorted(order[:low])), len(groups), unit)


def _groups(workload: Workload) -> tuple[str, dict[int, list[int]]]:
    """The blocks to convert, grouped by layer, or one per group if some have no layer."""
    blocks = [block for block in workload.blocks if block.index in workload.chosen]
    if any(block.layer is None for block in blocks):
        return "blocks", {block.index: [block.index] for block in blocks}
    groups: dict[int, list[int]] = {}
    for block in blocks:
        groups.setdefault(block.layer or 0, []).append(block.index)
    return "layers", groups
