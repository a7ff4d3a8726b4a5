"""The backend "emulated" of `torch.distributed`: groups with an emulated link between their ranks.

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
    """Make `BACKEND` known to `torch.distributed`; `init_emulated` does.

    A default group of it takes its `Link` as `pg_options`, groups made later take that of the
    default one.
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

    All ranks must be processes of one machine. Groups made later (`new_group`, a `DeviceMesh` of
    several axes) have a link of their own each, at first like the default group's.

    Args:
        link: how long a collective takes. It need not have as many ranks as the group: two
            processes can stand in for eight GPUs.
        rank: of this process; by default, like what follows, as `torchrun` says.
        store: a `torch.distributed.Store`, instead of `init_method`.
        timeout: after which a collective that a rank does not join is an error on the others.

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
    """Called by torch for the default group, and without a link for each one made later."""
    if link is None:
        link = cast(EmulatedGroup, dist.group.WORLD).link
    return EmulatedGroup(
        options.store, options.group_rank, options.group_size, options.timeout, link
    )
