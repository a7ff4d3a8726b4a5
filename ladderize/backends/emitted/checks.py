"""Prove that emitted code has no race on a collective's buffer, and that it waits late.

A *flight* is a storage between a collective's launch and its wait. In flight, a result (for
`all_reduce_` the buffer itself) must not be accessed. The operand of an out-of-place collective may
be read and its name dropped (c10d keeps a reference), but it must not be written and its memory
must not be reused.

The order must be `AR_0 … AR_1 W_0 … AR_2 W_1 … AR_n W_n-1 W_n`: a wait follows the next launch of
the same collective on the same group, unless a launch up to there is computed from its result.
Collectives cannot pass each other, so that wait cannot be later. An all-gather is waited for by the
block that it was launched for and is not paired with the next one.

A flight of any other kind must contain compute if possible: a wait without a matrix product since
its launch is early if a product follows before anything that needs the result.
"""

import bisect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from ladderize.backends.emitted.events import read_events
from ladderize.backends.emitted.names import NOTHING, Storage, Storages
from ladderize.backends.emitted.program import Event, EventKind, Program
from ladderize.errors import Blocker, LadderError
from ladderize.graph.collectives import GATHERS


@dataclass(frozen=True)
class Finding:
    """A fault at one event of the emitted program."""

    what: str
    event: Event

    def __str__(self) -> str:
        return f"line {self.event.line}: {self.what}: {self.event.text}"


@dataclass(frozen=True)
class Flight:
    """A storage from its launch to its wait, as indices of events.

    `launch` is -1 for a graph input that another graph launched. Without a wait, `wait` is the
    number of events.
    """

    storage: Storage
    launch: int
    wait: int


def find_flights(program: Program) -> tuple[Flight, ...]:
    """All flights in launch order."""
    return _pair(program)[0]


def foreign_waits(program: Program) -> tuple[Event, ...]:
    """The waits for graph inputs that another graph launched: legal, but not checked."""
    waits = {flight.wait for flight in find_flights(program) if flight.launch < 0}
    return tuple(program.events[index] for index in sorted(waits))


def _pair(program: Program) -> tuple[tuple[Flight, ...], list[Finding]]:
    flights: list[Flight] = []
    findings: list[Finding] = []
    launched: dict[Storage, int] = {}
    waited: set[Storage] = set()
    for index, event in enumerate(program.events):
        if event.kind is EventKind.LAUNCH:
            again = launched.keys() & event.pending  # the first flight ends here, as a race
            flights.extend(Flight(storage, launched[storage], index + 1) for storage in again)
            launched.update(dict.fromkeys(event.pending, index))
        if event.kind is not EventKind.WAIT:
            continue
        if not event.pending:
            findings.append(Finding("wait for something that was not launched here", event))
        for storage in sorted(event.pending):
            if storage in launched:
                flights.append(Flight(storage, launched.pop(storage), index))
            elif storage in waited:
                findings.append(Finding(f"second wait for {storage}", event))
            elif storage in program.inputs:
                flights.append(Flight(storage, -1, index))
            else:
                findings.append(Finding(f"wait for {storage}, which was not launched", event))
            waited.add(storage)
    for storage, index in launched.items():
        findings.append(Finding(f"launch without a wait for {storage}", program.events[index]))
        flights.append(Flight(storage, index, len(program.events)))
    return tuple(sorted(flights, key=lambda flight: flight.launch)), findings


def find_races(program: Program) -> tuple[Finding, ...]:
    """Events that access a buffer in flight, and launches or waits without their counterpart."""
    flights, findings = _pair(program)
    findings += _across_partitions(program, flights)
    for flight in flights:
        launch = program.events[flight.launch] if flight.launch >= 0 else None
        operands = launch.reads - launch.pending if launch else NOTHING
        since = f"launched at line {launch.line}" if launch else "launched outside of this graph"
        for event in program.events[flight.launch + 1 : flight.wait]:
            if flight.storage in event.touches:
                what = f"{event.kind.value} of {flight.storage}, in flight ({since})"
                findings.append(Finding(what, event))
            findings.extend(
                Finding(f"{event.kind.value} of {operand}, an operand in flight ({since})", event)
                for operand in sorted(operands & event.writes.keys())
                if event.kind is not EventKind.FREE
            )
    return tuple(sorted(dict.fromkeys(findings), key=lambda finding: finding.event.line))


def _across_partitions(program: Program, flights: Sequence[Flight]) -> Iterator[Finding]:
    """Waits in another CUDA graph than the launch, which cannot be captured (pytorch#192000)."""
    for flight in flights:
        if flight.launch >= 0 and flight.wait < len(program.events):
            launch, wait = program.events[flight.launch], program.events[flight.wait]
            if launch.partition != wait.partition:
                ends = [event.partition or "outside of them" for event in (launch, wait)]
                what = f"wait for {flight.storage} across CUDA graphs ({' to '.join(ends)})"
                yield Finding(what, wait)


def find_disorder(program: Program) -> tuple[Finding, ...]:
    """Waits that are exposed because they could come after another launch and do not.

    Of several waits for one coalesced launch, the first counts, because it waits for all.
    """
    needs = _launches_needed(program)
    wait_of = _first_waits(program)
    products = [i for i, event in enumerate(program.events) if _is_product(event)]
    every_launch = [i for i in needs if program.events[i].kind is EventKind.LAUNCH]
    findings: dict[int, Finding] = {}

    def report(launch: int, last: int, what: str) -> None:
        wait = wait_of[launch]
        needed = any(launch in needs[later] for later in every_launch if wait < later <= last)
        if not needed and wait not in findings:
            findings[wait] = Finding(what, program.events[wait])

    for launch, following in _following_launches(program):
        if launch in wait_of and wait_of[launch] < following:
            line = program.events[following].line
            report(launch, following, f"wait before the next launch (line {line})")
    for launches, following in _waited_for_together(program, wait_of):
        for launch in launches:
            report(launch, following, "two waits with no launch between them; one could be later")
    for launch, wait in wait_of.items():
        if (product := _idle_until(program, needs, products, launch, wait)) is not None:
            what = f"nothing runs ahead of this wait; line {product.line} could"
            findings.setdefault(wait, Finding(what, program.events[wait]))
    return tuple(findings[index] for index in sorted(findings))


_PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "_grouped_mm", "convolution")


def _is_product(event: Event) -> bool:
    return event.kind is EventKind.COMPUTE and event.name.split(".")[-1] in _PRODUCTS


def _idle_until(
    program: Program,
    needs: Mapping[int, frozenset[int]],
    products: Sequence[int],
    launch: int,
    wait: int,
) -> Event | None:
    """The product that could run before the wait of a flight without products, or None.

    Products keep the order of the graph, so only the next one could.
    """
    if program.events[launch].name in GATHERS:
        return None
    following = bisect.bisect(products, wait)
    if following == len(products) or bisect.bisect(products, launch) != following:
        return None
    product = products[following]
    if any(launch in needs.get(later, ()) for later in range(wait + 1, product + 1)):
        return None
    return program.events[product]


def _launches_needed(program: Program) -> dict[int, frozenset[int]]:
    """The launches whose results the operands of each launch and product are computed from."""
    launch_of = {(flight.storage, flight.wait): flight.launch for flight in find_flights(program)}
    content: dict[Storage, frozenset[int]] = {}
    needs = {}
    for index, event in enumerate(program.events):
        if event.kind is EventKind.LAUNCH or _is_product(event):
            needs[index] = _from(event.reads, content)
        if event.kind is EventKind.WAIT:
            content.update({s: frozenset({launch_of.get((s, index), -1)}) for s in event.pending})
        content.update({s: _from(sources, content) for s, sources in event.writes.items()})
    return needs


def _from(sources: Storages, content: dict[Storage, frozenset[int]]) -> frozenset[int]:
    return frozenset().union(*(content.get(source, frozenset()) for source in sources))


def _first_waits(program: Program) -> dict[int, int]:
    waits: dict[int, int] = {}
    for flight in find_flights(program):
        if flight.launch >= 0:
            waits[flight.launch] = min(flight.wait, waits.get(flight.launch, flight.wait))
    return waits


def _following_launches(program: Program) -> Iterator[tuple[int, int]]:
    """Each launch with the next launch of the same collective on the same group."""
    by_channel: dict[tuple[str, str], list[int]] = {}
    for index, event in enumerate(program.events):
        if event.kind is EventKind.LAUNCH and event.name not in GATHERS:
            by_channel.setdefault(event.channel, []).append(index)
    for launches in by_channel.values():
        yield from pairwise(launches)


def _waited_for_together(
    program: Program, wait_of: dict[int, int]
) -> Iterator[tuple[tuple[int, int], int]]:
    """Two launches of a channel whose waits have no launch in between, and its next launch."""
    launch_of = {wait: launch for launch, wait in wait_of.items()}
    launches = [i for i, event in enumerate(program.events) if event.kind is EventKind.LAUNCH]
    for first, second in pairwise(sorted({*launches, *launch_of})):
        if first not in launch_of or second not in launch_of:
            continue
        pair = launch_of[first], launch_of[second]
        channels = {program.events[launch].channel for launch in pair}
        if any(name in GATHERS for name, _ in channels):
            continue
        later = [i for i in launches if i > second and {program.events[i].channel} == channels]
        if later:
            yield pair, later[0]


def check_emitted(source: str) -> None:
    """Raise unless the emitted wrapper has no races and waits as late as possible.

    Raises:
        LadderError: listing every finding with its line of the emitted code.
    """
    program = read_events(source)
    races, disorder = find_races(program), find_disorder(program)
    if not races and not disorder:
        return
    summary = "The code that Inductor emitted " + " and ".join(
        text
        for text, found in (
            ("uses buffers of collectives that are still running", races),
            ("waits for collectives too early", disorder),
        )
        if found
    )
    raise LadderError(
        summary + ":",
        [Blocker(f"{f.what}: {f.event.text}", f"line {f.event.line}") for f in (*races, *disorder)],
        "do not use this code: races make its results wrong. Compile with backend='ladderize', "
        "without Inductor passes of your own that move collectives or waits, and, if CUDA graphs "
        "are named, in a mode without them; or use lowering='aot_eager'. Please report this model.",
    )


_SHORT = {
    "all_reduce": "AR",
    "reduce_scatter_tensor": "RS",
    "all_gather_into_tensor": "AG",
    "all_to_all_single": "A2A",
}


def order_string(program: Program) -> str:
    """The order of launches, compute and waits on one line: `AR_0 mm mm AR_1 W_0 …`.

    A fused kernel is `k`; other kernels appear by name. `!` marks accesses to a buffer in flight.
    Waits of collectives other than all-reduce include the kind: `RS_0 … W_RS_0`.
    """
    racing = {finding.event for finding in find_races(program)}
    labels = _launch_labels(program)
    launch_of = {flight.wait: flight.launch for flight in find_flights(program)}
    words: list[str] = []
    for index, event in enumerate(program.events):
        if event.kind is EventKind.LAUNCH:
            word = labels[index]
        elif event.kind is EventKind.WAIT:
            word = "W_" + labels.get(launch_of.get(index, -1), "?").removeprefix("AR_")
        elif event.kind in (EventKind.COMPUTE, EventKind.COPY):
            word = "k" if "_fused_" in event.name else event.name
        else:
            continue
        words.append(word + "!" * (event in racing))
    return " ".join(_fold(words))


def _launch_labels(program: Program) -> dict[int, str]:
    labels: dict[int, str] = {}
    counts: dict[str, int] = {}
    for index, event in enumerate(program.events):
        if event.kind is EventKind.LAUNCH:
            kind = _SHORT.get(event.name, event.name)
            labels[index] = f"{kind}_{counts.get(kind, 0)}"
            counts[kind] = counts.get(kind, 0) + 1
    return labels


def _fold(words: Sequence[str]) -> Iterator[str]:
    """Fold more than three equal words: `mm mm mm mm` to `mm*4`."""
    start = 0
    for end in range(1, len(words) + 1):
        if end == len(words) or words[end] != words[start]:
            count = end - start
            yield from [f"{words[start]}*{count}"] if count > 3 else words[start:end]
            start = end
