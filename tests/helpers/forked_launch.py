"""Let `ladderize.tools.launch` fork its ranks from a process that has imported torch.

Everything else is as usual: the elastic launcher, its processes, the files that they write. A
spawned rank spends 5 s on imports, which no test looks at, and more on C++ kernels, which
`prepare_inductor` leaves out.
"""

import multiprocessing
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache, partial
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection
from typing import Any
from unittest.mock import patch

from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from helpers.forked import fork
from helpers.inductor import prepare_inductor
from ladderize.tools.launch import ranks


@contextmanager
def forked_launch() -> Iterator[None]:
    """Ranks inherit the environment that the first launch saw, one thread each."""
    from_server = partial(LaunchConfig, start_method="forkserver")
    with (
        patch.dict(os.environ, OMP_NUM_THREADS="1"),
        patch.object(forkserver, "connect_to_new_process", _server().connect_to_new_process),
        patch.object(ranks, "LaunchConfig", from_server),
        patch.object(ranks, "elastic_launch", _launch_prepared),
    ):
        yield


class _ForkServer(forkserver.ForkServer):
    """Python's, but for where it comes from: it is a fork of a process that has imported torch."""

    def __init__(self) -> None:
        super().__init__()
        ours, theirs = multiprocessing.Pipe()
        fork(0, _serve_launches, (), theirs)
        self._forkserver_address = ours.recv()
        self._forkserver_alive_fd = os.dup(ours.fileno())
        ours.close()

    def ensure_running(self) -> None:
        resource_tracker.ensure_running()


@cache
def _server() -> _ForkServer:
    return _ForkServer()


def _serve_launches(alive: Connection) -> None:
    """Until all who hold the other end of `alive` have ended."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("")  # an address of its own, without a file
        listener.listen()
        alive.send(listener.getsockname())
        with suppress(SystemExit):
            forkserver.main(listener.detach(), alive.fileno(), [])


def _launch_prepared(config: LaunchConfig, work: Callable[..., Any]) -> Callable[..., Any]:
    launched = elastic_launch(config, _work_prepared)
    return partial(launched, work)


def _work_prepared(work: Callable[..., Any], *args: Any) -> Any:
    prepare_inductor()
    return work(*args)
