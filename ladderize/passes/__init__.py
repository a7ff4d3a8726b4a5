"""Graph passes, one per file, independent of backends and front ends.

A pass only rewrites the graph. The runner (`runner.py`) does dead-code elimination, lint,
recompilation, invariants, timing and dumps.
"""

from dataclasses import dataclass
from typing import ClassVar, Protocol

from torch.fx import GraphModule


@dataclass(frozen=True)
class PassResult:
    """The result of a pass: the number of edits, and lines for the report."""

    changed: int
    notes: tuple[str, ...] = ()


class Pass(Protocol):
    """A frozen dataclass that rewrites a graph in place. Its fields are its options."""

    preserves_values: ClassVar[bool]

    def __call__(self, gm: GraphModule) -> PassResult: ...
