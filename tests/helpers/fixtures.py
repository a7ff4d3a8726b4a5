"""Fixtures of all tests: fresh torch, ranks. A plugin of the processes that run tests."""

import gc
import os
from collections.abc import Iterator

import pytest
import torch

from helpers.fake_group import fake_group
from helpers.forked import GC_THRESHOLD
from helpers.inductor import prepare_inductor
from helpers.ranks import Ranks
from ladderize.sharding.plan_checks import forget_warnings

prepare_inductor()
gc.set_threshold(*GC_THRESHOLD)


def pytest_collection_finish() -> None:
    gc.collect()
    gc.freeze()  # no search for cycles goes through what was imported


@pytest.fixture(autouse=True)
def _fresh_torch() -> Iterator[None]:
    """Isolate each test from the state of torch and the environment after other tests."""
    torch._dynamo.reset()
    forget_warnings()  # Dynamo resets a backend only after a compilation
    torch.manual_seed(0)
    torch.set_num_threads(1)
    fused_layers = torch.backends.mha.get_fastpath_enabled()
    environment = dict(os.environ)
    yield
    torch.backends.mha.set_fastpath_enabled(fused_layers)
    if os.environ != environment:
        os.environ.clear()
        os.environ.update(environment)


@pytest.fixture(scope="module")
def two_ranks() -> Iterator[Ranks]:
    with Ranks(2) as ranks:
        yield ranks


@pytest.fixture(scope="module")
def four_ranks() -> Iterator[Ranks]:
    with Ranks(4) as ranks:
        yield ranks


@pytest.fixture(scope="module")
def first_of_two() -> Iterator[None]:
    """This process is rank 0 of two; there is no other process."""
    with fake_group():
        yield
