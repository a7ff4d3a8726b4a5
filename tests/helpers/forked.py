"""Fresh processes that have imported torch and transformers: forked from one that did only that.

    server = Server()
    pid = server.fork(function, (1, 2), pipe)   # runs function(1, 2, pipe) and ends

Importing takes each process 5 s, and a server does it once. It runs nothing else, so that what it
forks is as fresh as a spawned process; environment and `sys.path` are the caller's. Forks of one
server share its hash seed: processes that are to differ in the order of sets need one each.
"""

import gc
import importlib
import multiprocessing
import os
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle, send_handle
from typing import Any, NoReturn

IMPORTED = [
    "torch._inductor.compile_fx",
    "torch.distributed.tensor.parallel",
    "torch.export",
    "transformers.models.llama.modeling_llama",
    "sympy.combinatorics",
    "ladderize.frontends.backend",
    "ladderize.testing",
]


class Server:
    """A process that forks; it ends with this one."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve_forks, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()

    def fork(self, function: Callable[..., None], args: tuple[Any, ...], pipe: Connection) -> int:
        """The id of a process that runs `function(*args, pipe)`; `pipe` is the child's from now."""
        self._pipe.send((function, args, dict(os.environ), sys.path))
        send_handle(self._pipe, pipe.fileno(), self._process.pid)
        pipe.close()
        pid: int = self._pipe.recv()
        return pid


def _serve_forks(requests: Connection) -> None:
    for name in IMPORTED:
        importlib.import_module(name)
    gc.freeze()  # no fork goes through what was imported
    with suppress(EOFError):  # the caller has ended
        while True:
            function, args, environment, path = requests.recv()
            with Connection(recv_handle(requests)) as pipe:
                pid = os.fork()
                if pid == 0:
                    requests.close()
                    os.environ.clear()
                    os.environ.update(environment)
                    sys.path[:] = path
                    _run(function, (*args, pipe))
            # Not waited for: until this process ends, its id is given to no other.
            requests.send(pid)


def _run(function: Callable[..., None], args: tuple[Any, ...]) -> NoReturn:
    """Run it and end the process, past all that belongs to the server."""
    status = 1
    try:
        function(*args)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
