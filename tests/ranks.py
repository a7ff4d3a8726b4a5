"""Real ranks for tests: spawned once for a file, kept alive, with a timeout on every call.

A test sends a module-level function; every rank runs it as `fn(*args)` and sends its result back.
Results must be picklable without sharing memory: return floats, lists, numpy arrays or CPU
tensors' `.numpy()`, not live tensors.
"""

import multiprocessing
import os
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.distributed as dist
from checked import check_all_emitted_code

Start = Callable[[int, int], object]
"""Makes the default group; given this rank and how many there are."""


def _start_gloo(rank: int, num_ranks: int) -> None:
    dist.init_process_group("gloo", rank=rank, world_size=num_ranks)


def _serve(rank: int, num_ranks: int, port: int, pipe: Connection, start: Start) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), TOKENIZERS_PARALLELISM="0")
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "True"  # the store is the test process's
    torch.set_num_threads(1)
    check_all_emitted_code()
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


class Ranks:
    """`num_ranks` processes joined in one group, gloo's by default; use as a context manager."""

    def __init__(self, num_ranks: int, start: Start = _start_gloo) -> None:
        self.num_ranks = num_ranks
        context = multiprocessing.get_context("spawn")
        # Served from here, on a port the system picks while binding it: a port picked first and
        # bound by rank 0 later can be taken by another test in between.
        self._store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        pairs = [context.Pipe() for _ in range(num_ranks)]
        self._pipes = [ours for ours, _ in pairs]
        self._processes = [
            context.Process(
                target=_serve, args=(rank, num_ranks, self._store.port, theirs, start), daemon=True
            )
            for rank, (_, theirs) in enumerate(pairs)
        ]
        for process in self._processes:
            process.start()

    def run(self, fn: Callable[..., Any], *args: Any, timeout: float = 240) -> list[Any]:
        """`fn(*args)` on every rank; the results in rank order. Any rank's error fails the call."""
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
        for pipe, process in zip(self._pipes, self._processes, strict=True):
            if not kill and process.is_alive():
                pipe.send(None)
                process.join(20)
            if process.is_alive():
                process.kill()

    def __enter__(self) -> "Ranks":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
