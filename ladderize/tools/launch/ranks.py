"""Start ranks on this machine with torch's elastic launcher, and explain a failure."""

import logging
import os
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, Std
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import (
    ChildFailedError,
    ProcessFailure,
    record,
)
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from ladderize.errors import LadderError
from ladderize.tools.launch.progress import HANG_AFTER, Reporter

LOOPBACK = {"linux": "lo", "darwin": "lo0"}
NUM_STDERR_LINES = 40


class RankFailed(RuntimeError):
    """A rank died or hung; the message has its traceback."""


Work = Callable[..., Any]
"""A module-level function, called with a rank's `Reporter` and the other arguments."""


def launch(
    work: Work,
    args: tuple[Any, ...],
    num_ranks: int,
    folder: Path,
    hang_after: float | None = HANG_AFTER,
) -> list[Any]:
    """Run `work` in `num_ranks` processes on this machine; return the results by rank.

    Args:
        folder: folder for the ranks' stages, stdout and stderr.
        hang_after: time limit of a stage in seconds, None for no limit.

    Raises:
        LadderError: raised by a rank.
        RankFailed: a rank failed; the message has the traceback of the first one.
        KeyboardInterrupt: also instead of the launcher's `SignalException`.
    """
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=num_ranks,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",  # any free port
        local_addr="localhost",  # not this machine's name, which may not resolve
        max_restarts=0,
        logs_specs=DefaultLogsSpecs(log_dir=str(folder / "logs"), redirects=Std.ALL),
    )
    try:
        with _environment(num_ranks):
            outcomes = elastic_launch(config, on_rank)(work, args, folder, hang_after)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        raise RankFailed(_describe(rank, failure, folder)) from None
    except SignalException as signal:
        raise KeyboardInterrupt from signal
    return without_refusals([outcomes[rank] for rank in range(num_ranks)])


@record
def on_rank(work: Work, args: tuple[Any, ...], folder: Path, hang_after: float | None) -> Any:
    """Run `work` on this rank; return its result, or the `LadderError` that it raises."""
    reporter = Reporter(folder, int(os.environ.get("RANK", 0)), hang_after)
    try:
        return work(reporter, *args)
    except LadderError as error:
        # Rebuilt: Dynamo re-raises errors as a class of its own, with advice appended.
        return LadderError(error.summary, error.blockers, error.cure)
    finally:
        reporter.done()


def without_refusals(outcomes: list[Any]) -> list[Any]:
    """Return the outcomes of `on_rank`, or raise the first `LadderError` among them."""
    for error in outcomes:
        if isinstance(error, LadderError):
            raise error
    return outcomes


@contextmanager
def _environment(num_ranks: int) -> Iterator[None]:
    """Set the environment that the ranks inherit."""
    before = dict(os.environ)
    threads = max(1, (os.cpu_count() or 1) // num_ranks)
    os.environ.update(OMP_NUM_THREADS=str(threads), TOKENIZERS_PARALLELISM="false")
    if sys.platform in LOOPBACK:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", LOOPBACK[sys.platform])
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _describe(rank: int, failure: ProcessFailure, folder: Path) -> str:
    lines = [f"rank {rank} failed: {_summary(failure)}"]
    traceback = _traceback(failure) or _stderr(rank, folder)
    return "\n".join([*lines, *(f"    {line}" for line in traceback)])


def _summary(failure: ProcessFailure) -> str:
    name = failure.signal_name()
    return f"ended by {name}" if failure.exitcode < 0 else f"exit code {failure.exitcode}"


def _traceback(failure: ProcessFailure) -> list[str]:
    """The traceback that the rank's `@record` wrote; [] if it ended without writing one."""
    message = failure.error_file_data.get("message", {})
    extra = message.get("extraInfo", {}) if isinstance(message, dict) else {}
    return str(extra.get("py_callstack", "")).splitlines()


def _stderr(rank: int, folder: Path) -> list[str]:
    """The end of the rank's stderr: a hung rank's `faulthandler` writes there."""
    for path in (folder / "logs").glob(f"**/{rank}/stderr.log"):
        return path.read_text(errors="replace").splitlines()[-NUM_STDERR_LINES:]
    return []
