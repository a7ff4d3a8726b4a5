"""Run programs as `python FILE` and `torchrun FILE` do, in forks of a process that imported torch.

    run_program(ROOT / "bench" / "plan_70b.py", ["--help"])     # its output
    run_program(ROOT / "examples" / "serve_llama.py", ranks=2)  # output of the ranks, rank 0 first

A program runs in its own process, but nothing is imported again.
"""

import multiprocessing
import os
import runpy
import signal
import sys
import tempfile
import traceback
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path

import torch
import torch.distributed as dist

from helpers.forked import fork
from helpers.inductor import prepare_inductor


def run_program(
    path: Path,
    arguments: Sequence[str] = (),
    *,
    ranks: int = 0,
    folder: Path | None = None,
    lowering: str = "inductor",
    server: int = 0,
    timeout: float = 240,
) -> str:
    """Run `path` as `__main__` and return its output. Raises AssertionError if it fails.

    Args:
        ranks: as in `torchrun --nproc-per-node`; 0 runs without torchrun.
        folder: working directory.
        lowering: lowering to use instead of Inductor, if emitted code is not tested.
        server: server to fork from; forks of one server share their hash seed.
    """
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False) if ranks else None
    pipes: list[Connection] = []
    pids: list[int] = []
    with tempfile.TemporaryDirectory() as name:
        outputs = [Path(name) / str(rank) for rank in range(ranks or 1)]
        for rank, output in enumerate(outputs):
            environment = _environment(rank, ranks, store.port) if store else {}
            ours, theirs = multiprocessing.Pipe()
            task = (str(path), list(arguments), str(folder or Path.cwd()), lowering)
            pids.append(fork(server, _run, (*task, environment, str(output)), theirs))
            pipes.append(ours)
        try:
            errors = [_receive(pipe, timeout) for pipe in pipes]
        finally:
            for pid, pipe in zip(pids, pipes, strict=True):
                pipe.close()
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)  # it has answered, or hangs
        failed = [f"rank {rank}:\n{error}" for rank, error in enumerate(errors) if error]
        assert not failed, "\n".join(failed)
        return "".join(output.read_text() for output in outputs)


def _environment(rank: int, ranks: int, port: int) -> dict[str, str]:
    """The variables that torchrun sets; the store is in the test process."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }


def _receive(pipe: Connection, timeout: float) -> str:
    if not pipe.poll(timeout):
        return f"no answer within {timeout} s"
    try:
        error: str = pipe.recv()
    except EOFError:
        return "ended without an answer"
    return error


def _run(
    path: str,
    arguments: list[str],
    folder: str,
    lowering: str,
    environment: dict[str, str],
    output: str,
    pipe: Connection,
) -> None:
    os.environ.update(environment, TOKENIZERS_PARALLELISM="0")
    os.chdir(folder)
    os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT), 1)
    sys.argv = [path, *arguments]
    sys.path.insert(0, str(Path(path).parent))
    torch.set_num_threads(1)
    prepare_inductor()
    _replace_inductor(lowering)
    error = ""
    try:
        runpy.run_path(path, run_name="__main__")
    except SystemExit as ended:
        error = "" if ended.code in (None, 0) else f"exit code {ended.code}"
    except BaseException:
        error = traceback.format_exc()
    sys.stdout.flush()
    pipe.send(error)


def _replace_inductor(lowering: str) -> None:
    from ladderize.backends import LOWERINGS

    LOWERINGS["inductor"] = LOWERINGS[lowering]
