"""What was built of the islands, as data and as lines for people."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ladderize.backends.tensorrt.engines.plan_cache import EngineLayer
from ladderize.errors import counted


@dataclass(frozen=True)
class LeftOp:
    """An op that runs in PyTorch inside of an island.

    Attributes:
        op: its name in ATen.
        count: how often, over all islands.
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
        islands: names of the islands that it serves.
        num_bytes: of the plan.
        seconds: what building it took, whenever that was.
        was_found: in the cache, in memory or on disk.
        layers: of the network, before TensorRT fuses them.
    """

    islands: tuple[str, ...]
    num_bytes: int
    seconds: float
    was_found: bool
    layers: tuple[EngineLayer, ...]

    @property
    def layer_types(self) -> Mapping[str, int]:
        """How many layers there are of each type."""
        return Counter(layer.type for layer in self.layers)


@dataclass(frozen=True)
class EnginesReport:
    """What TensorRT made of a graph, which is cut into islands at its collectives.

    Attributes:
        num_islands: runs of compute between collectives.
        num_kinds: different ones; those of a kind share their engines, each with its own weights.
        num_built, num_found: plans that were built just now, and that were in the cache.
        left: ops that run in PyTorch.
        seconds: what all of it took.
        target: compute capability that was built for.
    """

    num_islands: int
    num_kinds: int
    num_built: int
    num_found: int
    left: tuple[LeftOp, ...]
    seconds: float
    target: str

    def describe(self) -> Iterator[str]:
        """The report in lines, the first of which sums it up."""
        yield (
            f"{counted(self.num_islands, 'island')} of {counted(self.num_kinds, 'kind')}, "
            f"{counted(self.num_built + self.num_found, 'TensorRT plan')} for {self.target}: "
            f"{self.num_built} built, {self.num_found} found; {self.seconds:.1f} s"
        )
        for op in self.left:
            times = counted(op.count, "time")
            yield f"in PyTorch: {op.op}, {times}: {op.why} (first at {op.source})"


@dataclass(frozen=True)
class BuildReport:
    """What became of the islands, plan by plan.

    Attributes:
        num_islands, num_kinds, num_built, num_found, left, seconds, target: as in `EnginesReport`.
        plans: one for each different engine.
        unusable: files in the cache that could not be used.
    """

    num_islands: int
    num_kinds: int
    plans: tuple[EnginePlan, ...]
    left: tuple[LeftOp, ...]
    seconds: float
    target: str
    unusable: tuple[str, ...] = ()

    @property
    def num_built(self) -> int:
        return len(self.plans) - self.num_found

    @property
    def num_found(self) -> int:
        return sum(plan.was_found for plan in self.plans)

    @property
    def summary(self) -> EnginesReport:
        """Without the plans."""
        return EnginesReport(
            self.num_islands,
            self.num_kinds,
            self.num_built,
            self.num_found,
            self.left,
            self.seconds,
            self.target,
        )

    def describe(self) -> Iterator[str]:
        """The report in lines."""
        yield from self.summary.describe()
        for path in self.unusable:
            yield f"not usable, written anew: {path}"
