"""Run the steps of a pipeline, with the work common to all passes.

    pass       edits the graph; then dead-code elimination ── lint ── invariant ── dump
    analysis   reads the graph and stores its results
    check      raises if the graph cannot be converted as asked

Each step has a name, and is timed, logged and shown to the observer. The graph's code is generated
once, after the last step, because passes only read nodes.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Literal, Protocol, TypeVar

from torch.fx import Graph, GraphModule

from ladderize.errors import LadderError, nearest
from ladderize.graph.writes import is_impure
from ladderize.passes import Pass, PassResult

Invariant = Callable[[GraphModule], None]
StepKind = Literal["pass", "analysis", "check"]

logger = logging.getLogger("ladderize")


@dataclass(frozen=True)
class LogEntry:
    """One step that ran.

    Attributes:
        name: name of the step; for a pass, its class name.
        kind: "pass", "analysis" or "check".
        result: edits and notes of a pass.
        seconds: wall time, including the invariant.
    """

    name: str
    kind: StepKind
    result: PassResult
    seconds: float


@dataclass
class Log:
    """The steps that ran, in order. Each is also logged to the logger "ladderize" at INFO."""

    dump_dir: Path | None = None
    entries: list[LogEntry] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        return sum(entry.seconds for entry in self.entries)

    def add(self, name: str, kind: StepKind, result: PassResult, seconds: float) -> None:
        self.entries.append(LogEntry(name, kind, result, seconds))
        logger.info("%-20s %6d edits %9.4f s", name, result.changed, seconds)

    def dump(self, gm: GraphModule) -> None:
        """Write `gm` to the dump folder, if set, under the name of the latest entry."""
        if self.dump_dir is None:
            return
        self.dump_dir.mkdir(parents=True, exist_ok=True)
        number = sum(entry.kind == "pass" for entry in self.entries)
        path = self.dump_dir / f"{number:02d}_{self.entries[-1].name}.py"
        path.write_text(gm.print_readable(print_output=False))


class HasGraph(Protocol):
    """The state of a pipeline: at least a graph and a log."""

    gm: GraphModule
    log: Log


State = TypeVar("State", bound=HasGraph)


class Observer(Protocol):
    """Sees the state after each step and does not change it."""

    def see(self, step: str, state: object, /) -> None: ...


def _always(_: object) -> bool:
    return True


@dataclass(frozen=True)
class Step(Generic[State]):
    """One step of a pipeline.

    Attributes:
        name: unique name in its pipeline.
        run: function of the step; returns the result of a pass.
        when: condition for the step, evaluated right before it.
        kind: "pass", "analysis" or "check".
    """

    name: str
    run: Callable[[State], PassResult | None]
    when: Callable[[State], bool] = _always
    kind: StepKind = "pass"

    def __call__(self, state: State) -> None:
        started = time.perf_counter()
        result = self.run(state) or PassResult(changed=0)
        state.log.add(self.name, self.kind, result, time.perf_counter() - started)
        if self.kind == "pass":
            state.log.dump(state.gm)


def apply(
    make: Callable[..., Pass],
    when: Callable[[State], bool] = _always,
    invariant: Invariant | None = None,
) -> Step[State]:
    """A step that runs a pass without options."""

    def run(state: State) -> PassResult:
        return apply_pass(state.gm, make(), invariant)

    return Step(make.__name__, run, when)


def run_steps(
    steps: Sequence[Step[State]],
    state: State,
    observer: Observer | None = None,
    stop_after: Step[Any] | None = None,
) -> None:
    """Run the steps whose conditions hold, in order, up to and including `stop_after`.

    Raises:
        LadderError: a step raised it.
    """
    observing = 0.0
    for step in steps:
        if step.when(state):
            step(state)
            if observer is not None:
                started = time.perf_counter()
                observer.see(step.name, state)
                observing += time.perf_counter() - started
        if step is stop_after:
            break
    state.gm.recompile()
    if observer is not None:
        logger.info("%-20s %6d edits %9.4f s", type(observer).__name__, 0, observing)


def find_step(steps: Sequence[Step[Any]], name: str) -> Step[Any]:
    """The step called `name`; `reroute-reads` and `reroute_reads` also mean `RerouteReads`.

    Raises:
        LadderError: no such step; all steps are listed.
    """
    known = {_plain(step.name): step for step in steps}
    if _plain(name) not in known:
        names = ", ".join(step.name for step in steps)
        meant = nearest(name, [step.name for step in steps])
        raise LadderError(f"No step is named {name!r}{meant or '.'}", cure=f"the steps are {names}")
    return known[_plain(name)]


def _plain(name: str) -> str:
    return name.lower().replace("_", "").replace("-", "")


def apply_pass(gm: GraphModule, step: Pass, invariant: Invariant | None = None) -> PassResult:
    """Run `step` on `gm` in place, then clean up and check. Linear in the size of the graph.

    The caller has to call `gm.recompile()`.

    Raises:
        LadderError: the pass raised it, or `invariant` does not hold afterwards.
    """
    result = step(gm)
    if _drop_dead_code(gm.graph) or result.changed:
        gm.graph.lint()
    if invariant is not None:
        invariant(gm)
    return result


def run_pass(
    gm: GraphModule, step: Pass, log: Log, invariant: Invariant | None = None
) -> PassResult:
    """Run, time and log one pass outside of a pipeline."""
    started = time.perf_counter()
    result = apply_pass(gm, step, invariant)
    gm.recompile()
    log.add(type(step).__name__, "pass", result, time.perf_counter() - started)
    log.dump(gm)
    return result


def _drop_dead_code(graph: Graph) -> bool:
    """Erase unused pure nodes; returns whether there were any.

    `Graph.eliminate_dead_code` also enters the bodies of higher-order calls and treats every method
    call there as pure: it would drop the `x.copy_(…)` of an all-reduce in an autograd function.
    """
    dead = False
    for node in reversed(graph.nodes):
        if not node.users and not is_impure(node):
            graph.erase_node(node)
            dead = True
    return dead
