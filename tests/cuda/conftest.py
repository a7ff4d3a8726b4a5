"""Inductor's CUDA code without a GPU. `tests/cuda/install.sh` installs Triton."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import library

_caches = tempfile.TemporaryDirectory(prefix="ladderize-cuda-", ignore_cleanup_errors=True)
library.load(Path(_caches.name))

import pytest
import stand_in_gpu
import torch.distributed as dist

stand_in_gpu.install(_caches.name)


@pytest.fixture(scope="session", autouse=True)
def no_group_is_left() -> Iterator[None]:
    yield
    if dist.is_initialized():
        dist.destroy_process_group()
