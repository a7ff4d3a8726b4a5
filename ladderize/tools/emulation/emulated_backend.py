"""The `torch.distributed` backend "emulated": groups whose ranks share an emulated link.

init_emulated(link) ──► register_backend ──► init_process_group ──► EmulatedGroup
new_group, DeviceMesh ───────────────────────────────────────────► EmulatedGroup, the same link
"""

from datetime import timedelta
from typing import Any, cast

import torch.distributed as dist

from ladderize.config.hardware import Link
from ladderize.tools.emulation.group import EmulatedGroup

BACKEND = "emulated"
TIMEOUT = timedelta(minutes=5)


def register_backend() -> None:
    """Register `BACKEND` with `torch.distributed`; `init_emulated` calls this.

    The default group takes its `Link` as `pg_options`; later groups take that of the default group.
    """
    if BACKEND not in dist.Backend.backend_list:
        dist.Backend.register_backend(BACKEND, _create, extended_api=True, devices=["cpu"])


def init_emulated(
    link: Link,
    *,
    rank: int = -1,
    world_size: int = -1,
    store: Any = None,
    init_method: str | None = None,
    timeout: timedelta = TIMEOUT,
) -> EmulatedGroup:
    """`torch.distributed.init_process_group` with an emulated link between the ranks.

    All ranks must be processes on one machine. Groups made later (`new_group`, a `DeviceMesh` of
    several axes) each have their own link, initially a copy of the default group's.

    Args:
        link: link that times the collectives. Its number of ranks may differ from the group's: two
            processes can stand in for eight GPUs.
        rank: rank of this process; by default, as for `world_size`, that of torchrun.
        world_size: number of ranks.
        store: a `torch.distributed.Store`, instead of `init_method`.
        init_method: as in `init_process_group`.
        timeout: time after which a collective that some rank does not join fails on the others.

    Returns:
        The default group, also `torch.distributed.group.WORLD`.
    """
    register_backend()
    dist.init_process_group(
        BACKEND,
        init_method=init_method,
        rank=rank,
        world_size=world_size,
        store=store,
        timeout=timeout,
        pg_options=link,
    )
    return cast(EmulatedGroup, dist.group.WORLD)


def _create(options: Any, link: Link | None) -> EmulatedGroup:
    """Create a group. Torch passes a link for the default group only."""
    if link is None:
        link = cast(EmulatedGroup, dist.group.WORLD).link
    return EmulatedGroup(
        options.store, options.group_rank, options.group_size, options.timeout, link
    )
