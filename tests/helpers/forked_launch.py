"""Let `ladderize.tools.launch` fork its ranks from a process that has imported torch.

Everything else is as usual: the elastic launcher, its processes, the files that they write. A
spawned rank spends 5 s on imports, which no test looks at.
"""

import multiprocessing
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from unittest.mock import patch

from torch.distributed.launcher.api import LaunchConfig

from helpers.forked import IMPORTED
from ladderize.tools.launch import ranks


@contextmanager
def forked_launch() -> Iterator[None]:
    """Ranks inherit the environment that the first launch saw, one thread each."""
    multiprocessing.set_forkserver_preload(IMPORTED)
    from_server = partial(LaunchConfig, start_method="forkserver")
    with (
        patch.dict(os.environ, OMP_NUM_THREADS="1"),
        patch.object(ranks, "LaunchConfig", from_server),
    ):
        yield
