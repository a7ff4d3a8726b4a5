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
    """How the TensorRT lowering builds engines from islands (parts of the graph).

    Attributes:
        sizes: minimum, usual and maximum size of a dynamic dim, by its name (`"input_ids[1]"`, or
            its symbol, `"s77"`); `"*"` stands for all other dims. An engine runs every size in
            the range and is tuned for the usual one.
        weights: "inputs" passes weights to the engine at each call: equal islands share one
            engine, and every weight is on the device once. "refittable" engines hold weights in
            the layout of their kernels; equal islands share a plan, and each has its own engine
            with its own weights. "stripped" is the same with plans that contain no weights.
            Building refittable engines needs a GPU.
        cache: folder of built plans; None builds in memory.
        build: build plans that are not in the cache; False raises instead.
        target: compute capability to build for ("8.9"); None is that of the local GPU. Only
            TensorRT-RTX can build for another GPU.
        optimization_level: TensorRT's optimization level, 0 to 5; None is its default.
        workspace: bytes that TensorRT may use for intermediate results; None is unlimited.
        require_full: raise if an op has to run in PyTorch.
        smallest_engine: minimum number of ops of an engine; smaller parts run in PyTorch.
        in_pytorch: ATen names of ops that always run in PyTorch.

    Raises:
        LadderError: lists every unknown name and bad value.
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
