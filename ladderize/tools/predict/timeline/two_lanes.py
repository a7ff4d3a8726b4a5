"""A two-lane list schedule: when each task of a step starts and ends on one rank.

    compute         h0 h1  h2 …           one at a time, in order
    communication      AR0 AR1 AR2        one at a time, in order of launch

A task starts when its lane is free and all that it waits for is done. While the link is busy, what
computes may be slower: communication kernels take processors and memory bandwidth.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import networkx as nx

from ladderize.tools.predict.timeline.spans import Span
from ladderize.tools.predict.timeline.steps import Interval, Lane, Step
from ladderize.tools.predict.timeline.tasks import COMPUTE, LINK


@dataclass(frozen=True)
class Task:
    """A task, its lane and the tasks that it waits for."""

    name: str
    lane: str
    waits: tuple[str, ...]


def in_order(graph: "nx.DiGraph[str]") -> tuple[Task, ...]:
    """The tasks of a graph of `task_graph`, as `place` goes through them."""
    return tuple(Task(name, lane, tuple(graph.pred[name])) for name, lane in graph.nodes("lane"))


def place(
    tasks: Sequence[Task],
    seconds: Mapping[str, float],
    contention: float = 0.0,
    start: float = 0.0,
) -> dict[str, Span]:
    """When each of `tasks` starts and ends.

    Args:
        tasks: of `in_order`.
        seconds: of each task by itself.
        contention: fraction of its rate that computing loses while the link is busy.
        start: of the first.
    """
    placed: dict[str, Span] = {}
    free = {COMPUTE: start, LINK: start}
    busy: list[Span] = []
    for task in tasks:
        began = max([free[task.lane], *(placed[earlier][1] for earlier in task.waits)])
        if task.lane == LINK:
            done = began + seconds[task.name]
            busy.append((began, done))
        else:
            done = _slowed(began, seconds[task.name], busy, contention)
        placed[task.name] = (began, done)
        free[task.lane] = done
    return placed


def _slowed(start: float, seconds: float, busy: list[Span], contention: float) -> float:
    """When `seconds` of computing are done that go at full rate only outside of `busy`.

    What ended before `start` is taken out of `busy`: computing only goes forward.
    """
    if not contention:
        return start + seconds
    while busy and busy[0][1] <= start:
        busy.pop(0)
    now, left = start, seconds
    for begin, end in busy:
        alone = min(left, max(begin - now, 0.0))
        now, left = now + alone, left - alone
        if not left:
            return now
        together = min(left, (1 - contention) * (end - now))
        now, left = now + together / (1 - contention), left - together
    return now + left


def as_step(name: str, graph: "nx.DiGraph[str]", placed: Mapping[str, Span]) -> Step:
    """What `place` found as a step of a timeline."""

    def lane(which: str) -> Lane:
        nodes = graph.nodes(data=True)
        tasks = [(task, data["block"]) for task, data in nodes if data["lane"] == which]
        return Lane(tuple(Interval(*placed[task], task, block) for task, block in tasks))

    return Step(name, lane(COMPUTE), lane(LINK))
