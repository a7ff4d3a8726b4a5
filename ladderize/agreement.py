"""Let all ranks of a group agree, before the first collective, that they compiled the same thing.

A rank with another plan would launch other collectives: wrong values, or a hang. The ranks compare
notes through the group's key-value store, which needs no collective, no device and has timeouts.
"""

from collections import Counter
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from ladderize import compat
from ladderize.errors import Blocker, LadderError

TIMEOUT = timedelta(minutes=5)


class DisagreementError(LadderError):
    """The ranks of a group came to different verdicts. Raised on all of them, always."""


_rounds: Counter[str] = Counter()


def agree(mesh: DeviceMesh, verdict: str) -> None:
    """Return once every rank of the 1-D `mesh` has come to the same `verdict`.

    Args:
        mesh: the ranks that must agree; every one of them must call this, in the same order.
        verdict: what this rank is about to do: the hash of its plan, or why it has none.

    Raises:
        DisagreementError: on every rank, with each one's verdict, when they differ or one is
            missing.
    """
    group = mesh.get_group()
    if dist.get_backend(group) == "fake":  # one process stands in for all ranks
        return
    store = compat.default_store()
    round_number = _rounds[group.group_name]
    _rounds[group.group_name] += 1
    prefix = f"ladderize/{group.group_name}/{round_number}"
    store.set(f"{prefix}/{mesh.get_local_rank()}", verdict)
    verdicts = [_read(store, f"{prefix}/{rank}") for rank in range(mesh.size())]
    if any(other != verdict for other in verdicts):
        raise DisagreementError(
            "The ranks do not agree on what to compile:",
            [Blocker(f"rank {rank}: {text}") for rank, text in enumerate(verdicts)],
            "give every rank the same model, inputs of the same shape, and the same options",
        )


def _read(store: Any, key: str) -> str:
    try:
        store.wait([key], TIMEOUT)
    except (dist.DistStoreError, RuntimeError):  # RuntimeError: FileStore, HashStore
        return f"no answer within {TIMEOUT.total_seconds():.0f} s (it did not compile this graph)"
    return str(store.get(key).decode())
