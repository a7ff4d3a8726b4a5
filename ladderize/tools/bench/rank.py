"""The work of one rank: compile each case once and measure it on every link.

Settings ── prepare ── make_variants ── compile ── measure on each link ── [Measured]
"""

import os
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.export import ExportedProgram
from torch.export.passes import move_to_device_pass
from torch.utils import _pytree as pytree

from ladderize.backends.emitted import find_races, read_events
from ladderize.config.hardware import Link
from ladderize.config.options import LadderConfig
from ladderize.errors import LadderError
from ladderize.frontends.rewrite import explain_program
from ladderize.report.data import BlockReport
from ladderize.report.publish import collect_reports
from ladderize.testing.emitted_code import record_emitted_code
from ladderize.tools.bench.bench_settings import FREE, UNLIMITED, Case, Settings, Share
from ladderize.tools.bench.case_programs import prepare, written_by_hand
from ladderize.tools.bench.least_exposed import StepGraph
from ladderize.tools.bench.memory import keep_freed_memory
from ladderize.tools.bench.timing import (
    ModelCall,
    Samples,
    measure,
    peak_bytes,
    timed,
    traced,
)
from ladderize.tools.bench.variants import BenchVariant, has_collectives, make_variants
from ladderize.tools.emulation import EmulatedGroup, init_emulated
from ladderize.tools.launch.progress import Reporter

HANG_AFTER = 1800.0
"""Time limit in seconds for one stage of several ranks; compiling a deep model is slow."""

MAX_RUNS_OF_A_BLOCK = 9
"""Runs that measure a block's compute time, from which the link of a `Share` is chosen."""


@dataclass(frozen=True)
class Compiled:
    """The compilation of one variant.

    Attributes:
        seconds: time of the first two calls.
        passes: seconds of each of ladderize's passes.
        num_races: accesses to a buffer in flight; None if no code is emitted.
        peak_bytes: peak memory of a step, without weights and inputs.
    """

    seconds: float
    passes: dict[str, float]
    num_races: int | None
    peak_bytes: int


@dataclass(frozen=True)
class Measured:
    """One variant of one case on one link, on one rank.

    Attributes:
        asked: link as requested, "" if none was.
        link: emulated link; None with one rank or with real links.
        blocks: blocks of the unsharded model, with their FLOPs and bytes.
        graph: ops of the step, for a model with its own collectives.
        dtype: dtype of the residual stream.
    """

    case: Case
    asked: str
    link: Link | None
    variant: str
    samples: Samples
    compiled: Compiled
    blocks: tuple[BlockReport, ...]
    graph: StepGraph | None = None
    dtype: str = ""


def stages(settings: Settings) -> dict[str, str]:
    """The stages of a rank in order, each with the text that progress shows."""
    found = {"start": "join the ranks"}
    for case in settings.cases:
        found[f"{case}: trace"] = f"{case}: trace and shard"
        for name in settings.variants:
            if name != "free":
                found[f"{case}: {name}"] = f"{case}: compile {name}"
        found[f"{case}: measure"] = f"{case}: measure"
    return found


def work(reporter: Reporter, settings: Settings) -> list[Measured]:
    """Run on every rank."""
    reporter.stage("start")
    torch.set_num_threads(settings.threads)
    keep_freed_memory()
    with _joined(settings) as (mesh, group):
        found: list[Measured] = []
        for case in settings.cases:
            torch._dynamo.reset()
            with torch.set_grad_enabled(case.is_training):
                found += _measure_case(settings, case, mesh, group, reporter)
        return found


@contextmanager
def _joined(settings: Settings) -> Iterator[tuple[DeviceMesh | None, EmulatedGroup | None]]:
    """The mesh of the ranks, and their group if its link is emulated."""
    if settings.ranks == 1:
        yield None, None
        return
    group = None
    if settings.device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("nccl")
    else:
        group = init_emulated(
            FREE,
            rank=int(os.environ["RANK"]),
            world_size=settings.ranks,
            timeout=timedelta(seconds=HANG_AFTER),
        )
    try:
        yield init_device_mesh(settings.device, (settings.ranks,)), group
    finally:
        dist.destroy_process_group()


def _measure_case(
    settings: Settings,
    case: Case,
    mesh: DeviceMesh | None,
    group: EmulatedGroup | None,
    reporter: Reporter,
) -> list[Measured]:
    reporter.stage(f"{case}: trace")
    program, call = _on_device(*prepare(settings, case), settings.device)
    is_own = has_collectives(program)
    written = written_by_hand(settings, case)
    variants = make_variants(program, settings, None if is_own else mesh, written)
    report = explain_program(program, LadderConfig())
    blocks = report.blocks
    if "ladder" in settings.variants and not any(block.is_rewired for block in blocks):
        raise LadderError(f"{settings.model} has no block that can be converted.")
    _set_link(group, FREE)
    compiled = {}
    for variant in variants:
        if not variant.is_free:
            reporter.stage(f"{case}: {variant.name}")
            compiled[variant.name] = _compile(variant, call)
    reporter.stage(f"{case}: measure")
    expected = {v.name: out for v in variants if (out := _expected(v, call)) is not None}
    # Without a mesh, `ladder` is the standard model until the backend rewrites it; `expected` is
    # the ladder already.
    graphs = {
        v.name: StepGraph.of(v.expected, call.run)
        for v in variants
        if is_own and v.expected is not None
    }
    found = []
    for name, link in _links(settings, len(blocks), variants, call):
        reporter.stage(f"{case}: measure")  # restarts the time limit for each link
        _set_link(group, link or FREE)
        samples = measure(variants, expected, call, settings.repeats, settings.warmup, group)
        if settings.device == "cuda" and mesh is not None:
            for variant in variants:
                seen = traced(variant, call)
                samples[variant.name].exposed = seen.exposed
                samples[variant.name].communicating = seen.communicating
        for v in variants:
            how = compiled["ladder" if v.is_free else v.name]
            over = FREE if v.is_free else link
            graph = graphs.get(v.name)
            own = samples[v.name]
            dtype = report.dtype
            found.append(Measured(case, name, over, v.name, own, how, blocks, graph, dtype))
    return found


def _on_device(
    program: ExportedProgram, call: ModelCall, device: str
) -> tuple[ExportedProgram, ModelCall]:
    if device == "cpu":
        return program, call

    def there(value: Any) -> Any:
        return value.to(device) if isinstance(value, Tensor) else value

    args, kwargs = pytree.tree_map(there, (call.args, call.kwargs))
    return move_to_device_pass(program, device), replace(
        call, args=args, kwargs=kwargs, device=device
    )


def _set_link(group: EmulatedGroup | None, link: Link) -> None:
    if group is not None:
        group.link = link


def _compile(variant: BenchVariant, call: ModelCall) -> Compiled:
    """Compile by running twice: CUDA graphs are recorded in the second run."""
    with record_emitted_code() as sources, collect_reports() as reports:
        started = time.perf_counter()
        timed(variant, call)
        timed(variant, call)
        seconds = time.perf_counter() - started
    programs = [read_events(source) for source in sources]
    passes: dict[str, float] = {}
    for step in reports[-1].steps if variant.name == "ladder" else ():
        passes[step.name] = passes.get(step.name, 0.0) + step.seconds
    return Compiled(
        seconds,
        passes,
        sum(len(find_races(program)) for program in programs) if programs else None,
        peak_bytes(variant, call),
    )


def _expected(variant: BenchVariant, call: ModelCall) -> Tensor | None:
    if variant.expected is None:
        return None
    call.begin(variant.expected)
    return call.results(call.run(variant.expected), variant.expected)


def _links(
    settings: Settings, num_blocks: int, variants: Sequence[BenchVariant], call: ModelCall
) -> list[tuple[str, Link | None]]:
    """The requested links by name; a single None if nothing is emulated."""
    seconds = None
    found: list[tuple[str, Link | None]] = []
    for asked in settings.links or (None,):
        if not isinstance(asked, Share):
            found.append((asked.name if asked else "", asked))
            continue
        seconds = seconds or _seconds_of_a_block(settings, num_blocks, variants, call)
        link = Link(str(asked), settings.ranks, asked.value * seconds, UNLIMITED)
        found.append((str(asked), link))
    return found


def _seconds_of_a_block(
    settings: Settings, num_blocks: int, variants: Sequence[BenchVariant], call: ModelCall
) -> float:
    """Compute time of a mean block: the median of some runs, averaged over all ranks."""
    bound = next(variant for variant in variants if variant.name == "bound")
    runs = min(settings.repeats, MAX_RUNS_OF_A_BLOCK)
    seconds = [timed(bound, call)[0] for _ in range(settings.warmup + runs)]
    median = torch.tensor(statistics.median(seconds[settings.warmup :]), dtype=torch.float64)
    dist.all_reduce(median)
    return float(median) / settings.ranks / num_blocks
