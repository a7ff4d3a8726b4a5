"""vLLM plugin for `bench/vllm_speed.py`: the tensor-parallel group uses the emulated link.

vLLM's own all-reduce on CPU goes through shared memory and bypasses process groups. With this
plugin it goes through `torch.distributed`, whose group takes the time of the link. LADDERIZE_LINK
gives the link, as "SECONDS BYTES_PER_SECOND".
"""

import functools
import os
from typing import Any

import torch.distributed as dist


def register() -> None:
    from vllm.distributed.device_communicators.cpu_communicator import CpuCommunicator
    from vllm.platforms import current_platform

    from ladderize.config.hardware import Link
    from ladderize.tools.emulation.emulated_backend import BACKEND, register_backend

    latency, bandwidth = map(float, os.environ["LADDERIZE_LINK"].split())
    link = Link("emulated", ranks=2, latency=latency, bandwidth=bandwidth)
    register_backend()
    type(current_platform).dist_backend = BACKEND
    CpuCommunicator._all_group_ranks_share_shm_group_name = lambda _: False  # no shared memory
    original = dist.init_process_group

    @functools.wraps(original)
    def with_link(backend: str, **options: Any) -> None:
        if backend == BACKEND:
            options |= {"pg_options": link}
        original(backend, **options)

    dist.init_process_group = with_link
