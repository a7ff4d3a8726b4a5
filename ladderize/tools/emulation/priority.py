"""Run threads before compute: a network card does not wait for a core."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def before_compute() -> Iterator[bool]:
    """Give threads started in the body priority over ordinary ones (SCHED_FIFO).

    A network card does not wait for a core, but gloo's threads do. On two busy cores, an all-reduce
    of two computing ranks took 20 ms without this and 0.7 ms with it, because six threads take many
    short turns.

    Yields:
        Whether it worked. Linux allows it to root, or with an `rtprio` limit of at least 1;
        elsewhere nothing changes.
    """
    if sys.platform != "linux":
        yield False
        return
    usual = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    except PermissionError:
        yield False
        return
    try:
        yield True
    finally:
        os.sched_setscheduler(0, *usual)
