"""The report on built islands, as data and as text."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ladderize.backends.tensorrt.engines.plan_cache import EngineLayer
from ladderize.errors import counted


@dataclass(frozen=True)
class LeftOp:
    """An op that runs in PyTorch inside an island.

    Attributes:
        op: ATen name of the op.
        count: number of calls over all islands.
        why: reason why TensorRT does not run it.
        source: line of the first call, as `file:line`.
    """

    op: str
    count: int
    why: str
    source: str


@dataclass(frozen=True)
class EnginePlan:
    """A plan, from which engines are made.

    Attributes:
        islands: names of the islands that use it.
        num_bytes: size of the plan in bytes.
        seconds: time that building it took, now or earlier.
        was_found: whether it was in the cache, in memory or on disk.
        layers: layers of the network before TensorRT fuses them.
    """

    islands: tuple[str, ...]
    num_bytes: int
    seconds: float
    was_found: bool
    layers: tuple[EngineLayer, ...]

    @property
    def layer_types(self) -> Mapping[str, int]:
        """Number of layers of each type."""
        return Counter(layer.type for layer in self.layers)


@dataclass(frozen=True)
class EnginesReport:
    """A summary of the engines of a graph, which is cut into islands at its collectives.

    Attributes:
        num_islands: number of islands, runs of compute between collectives.
        num_kinds: number of different islands; equal ones share plans but not weights.
        num_built, num_found: number of plans built now, and of plans found in the cache.
        left: ops that run in PyTorch.
        seconds: total build time.
        target: compute capability of the target.
    """

    num_islands: int
    num_kinds: int
    num_built: int
    num_found: int
    left: tuple[LeftOp, ...]
    seconds: float
    target: str

    def describe(self) -> Iterator[str]:
        """The lines of the report, with a summary first."""
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
    """The report on a build, plan by plan.

    Attributes:
        num_islands, num_kinds, num_built, num_found, left, seconds, target: as in `EnginesReport`.
        plans: plans, one for each different engine.
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
        """The report without the plans."""
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
        """The lines of the report."""
        yield from self.summary.describe()
        for path in self.unusable:
            yield f"not usable, replaced: {path}"
