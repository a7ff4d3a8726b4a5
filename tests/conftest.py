"""What all tests have in common: a cache of this run, the order of files, fresh torch, ranks."""

import gc
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from checked import check_all_emitted_code
from ranks import Ranks

# They need an environment of their own, which tests/tensorrt/install.sh makes.
collect_ignore = ["tensorrt"]
# A cache of this run's own: a run killed while it wrote leaves a broken library behind. Its workers
# share it, and it goes when the run ends.
if "PYTEST_XDIST_WORKER" not in os.environ:
    _cache = tempfile.TemporaryDirectory(prefix="ladderize-tests-", ignore_cleanup_errors=True)
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = _cache.name
# Kernels are compiled in the process itself: a pool of compilers for each rank costs more.
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
check_all_emitted_code()
# Tracing makes objects by the million: by default, looking for cycles takes a tenth of the time.
gc.set_threshold(20_000, 20, 10)


# Files that take minutes, the longest first: begun last, one would keep one worker busy alone.
SLOW = """
    zoo/test_exported zoo/test_symbolic_sizes zoo/test_zoo test_properties test_docs_ranks test_demo
    test_release test_docs_commands test_bench test_generate test_tensor_parallel test_emulation
    test_emitted test_hf_tensor_parallel test_sharded_models test_stale_reads test_parallelize
    test_training test_parallel_training test_vocabulary test_examples test_docs test_sharding
    test_tensorrt test_cut_ranks test_cut test_hf_models zoo/test_sharded_sizes test_backend
    test_plot_page test_emitted_order test_emitted_kernels test_verify test_cli test_planning
""".split()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With `--no-loadscope-reorder` the workers take up files in this order, each as a whole."""
    place = {Path(__file__).parent / f"{name}.py": i for i, name in enumerate(SLOW)}
    gone = [str(path) for path in place if not path.is_file()]
    assert not gone, f"SLOW in tests/conftest.py names files that are not there: {gone}"
    items.sort(key=lambda item: place.get(item.path, len(SLOW)))


@pytest.fixture(autouse=True)
def _fresh_torch() -> Iterator[None]:
    """No test sees what another one left behind in torch."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    fused_layers = torch.backends.mha.get_fastpath_enabled()
    yield
    torch.backends.mha.set_fastpath_enabled(fused_layers)


@pytest.fixture(scope="module")
def two_ranks() -> Iterator[Ranks]:
    with Ranks(2) as ranks:
        yield ranks


@pytest.fixture(scope="module")
def four_ranks() -> Iterator[Ranks]:
    with Ranks(4) as ranks:
        yield ranks
