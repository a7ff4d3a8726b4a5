"""`TensorRTOptions`: the `lowering_options` of `lowering="tensorrt"`, validated once."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ladderize.errors import Blocker, LadderError, nearest

WEIGHTS = ("inputs", "stripped", "refittable")


@dataclass(frozen=True)
class TensorRTOptions:
    """How islands become engines.

    Attributes:
        sizes: least, usual and most size of a dynamic dim, by its name (`"input_ids[1]"`, or the
            symbol's own, `"s77"`); `"*"` stands for every other one. An engine runs sizes from
            least to most and is tuned for the usual one.
        weights: "inputs" hands them to the engine at each call: equal islands run one and the
            same engine, and no weight is twice on the device. "refittable" engines hold weights,
            arranged as their kernels like best; equal islands share a plan, and each has an
            engine that gets its own weights when it is bound. "stripped" is the same with plans
            that hold no room for weights. Building refittable engines needs a GPU.
        cache: the folder that plans are kept in and looked for; None builds in memory.
        build: build what is not in the cache; False raises instead.
        target: compute capability to build for ("8.9"); None is that of the GPU here. Only
            TensorRT-RTX builds for a GPU that is not here.
        optimization_level: TensorRT's own, 0 to 5; None is its default.
        workspace: bytes that TensorRT may use for intermediate results; None is all there are.
        require_full: raise if an op has to run in PyTorch.
        smallest_engine: parts of fewer ops run in PyTorch.
        in_pytorch: ops that run in PyTorch whatever TensorRT can, by their names in ATen.

    Raises:
        LadderError: listing every unknown name and bad value.
    """

    sizes: Mapping[str, Sequence[int]] = field(default_factory=dict)
    weights: str = "inputs"
    cache: str | Path | None = None
    build: bool = True
    target: str | None = None
    optimization_level: int | None = None
    workspace: int | None = None
    require_full: bool = False
    smallest_engine: int = 1
    in_pytorch: Sequence[str] = ()

    def __post_init__(self) -> None:
        blockers = [Blocker(what) for what in self._problems()]
        if blockers:
            raise LadderError("These options of TensorRT cannot be used:", blockers)

    @classmethod
    def parse(cls, options: Mapping[str, Any]) -> "TensorRTOptions":
        """The options behind `lowering_options=options`."""
        names = [option.name for option in dataclasses.fields(cls)]
        unknown = [
            Blocker(f"{name!r}" + (nearest(name, names) or f"; there are {', '.join(names)}"))
            for name in options
            if name not in names
        ]
        if unknown:
            raise LadderError("These options of TensorRT are not known:", unknown)
        return cls(**options)

    @property
    def compute_capability(self) -> tuple[int, int] | None:
        """`target` as numbers."""
        if self.target is None:
            return None
        major, minor = self.target.split(".")
        return int(major), int(minor)

    def _problems(self) -> Iterable[str]:
        yield from _size_problems(self.sizes)
        if self.weights not in WEIGHTS:
            choices = ", ".join(map(repr, WEIGHTS)) + nearest(self.weights, WEIGHTS)
            yield f"weights={self.weights!r} is not one of {choices}"
        if self.cache is not None and not isinstance(self.cache, (str, Path)):
            yield f"cache={self.cache!r} is not the path of a folder"
        if self.target is not None and not _is_capability(self.target):
            yield f'target={self.target!r} is not a compute capability, such as "8.9"'
        for name in ("build", "require_full"):
            if not isinstance(getattr(self, name), bool):
                yield f"{name}={getattr(self, name)!r} is neither True nor False"
        if isinstance(self.in_pytorch, str) or not all(map(_is_op, self.in_pytorch)):
            yield f'in_pytorch={self.in_pytorch!r} is not a list of names such as "aten.mm.default"'
        for name, least, most in _COUNTS:
            value = getattr(self, name)
            if value is not None and not _is_count(value, least, most):
                limit = f" and at most {most}" if most is not None else ""
                yield f"{name}={value!r} is not a whole number of at least {least}{limit}"


_COUNTS: Sequence[tuple[str, int, int | None]] = (
    ("optimization_level", 0, 5),
    ("workspace", 1, None),
    ("smallest_engine", 1, None),
)


def _size_problems(sizes: object) -> Iterable[str]:
    if not isinstance(sizes, Mapping):
        yield f'sizes={sizes!r} is not a dict such as {{"input_ids[1]": (1, 128, 2048)}}'
        return
    for name, extent in sizes.items():
        is_triple = isinstance(extent, Sequence) and not isinstance(extent, str)
        if (
            not is_triple
            or len(extent) != 3
            or not all(_is_count(size, 0, None) for size in extent)
        ):
            yield f"sizes[{name!r}]={extent!r} is not (least, usual, most)"
        elif not extent[0] <= extent[1] <= extent[2]:
            yield f"sizes[{name!r}]={extent!r} does not rise from least over usual to most"


def _is_count(value: object, least: int, most: int | None) -> bool:
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    return is_whole and value >= least and (most is None or value <= most)  # type: ignore[operator]


def _is_capability(value: object) -> bool:
    parts = value.split(".") if isinstance(value, str) else []
    return len(parts) == 2 and all(part.isdecimal() for part in parts)


def _is_op(name: object) -> bool:
    return isinstance(name, str) and name.count(".") == 2
