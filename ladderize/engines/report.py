"""What was built of the segments, as data and as lines for people."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ladderize.engines.cache import Layer


@dataclass(frozen=True)
class LeftOp:
    """An op that runs in PyTorch inside of a segment.

    Attributes:
        op: its name in ATen.
        count: how often, over all segments.
        why: what TensorRT lacks.
        source: the line of the first, as `file:line`.
    """

    op: str
    count: int
    why: str
    source: str


@dataclass(frozen=True)
class EnginePlan:
    """A plan and the engines that are made of it.

    Attributes:
        segments: names of the segments that it serves.
        num_bytes: of the plan.
        seconds: what building it took, whenever that was.
        was_found: in the cache, in memory or on disk.
        layers: of the network, before TensorRT fuses them.
    """

    segments: tuple[str, ...]
    num_bytes: int
    seconds: float
    was_found: bool
    layers: tuple[Layer, ...]

    @property
    def layer_types(self) -> Mapping[str, int]:
        """How many layers there are of each type."""
        return Counter(layer.type for layer in self.layers)


@dataclass(frozen=True)
class BuildReport:
    """What became of the segments.

    Attributes:
        num_segments, num_kinds: how many there are, and how many different ones.
        plans: one for each different engine.
        left: ops that run in PyTorch.
        seconds: what all of it took.
        target: compute capability that was built for.
        unusable: files in the cache that could not be used.
    """

    num_segments: int
    num_kinds: int
    plans: tuple[EnginePlan, ...]
    left: tuple[LeftOp, ...]
    seconds: float
    target: str
    unusable: tuple[str, ...] = ()

    @property
    def num_built(self) -> int:
        """Plans that were built just now."""
        return sum(not plan.was_found for plan in self.plans)

    @property
    def num_found(self) -> int:
        """Plans that were in the cache."""
        return sum(plan.was_found for plan in self.plans)

    def describe(self) -> Iterator[str]:
        """The report in lines."""
        yield (
            f"{self.num_segments} segments of {self.num_kinds} kinds, {len(self.plans)} TensorRT "
            f"plans for {self.target}: {self.num_built} built, {self.num_found} found; "
            f"{self.seconds:.1f} s"
        )
        for op in self.left:
            yield f"in PyTorch: {op.op}, {op.count} times: {op.why} (first at {op.source})"
        for path in self.unusable:
            yield f"not usable, written anew: {path}"
