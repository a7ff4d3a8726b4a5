"""The identity of the graph passes for Inductor's cache: every file that can edit the graph."""

import shutil

from ladderize.backends.source_digest import PACKAGE, digest_of_sources, files_behind

HOOK = "ladderize.backends.inductor"


def test_files_are_found_by_their_imports():
    found = {str(path.relative_to(PACKAGE)) for path in files_behind(HOOK)}
    assert found > {
        "backends/inductor.py",
        "passes/after_autograd.py",
        "passes/runner.py",
        "passes/schedule.py",
        "sharding/views.py",
        "graph/collectives.py",
        "compat/inductor.py",
    }
    # What runs before autograd is in the graph that Inductor hashes itself.
    assert not found & {"passes/reroute.py", "frontends/backend.py", "report/builder.py"}


def test_each_of_them_changes_the_identity(tmp_path):
    copy = tmp_path / "ladderize"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__", "tools"))
    digest = digest_of_sources.__wrapped__
    before = digest(HOOK, copy)
    assert before == digest(HOOK)
    for path in files_behind(HOOK, copy):
        kept = path.read_bytes()
        path.write_bytes(kept + b"# edited\n")
        assert digest(HOOK, copy) != before, path
        path.write_bytes(kept)
    assert digest(HOOK, copy) == before
