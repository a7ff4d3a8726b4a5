"""Real ranks for tests: started once per file, kept alive, with a timeout on every call.

A test sends a module-level function; every rank runs it as `fn(*args)` and sends its result back.
Results must be picklable without sharing memory: return floats, lists, numpy arrays or CPU
tensors' `.numpy()`, not live tensors.

Even and odd ranks come from different servers, so their sets have different orders.
"""

import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from helpers.forked import NUM_SERVERS, fork
from helpers.inductor import prepare_inductor

SECONDS_TO_END = 20


Start = Callable[[int, int], object]
"""Makes the default group; given this rank and how many there are."""


def _start_gloo(rank: int, num_ranks: int) -> None:
    dist.init_process_group("gloo", rank=rank, world_size=num_ranks)


def _serve(rank: int, num_ranks: int, port: int, start: Start, pipe: Connection) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), TOKENIZERS_PARALLELISM="0")
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "True"  # the store is the test process's
    torch.set_num_threads(1)
    prepare_inductor()
    start(rank, num_ranks)
    while (task := pipe.recv()) is not None:
        fn, args = task
        try:
            torch._dynamo.reset()
            torch.manual_seed(0)
            pipe.send(("ok", fn(*args)))
        except BaseException:
            pipe.send(("error", traceback.format_exc()))
    dist.destroy_process_group()


def _ends(pipe: Connection) -> bool:
    """Whether the rank at the other end closes in time; what it still sends is dropped."""
    try:
        while pipe.poll(SECONDS_TO_END):
            pipe.recv()
    except (EOFError, ConnectionResetError):
        return True
    return False


@cache
def mesh() -> DeviceMesh:
    """On a rank: a 1-D mesh of all ranks."""
    return init_device_mesh("cpu", (dist.get_world_size(),))


class Ranks:
    """`num_ranks` processes in one group, by default of gloo; use as a context manager."""

    def __init__(self, num_ranks: int, start: Start = _start_gloo) -> None:
        self.num_ranks = num_ranks
        # Served from here, on a port the system picks while binding it: a port picked first and
        # bound by rank 0 later can be taken by another test in between.
        self._store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        self._pipes: list[Connection] = []
        self._pids: list[int] = []
        for rank in range(num_ranks):
            ours, theirs = multiprocessing.Pipe()
            args = rank, num_ranks, self._store.port, start
            self._pids.append(fork(rank % NUM_SERVERS, _serve, args, theirs))
            self._pipes.append(ours)

    def run(self, fn: Callable[..., Any], *args: Any, timeout: float = 240) -> list[Any]:
        """Run `fn(*args)` on every rank; return results in rank order, or raise a rank's error."""
        outcomes = self.outcomes(fn, *args, timeout=timeout)
        errors = [f"rank {i}:\n{text}" for i, (kind, text) in enumerate(outcomes) if kind != "ok"]
        if errors:
            raise AssertionError("\n".join(errors))
        return [value for _, value in outcomes]

    def outcomes(
        self, fn: Callable[..., Any], *args: Any, timeout: float = 240
    ) -> list[tuple[str, Any]]:
        """Like `run`, but each rank's ("ok", value) or ("error", traceback)."""
        for pipe in self._pipes:
            pipe.send((fn, args))
        outcomes = []
        for rank, pipe in enumerate(self._pipes):
            if not pipe.poll(timeout):
                self.close(kill=True)
                raise TimeoutError(f"rank {rank} did not answer within {timeout} s")
            outcomes.append(pipe.recv())
        return outcomes

    def close(self, kill: bool = False) -> None:
        for pipe in self._pipes:
            with suppress(BrokenPipeError):  # it has ended
                pipe.send(None)
        for pipe, pid in zip(self._pipes, self._pids, strict=True):
            if kill or not _ends(pipe):
                os.kill(pid, signal.SIGKILL)
            pipe.close()
        self._pipes, self._pids = [], []

    def __enter__(self) -> "Ranks":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
