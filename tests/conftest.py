"""What all tests have in common: a cache of this run, fresh torch, ranks."""

import gc
import os
import sys
import tempfile
from collections.abc import Iterator

# The packages are installed without bytecode: it is written when they are imported first, or every
# process would compile torch anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

import pytest
import torch
from helpers.fake_group import fake_group
from helpers.inductor import prepare_inductor
from helpers.ranks import Ranks

# They need an environment of their own, which tests/tensorrt/install.sh makes.
collect_ignore = ["tensorrt"]
# A cache of this run's own: a run killed while it wrote leaves a broken library behind. Its workers
# share it, and it goes when the run ends.
if "PYTEST_XDIST_WORKER" not in os.environ:
    _cache = tempfile.TemporaryDirectory(prefix="ladderize-tests-", ignore_cleanup_errors=True)
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = _cache.name
# Tracing makes objects by the million: by default, looking for cycles takes a tenth of the time.
gc.set_threshold(20_000, 20, 10)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--deep", action="store_true", help="Run also the tests marked `deep`, and more examples."
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "deep: too long for every run; see CONTRIBUTING.md")
    if config.getoption("--deep"):
        os.environ.setdefault("LADDERIZE_DEEP", "5")  # helpers/few_examples.py, helpers/inductor.py
    prepare_inductor()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--deep"):
        return
    deep = [item for item in items if item.get_closest_marker("deep")]
    config.hook.pytest_deselected(items=deep)
    items[:] = [item for item in items if item not in set(deep)]


@pytest.fixture(autouse=True)
def _fresh_torch() -> Iterator[None]:
    """No test sees what another one left behind in torch, or in the environment."""
    torch._dynamo.reset()
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
    """This process is rank 0 of two; the other one is not there."""
    with fake_group():
        yield
