"""Time a step of `gpu_stand_in.py`, and a transfer alone.

on CUDA    warm-up on another stream ── capture ── replay between two events
on CPU     one call after another, by the clock: a dry run
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from stand_in import KernelLane, StandInGroup

from ladderize.tools.bench.paired import step_values
from ladderize.tools.bench.record import ResultRow

WARM_UP = 3


@dataclass(frozen=True)
class Timed:
    """A step ready to run: a function to run it, one to time it, and its transfer time."""

    seconds: Callable[[], float]
    communication: float


def time_on_cpu(step: Callable, reset: Callable, group: StandInGroup, is_silent: bool) -> Timed:
    def seconds() -> float:
        reset()
        with silence(group, is_silent):
            started = time.perf_counter()
            step()
            return time.perf_counter() - started

    seconds()
    group.clear()
    seconds()
    return Timed(seconds, sum(transfer.seconds for transfer in group.transfers))


def time_on_cuda(step: Callable, reset: Callable, group: StandInGroup, is_silent: bool) -> Timed:
    def whole() -> None:
        reset()
        step()

    with silence(group, is_silent):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                whole()
        torch.cuda.synchronize()
        group.clear()
        replay = capture(step)
    communication = sum(transfer.seconds for transfer in group.transfers)

    def seconds() -> float:
        reset()
        return time_by_events(replay)

    seconds()
    return Timed(seconds, communication)


def capture(step: Callable[[], object]) -> Callable[[], None]:
    """A function that replays a CUDA graph of `step`."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def time_by_events(run: Callable[[], object]) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


@contextmanager
def silence(group: StandInGroup, is_silent: bool) -> Iterator[None]:
    group.is_silent = is_silent
    try:
        yield
    finally:
        group.is_silent = False


def check_kernel(lane: KernelLane, repeats: int, in_a_row: int = 50) -> Iterator[ResultRow]:
    """Durations of transfers without compute, next to the requested ones, and launch times."""
    for microseconds in (10, 100):

        def transfers(asked: float = microseconds * 1e-6) -> None:
            for _ in range(in_a_row):
                lane.launch(asked, lambda: None)()

        transfers()
        torch.cuda.synchronize()
        replay = capture(transfers)
        found = [time_by_events(replay) / in_a_row for _ in range(repeats)]
        key = {"phase": "a transfer alone", "asked_us": microseconds, "sms": lane.sms}
        yield ResultRow(key, step_values("alone", {"alone": found}))
