"""Run one pass, and everything around it that is not the pass's own business.

pass ── dead code out ── lint ── recompile ── invariant ── timing, log line, dump
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from torch.fx import Graph, GraphModule

from ladderize.graph import ops
from ladderize.passes import Pass, PassResult

T = TypeVar("T")
Invariant = Callable[[GraphModule], None]

logger = logging.getLogger("ladderize")


@dataclass
class Log:
    """What ran, in order: name, what it did, seconds.

    Each entry is also a line of the logger "ladderize", at level INFO.
    """

    dump_dir: Path | None = None
    entries: list[tuple[str, PassResult, float]] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        return sum(seconds for _, _, seconds in self.entries)

    def add(self, name: str, result: PassResult, seconds: float) -> None:
        self.entries.append((name, result, seconds))
        logger.info("%-16s %6d edits %9.4f s", name, result.changed, seconds)


def run_pass(
    gm: GraphModule, step: Pass, log: Log, invariant: Invariant | None = None
) -> PassResult:
    """Run `step` on `gm` in place, then check and record it. Linear in the size of the graph.

    Raises:
        LadderError: from the pass, or from `invariant` when it does not hold afterwards.
    """
    started = time.perf_counter()
    result = step(gm)
    if _drop_dead_code(gm.graph) or result.changed:
        gm.graph.lint()
        gm.recompile()
    if invariant is not None:
        invariant(gm)
    name = type(step).__name__
    log.add(name, result, time.perf_counter() - started)
    if log.dump_dir is not None:
        log.dump_dir.mkdir(parents=True, exist_ok=True)
        path = log.dump_dir / f"{len(log.entries):02d}_{name}.py"
        path.write_text(gm.print_readable(print_output=False))
    return result


def _drop_dead_code(graph: Graph) -> bool:
    """Erase what nothing reads; whether there was any.

    `Graph.eliminate_dead_code` also enters the bodies of higher-order calls, and there takes every
    method call for pure: the `x.copy_(…)` of an all-reduce in an autograd function would go.
    """
    dead = False
    for node in reversed(graph.nodes):
        if not node.users and not ops.is_impure(node):
            graph.erase_node(node)
            dead = True
    return dead


def run_analysis(name: str, analysis: Callable[[], T], log: Log) -> T:
    """Run something that changes no graph, and record how long it took."""
    started = time.perf_counter()
    result = analysis()
    log.add(name, PassResult(changed=0), time.perf_counter() - started)
    return result
