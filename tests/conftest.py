import gc
import os
import tempfile
from collections.abc import Iterator

import pytest
import torch
from checked import check_all_emitted_code
from ranks import Ranks

# They need an environment of their own, which tests/tensorrt/install.sh makes.
collect_ignore = ["tensorrt"]
# A cache of this run's own: a run killed while it wrote leaves a broken library behind.
os.environ["TORCHINDUCTOR_CACHE_DIR"] = tempfile.mkdtemp(prefix="ladderize-tests-")
# Kernels are compiled in the process itself: a pool of compilers for each rank costs more.
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
check_all_emitted_code()
# Tracing makes objects by the million: by default, looking for cycles takes a tenth of the time.
gc.set_threshold(20_000, 20, 10)


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
