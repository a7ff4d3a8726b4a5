"""Fresh processes with torch and transformers imported, forked from one that did only that.

    pid = fork(0, function, (1, 2), pipe)   # a process runs function(1, 2, pipe) and ends

Importing takes 5 s per process; a server does it once for all workers of a run. It runs nothing
else, so its forks are as fresh as spawned processes. Environment and `sys.path` are the caller's.
Forks of one server share its hash seed; processes that should differ in the order of sets come from
different servers.
"""

import atexit
import fcntl
import gc
import importlib
import os
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from multiprocessing.connection import Client, Connection
from multiprocessing.reduction import recv_handle, send_handle
from pathlib import Path
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
# Tracing makes objects by the million: by default, looking for cycles takes a tenth of the time.
GC_THRESHOLD = 20_000, 20, 40
NUM_SERVERS = 2
FOLDER = "LADDERIZE_TEST_SERVERS"
"""Environment variable: where the servers of this run listen. Workers inherit it; without it each
process has servers of its own."""


def fork(
    server: int, function: Callable[..., None], args: tuple[Any, ...], pipe: Connection
) -> int:
    """The id of a process that runs `function(*args, pipe)`; `pipe` is the child's from now."""
    with Client(_address_of(server), "AF_UNIX") as requests:
        requests.send((function, args, dict(os.environ), sys.path))
        send_handle(requests, pipe.fileno(), None)
        pipe.close()
        pid: int = requests.recv()
    return pid


def _address_of(server: int) -> str:
    """Who asks first starts all servers: they import at one time."""
    folder = Path(os.environ.get(FOLDER) or _own_folder())
    with (folder / "servers.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        addresses = [folder / f"server-{number}" for number in range(NUM_SERVERS)]
        if not addresses[-1].exists():
            for address in addresses:
                _start(str(address))
    return str(addresses[server])


@cache
def _own_folder() -> str:
    folder = tempfile.mkdtemp(prefix="ladderize-servers-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _start(address: str) -> None:
    is_worker = FOLDER in os.environ and "PYTEST_XDIST_WORKER" in os.environ
    run = os.getppid() if is_worker else os.getpid()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        subprocess.Popen(
            [sys.executable, "-m", "helpers.forked", str(listener.fileno()), str(run)],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
            pass_fds=[listener.fileno()],
        )


def _serve_forks(listener: socket.socket, run: int) -> None:
    """Until the process `run` has ended."""
    for name in IMPORTED:
        importlib.import_module(name)
    gc.freeze()  # no fork goes through what was imported
    gc.set_threshold(*GC_THRESHOLD)
    while _is_alive(run):
        if select.select([listener], [], [], 1)[0]:
            with suppress(EOFError, ConnectionError):  # the caller has ended
                _fork_for_next(listener)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def _fork_for_next(listener: socket.socket) -> None:
    with Connection(listener.accept()[0].detach()) as requests:
        function, args, environment, path = requests.recv()
        with Connection(recv_handle(requests)) as pipe:
            pid = os.fork()
            if pid == 0:
                listener.close()
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


if __name__ == "__main__":
    _serve_forks(socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2]))
