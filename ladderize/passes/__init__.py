"""Passes: graph to graph, one a file. A pass knows no backend and no front end.

A pass only rewrites. Dead code, lint, recompiling, invariants, timing and dumps are the runner's
(`runner.py`).
"""

from dataclasses import dataclass
from typing import ClassVar, Protocol

from torch.fx import GraphModule


@dataclass(frozen=True)
class PassResult:
    """What a pass did: `changed` counts its edits, `notes` are lines for the report."""

    changed: int
    notes: tuple[str, ...] = ()


class Pass(Protocol):
    """Graph in, same graph rewritten; a frozen dataclass whose fields are the options."""

    preserves_values: ClassVar[bool]

    def __call__(self, gm: GraphModule) -> PassResult: ...
