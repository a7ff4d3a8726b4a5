"""A two-lane list schedule: when each task of a step starts and ends on one rank.

    compute         h0 h1  h2 …           one at a time, in order
    communication      AR0 AR1 AR2        one at a time, in order of launch

A task starts when its lane is free and the tasks that it waits for are done: h1 waits for AR0 in
the standard model, but not in the ladder. Compute may be slower while the link is busy, because
communication kernels take processors and memory bandwidth.

If the next block reads only the landed summand of a block (shared experts, without the routed
ones), that summand has its own all-reduce, and the next block waits for it.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ladderize.tools.predict.timeline.spans import Span
from ladderize.tools.predict.timeline.steps import BlockKey, Interval, Lane, TimelineStep

COMPUTE, LINK = "compute", "link"
# Stream and index of the block whose output is added to a sum.
Sum = tuple[int, int]


@dataclass(frozen=True)
class Branch:
    """The work of a block in a step.

    Attributes:
        name: name of its task.
        sum: sum that it adds to.
        reads: sums that its branch reads; a sum that no branch writes is available at the start.
        is_reduced: whether it ends in an all-reduce.
        block: key of the block in a report.
        is_dispatched: whether it starts with an all-to-all, which needs only its reads.
        landed: sums of which it reads only the landed summand.
        has_landed_reduce: whether its landed summand has an all-reduce of its own.
    """

    name: str
    sum: Sum
    reads: tuple[Sum, ...]
    is_reduced: bool = True
    block: BlockKey | None = None
    is_dispatched: bool = False
    landed: tuple[Sum, ...] = ()
    has_landed_reduce: bool = False


@dataclass(frozen=True)
class Task:
    """A task, its lane and the tasks that it waits for."""

    name: str
    lane: str
    waits: tuple[str, ...]
    block: BlockKey | None


def tasks_of(branches: Iterable[Branch]) -> tuple[Task, ...]:
    """The tasks of `branches`, which must be in an order in which they can run."""
    tasks: list[Task] = []
    behind: dict[Sum, tuple[str, ...]] = {}  # the tasks that each sum needs
    reduces: dict[Sum, tuple[str, ...]] = {}  # of those, the all-reduces
    landed: dict[Sum, str] = {}  # the task that its landed summand needs
    for branch in branches:
        summands = (landed[read] for read in branch.landed)
        sums = (task for read in branch.reads for task in behind.get(read, ()))
        waits = tuple(dict.fromkeys((*sums, *summands)))
        if branch.is_dispatched:
            first = dispatch_of(branch.name)
            tasks.append(Task(first, LINK, waits, branch.block))
            waits = (*waits, first)
        tasks.append(Task(branch.name, COMPUTE, waits, branch.block))
        landed[branch.sum] = branch.name
        if branch.has_landed_reduce:
            landed[branch.sum] = landed_of(branch.name)
            tasks.append(Task(landed_of(branch.name), LINK, (branch.name,), branch.block))
        if branch.is_reduced:
            last = reduce_of(branch.name)  # the link is in order, so earlier transfers are done
            tasks.append(Task(last, LINK, (branch.name,), branch.block))
            behind[branch.sum] = reduces[branch.sum] = (last,)
        else:
            stream, index = branch.sum
            reduces[branch.sum] = reduces.get((stream, index - 1), ())
            behind[branch.sum] = (branch.name, *reduces[branch.sum])
    return tuple(tasks)


def dispatch_of(name: str) -> str:
    return f"dispatch {name}"


def landed_of(name: str) -> str:
    return f"all-reduce {name} (landed)"


def reduce_of(name: str) -> str:
    return f"all-reduce {name}"


def place(
    tasks: Sequence[Task], seconds: Mapping[str, float], contention: float = 0.0, start: float = 0.0
) -> dict[str, Span]:
    """Schedule `tasks`; return the start and end of each.

    Args:
        tasks: tasks from `tasks_of`.
        seconds: duration of each task running alone.
        contention: fraction of its rate that compute loses while the link is busy.
        start: start of the first task, in seconds.
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
    """The end of `seconds` of compute that runs at full rate only outside of `busy`.

    Removes spans from `busy` that end before `start`; compute only moves forward.
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


def as_step(name: str, tasks: Sequence[Task], placed: Mapping[str, Span]) -> TimelineStep:
    """The result of `place` as a step of a timeline."""

    def lane(which: str) -> Lane:
        found = [task for task in tasks if task.lane == which]
        return Lane(tuple(Interval(*placed[task.name], task.name, task.block) for task in found))

    return TimelineStep(name, lane(COMPUTE), lane(LINK))
