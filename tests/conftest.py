"""Options of the suite, and a cache per run. Fixtures that import torch: helpers/fixtures.py."""

import os
import sys
import tempfile

# The packages are installed without bytecode: it is written when they are imported first, or every
# process would compile torch anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

import pytest
from helpers.forked import FOLDER

# They need more than the environment of the others: see the install.sh of each.
collect_ignore = ["tensorrt", "cuda", "integrations"]
# A cache of this run's own: a run killed while it wrote leaves a broken library behind. Its workers
# share it, with the servers that fork ranks, and it goes when the run ends.
if "PYTEST_XDIST_WORKER" not in os.environ:
    _cache = tempfile.TemporaryDirectory(prefix="ladderize-tests-", ignore_cleanup_errors=True)
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = os.environ[FOLDER] = _cache.name


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--deep", action="store_true", help="Run also the tests marked `deep`, and more examples."
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "deep: too long for every run; see CONTRIBUTING.md")
    if config.getoption("--deep"):
        os.environ.setdefault("LADDERIZE_DEEP", "5")  # helpers/few_examples.py, helpers/inductor.py
    hands_out_tests = config.option.dist != "no" and not hasattr(config, "workerinput")
    if not hands_out_tests:  # that process is quick: its workers wait for it
        config.pluginmanager.import_plugin("helpers.fixtures")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--deep"):
        return
    deep = [item for item in items if item.get_closest_marker("deep")]
    config.hook.pytest_deselected(items=deep)
    items[:] = [item for item in items if item not in set(deep)]
