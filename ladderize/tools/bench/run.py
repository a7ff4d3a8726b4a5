"""Run a benchmark on ranks that it starts on this machine, or on those of torchrun.

Settings ── work on every rank ── rows ── Results
"""

import os
import tempfile
from pathlib import Path
from typing import Any

import torch.distributed as dist
from rich.console import Console

from ladderize.errors import LadderError, counted
from ladderize.tools.bench.bench_settings import Settings
from ladderize.tools.bench.rank import HANG_AFTER, stages, work
from ladderize.tools.bench.record import Results
from ladderize.tools.bench.rows import rows_of
from ladderize.tools.launch.progress import Steps, follow
from ladderize.tools.launch.ranks import RankFailed, launch, on_rank, without_refusals


def run_benchmark(settings: Settings, command: str, told: Console) -> Results | None:
    """Measure `settings`. Under torchrun, ranks other than 0 return None.

    Args:
        command: command line that repeats the measurement.
        told: console for progress.

    Raises:
        LadderError: the model is refused, or a rank failed.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        outcomes = _under_torchrun(settings)
        if int(os.environ["RANK"]):
            return None
    else:
        outcomes = _by_itself(settings, told)
    measured = without_refusals(outcomes)
    ranks = counted(settings.ranks, f"{settings.device} rank")
    subject = f"{settings.model}: {measured[0][0].dtype}, {settings.lowering}, {ranks}"
    return Results(command, rows_of(measured), subject=subject)


def _under_torchrun(settings: Settings) -> list[Any]:
    with tempfile.TemporaryDirectory(prefix="ladderize-bench-") as folder:
        own = _here(settings, folder)
    if settings.ranks == 1:
        return [own]
    dist.init_process_group("gloo")  # the group of the measurement is destroyed
    try:
        outcomes: list[Any] = [None] * settings.ranks
        dist.all_gather_object(outcomes, own)
    finally:
        dist.destroy_process_group()
    return outcomes


def _by_itself(settings: Settings, told: Console) -> list[Any]:
    with Steps(told) as steps, tempfile.TemporaryDirectory(prefix="ladderize-bench-") as name:
        steps.begin(f"start {settings.ranks} ranks")
        with follow(Path(name), settings.ranks, stages(settings), steps):
            if settings.ranks == 1:
                return [_here(settings, name)]
            try:
                return launch(work, (settings,), settings.ranks, Path(name), HANG_AFTER)
            except RankFailed as error:
                raise LadderError(f"The benchmark ended: {error}") from None


def _here(settings: Settings, folder: str) -> Any:
    """Run `work` in this process."""
    return on_rank(work, (settings,), Path(folder), HANG_AFTER if settings.ranks > 1 else None)
