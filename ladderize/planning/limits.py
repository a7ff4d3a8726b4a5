"""Where the gain of a ladder ends, looked for on the model itself.

gain(batch), gain(prompt), gain(bandwidth), gain(latency)      tokens/s of ladder / standard
   0.27 ───────────╲
   0.02 ────────────╳──   the end: below the error of the planner a gain is none that it can tell
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

from ladderize.hardware import Hardware
from ladderize.planning.forecast import Request, tokens_per_s
from ladderize.planning.variants import Variant, ladder, standard
from ladderize.planning.workload import Workload

LEAST_GAIN = 0.02
MOST_DOUBLINGS = 20


@dataclass(frozen=True)
class Limits:
    """Up to where the gain is `LEAST_GAIN` or more, all else as asked; None: no end was found.

    Attributes:
        batch: of the request around which they were looked for.
        gain: there.
        last_batch, last_prompt: the largest with that gain.
        last_bandwidth: bytes per second of the link.
        least_latency: seconds of an all-reduce.
    """

    batch: int
    gain: float
    last_batch: int | None = None
    last_prompt: int | None = None
    last_bandwidth: float | None = None
    least_latency: float | None = None


def limits(workload: Workload, request: Request, hardware: Hardware) -> Limits:
    """Around `request`; without ends where there is no gain at all."""
    nets = (standard(workload), ladder(workload))

    def gain(request: Request = request, **link: float) -> float:
        there = dataclasses.replace(hardware, link=dataclasses.replace(hardware.link, **link))
        return gain_of(nets, request, there)

    found = gain()
    if found < LEAST_GAIN:
        return Limits(request.batch, found)
    batch, prompt, link = request.batch, request.prompt, hardware.link
    return Limits(
        batch,
        found,
        _whole(_end(batch, 2, lambda b: gain(dataclasses.replace(request, batch=int(b))))),
        _whole(_end(prompt, 2, lambda p: gain(dataclasses.replace(request, prompt=int(p))))),
        _end(link.bandwidth, 2, lambda b: gain(bandwidth=b)),
        _end(link.latency, 0.5, lambda a: gain(latency=a)),
    )


def gain_of(nets: tuple[Variant, Variant], request: Request, hardware: Hardware) -> float:
    """Tokens/s of the second net over those of the first, less 1."""
    slow, fast = (tokens_per_s(net, request, hardware) for net in nets)
    return fast / slow - 1


def _end(start: float, factor: float, gain: Callable[[float], float]) -> float | None:
    """The last value from `start` in steps of `factor` that has the gain, by halving the step."""
    value = start
    for _ in range(MOST_DOUBLINGS):
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


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)


# ---- which layers


@dataclass(frozen=True)
class Fewest:
    """The fewest layers (blocks, where there are no layers) that give most of the gain.

    Attributes:
        indices: of the layers to convert.
        total: number of layers that the whole ladder converts.
        unit: "layers" or "blocks".
    """

    indices: tuple[int, ...]
    total: int
    unit: str

    @property
    def text(self) -> str:
        """As `--layers` and `--blocks` take it, where that is short."""
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
    """The fewest that give `share` of the gain of the whole ladder.

    What each gives alone decides in which order they are taken; later layers come first where
    that is the same, as those change a trained model least.
    """
    unit, groups = _groups(workload)
    base = standard(workload)

    def gain(layers: tuple[int, ...]) -> float:
        chosen = {block for layer in layers for block in groups[layer]}
        return gain_of((base, ladder(workload, chosen)), request, hardware)

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
    """The blocks to convert by their layer, or each by itself."""
    blocks = [block for block in workload.blocks if block.index in workload.chosen]
    if any(block.layer is None for block in blocks):
        return "blocks", {block.index: [block.index] for block in blocks}
    groups: dict[int, list[int]] = {}
    for block in blocks:
        groups.setdefault(block.layer or 0, []).append(block.index)
    return "layers", groups
