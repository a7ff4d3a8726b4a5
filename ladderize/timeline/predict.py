"""A step predicted from FLOPs, bytes and a link model, standard and ladder.

    standard   h0 AR0 h1 AR1 h2 AR2          h1 reads x1, so it waits for AR0
    ladder     h0 h1  h2 …                   h1 reads x0, h2 reads x1: AR0 runs behind h1
                  AR0 AR1 AR2

A rank computes one block at a time, in order, and its link carries one all-reduce at a time, in the
order of their launches. A block starts when the one before it is computed and every all-reduce
whose result it reads is done; its own all-reduce starts when it is computed and the link is free.

Left out: everything outside of the blocks (embedding, head, loss), the backward run, kernel
launches, how well a kernel uses the machine, memory traffic other than of weights, and that
computing and communicating slow each other down. The first value of each stream is taken to be
there. Branches that stay whole on every rank take the time of a whole branch and send nothing.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from ladderize.errors import LadderError
from ladderize.report.data import BlockReport, GraphReport, Report
from ladderize.report.naming import block_name, parse
from ladderize.timeline.data import Interval, Lane, Step, Timeline, key_of
from ladderize.timeline.division import Division


@dataclass(frozen=True)
class Hardware:
    """What a step runs on. The defaults are round numbers near a node of H100s, not calibrated.

    Attributes:
        ranks: over which each branch is divided evenly.
        flops: FLOPs per second of one rank.
        memory: bytes per second at which it reads its weights.
        link: bytes per second that it sends to the next rank of the ring.
        latency: seconds of an all-reduce of nothing.
    """

    ranks: int = 8
    flops: float = 500e12
    memory: float = 3e12
    link: float = 400e9
    latency: float = 10e-6

    def __post_init__(self) -> None:
        if self.ranks < 1 or min(self.flops, self.memory, self.link) <= 0 or self.latency < 0:
            raise LadderError(
                f"{self} is no hardware: at least one rank, rates above 0, latency 0 or more."
            )

    def compute_seconds(self, flops: int, weight_bytes: int, ranks: int) -> float:
        return max(flops / self.flops, weight_bytes / self.memory) / ranks

    def reduce_seconds(self, num_bytes: int) -> float:
        """Of a ring all-reduce: each rank sends 2 (n - 1) / n of the bytes."""
        return self.latency + 2 * (self.ranks - 1) / self.ranks * num_bytes / self.link

    def __str__(self) -> str:
        return (
            f"{self.ranks} ranks, {self.flops / 1e12:g} TFLOP/s, memory {self.memory / 1e9:g} "
            f"GB/s, link {self.link / 1e9:g} GB/s, latency {self.latency * 1e6:g} µs"
        )


def predict(report: Report, hardware: Hardware | None = None) -> Timeline:
    """The standard step of the model in `report`, and the ladder's where reads were moved.

    Without steps, and with the reason in `origin`, where there is no block or a block's sizes are
    not known before the model runs.
    """
    hardware = hardware or Hardware()
    if not report.blocks:
        return Timeline((), "No prediction: no block was found.")
    if unknown := [b for b in report.blocks if None in (b.flops, b.weight_bytes, b.reduce_bytes)]:
        names = ", ".join(map(block_name, unknown[:8])) + (", …" if len(unknown) > 8 else "")
        return Timeline((), f"No prediction: sizes of {names} are not known before the model runs.")
    steps = [_step("standard", report, hardware)]
    if any(block.is_rewired for block in report.blocks):
        steps.append(_step("ladder", report, hardware))
    return Timeline(tuple(steps), f"predicted from FLOPs, bytes and a link model: {hardware}")


def _step(name: str, report: Report, hardware: Hardware) -> Step:
    """The graphs of a report run one after another."""
    compute: list[Interval] = []
    communication: list[Interval] = []
    start = 0.0
    for graph in report.graphs:
        run = _Run(hardware, Division.of(graph), compute, communication, start, start)
        run.all_blocks(graph, name == "ladder")
        start = max(run.computed, run.link_free)
    return Step(name, Lane(tuple(compute)), Lane(tuple(communication)))


@dataclass
class _Run:
    """One graph in the making.

    Attributes:
        computed: when the last block was computed.
        link_free: when the last all-reduce was done.
        sums: when the sum that each block writes can be read, by stream and index.
    """

    hardware: Hardware
    division: Division
    compute: list[Interval]
    communication: list[Interval]
    computed: float
    link_free: float
    sums: dict[tuple[int, int], float] = field(default_factory=dict)

    def all_blocks(self, graph: GraphReport, is_ladder: bool) -> None:
        for block in _in_order(graph):
            reads = block.reads_after if is_ladder else block.reads_before
            # What is inside of a branch (`b3`) is there once that is computed.
            sums = [_sum_behind(read) for read in reads if parse(read).letter != "b"]
            self.add(block, max((self.sums.get(key, 0.0) for key in sums), default=0.0))

    def add(self, block: BlockReport, ready: float) -> None:
        """Add `block`, whose reads are there when it is `ready`."""
        assert block.flops is not None
        assert block.weight_bytes is not None
        assert block.reduce_bytes is not None
        ranks = self.division.ranks(block, self.hardware.ranks)
        start = max(self.computed, ready)
        duration = self.hardware.compute_seconds(block.flops, block.weight_bytes, ranks)
        done = self.computed = start + duration
        name, key = block_name(block), key_of(block)
        self.compute.append(Interval(start, done, name, key))
        if self.division.is_reduced(block) and self.hardware.ranks > 1:
            launched = max(self.computed, self.link_free)
            done = self.link_free = launched + self.hardware.reduce_seconds(block.reduce_bytes)
            self.communication.append(Interval(launched, done, f"all-reduce {name}", key))
        earlier = self.sums.get((block.stream, block.index - 1), 0.0)
        self.sums[block.stream, block.index] = max(done, earlier)


def _in_order(graph: GraphReport) -> Iterator[BlockReport]:
    """The blocks of a graph, each behind those that it reads: a decoder behind its encoder.

    That is the order of both steps: the ladder reads nothing later than the standard net.
    """
    left = [list(stream.blocks) for stream in graph.streams]
    ran: set[tuple[int, int]] = set()
    while any(left):
        before = len(ran)
        for blocks in left:
            while blocks and all(key[1] < 0 or key in ran for key in _needed(blocks[0])):
                block = blocks.pop(0)
                ran.add((block.stream, block.index))
                yield block
        assert len(ran) > before, "blocks read each other in a circle"


def _needed(block: BlockReport) -> Iterator[tuple[int, int]]:
    return (_sum_behind(read) for read in block.reads_before)


def _sum_behind(read: str) -> tuple[int, int]:
    """Stream and index of the block that writes what is read; index -1: a stream's first value."""
    value = parse(read)
    return value.stream, value.index - (value.letter == "x")
