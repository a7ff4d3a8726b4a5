"""This process as rank 0, for tests that need no other rank: collectives compute nothing.

Emitted code, reports and refusals are those of real ranks, at half the cost and without servers.
Values and agreement are not tested: `helpers.ranks` is for these.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist
from torch.distributed.tensor.debug import _clear_sharding_prop_cache
from torch.testing._internal.distributed.fake_pg import FakeStore

from helpers.ranks import mesh


@contextmanager
def fake_group(world_size: int = 2) -> Iterator[None]:
    dist.init_process_group("fake", rank=0, world_size=world_size, store=FakeStore())
    try:
        yield
    finally:
        mesh.cache_clear()
        _clear_sharding_prop_cache()  # holds the group: the next one's mesh is equal to this one
        dist.destroy_process_group()
