"""Start ranks on this machine with torch's elastic launcher; say why one of them failed."""

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
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

LOOPBACK = {"linux": "lo", "darwin": "lo0"}
NUM_STDERR_LINES = 40


class RankFailed(RuntimeError):
    """A rank died or hung; the message has its traceback."""


def launch(
    work: Callable[..., Any],
    args: tuple[Any, ...],
    num_ranks: int,
    folder: Path,
) -> list[Any]:
    """Run `work(*args)` on `num_ranks` processes of this machine; return the results by rank.

    Args:
        work: a function of a module, with torch's `@record`.
        folder: where the ranks report their stages, and where their stdout and stderr go.

    Raises:
        RankFailed: with the traceback of the first rank that failed.
        KeyboardInterrupt: also in the place of the launcher's own `SignalException`.
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
            outcomes = elastic_launch(config, work)(*args)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        raise RankFailed(_describe(rank, failure, folder)) from None
    except SignalException as signal:
        raise KeyboardInterrupt from signal
    return [outcomes[rank] for rank in range(num_ranks)]


@contextmanager
def _environment(num_ranks: int) -> Iterator[None]:
    """What the ranks inherit while they are started and run."""
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
    """What the rank's `@record` wrote when an exception left it; [] when it had no time to."""
    message = failure.error_file_data.get("message", {})
    extra = message.get("extraInfo", {}) if isinstance(message, dict) else {}
    return str(extra.get("py_callstack", "")).splitlines()


def _stderr(rank: int, folder: Path) -> list[str]:
    """The end of the rank's stderr: a hung rank's `faulthandler` writes there."""
    for path in (folder / "logs").glob(f"**/{rank}/stderr.log"):
        return path.read_text(errors="replace").splitlines()[-NUM_STDERR_LINES:]
    return []
