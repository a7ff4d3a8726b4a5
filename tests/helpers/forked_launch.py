"""Let `ladderize.tools.launch` fork its ranks from a process that has imported torch.

Everything else is as usual: the elastic launcher, its processes, the files that they write. A
spawned rank spends 5 s on imports, which no test looks at, and more on C++ kernels, which
`prepare_inductor` leaves out.
"""

import multiprocessing
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest.mock import patch

from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from helpers.forked import IMPORTED
from helpers.inductor import prepare_inductor
from ladderize.tools.launch import ranks


@contextmanager
def forked_launch() -> Iterator[None]:
    """Ranks inherit the environment that the first launch saw, one thread each."""
    multiprocessing.set_forkserver_preload(IMPORTED)
    from_server = partial(LaunchConfig, start_method="forkserver")
    with (
        patch.dict(os.environ, OMP_NUM_THREADS="1"),
        patch.object(ranks, "LaunchConfig", from_server),
        patch.object(ranks, "elastic_launch", _launch_prepared),
    ):
        yield


def _launch_prepared(config: LaunchConfig, work: Callable[..., Any]) -> Callable[..., Any]:
    launched = elastic_launch(config, _work_prepared)
    return partial(launched, work)


def _work_prepared(work: Callable[..., Any], *args: Any) -> Any:
    prepare_inductor()
    return work(*args)
