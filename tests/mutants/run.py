"""Plant each mutant of the table in a copy of the tree and show that its tests fail.

    python tests/mutants/run.py                      all of them, on two copies at a time
    python tests/mutants/run.py --only "+= is no add"
    python tests/mutants/run.py --check              whether each can be planted; runs no tests

First all tests named in the table run unchanged: a failure means something only where they pass. A
mutant is killed where pytest says that tests failed (exit status 1). Where it finds no tests,
cannot import them or runs out of time, nothing is shown, and that is reported as an error.
"""

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import Queue

from mutants import MUTANTS, Mutant, find_misfits
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[2]
PYTEST = "-m pytest -x -q -n 0 -p no:cacheprovider --timeout 120".split()
# A run that takes longer hangs where no timeout of pytest reaches it.
SECONDS = 600
TESTS_FAILED = 1
_KILLER = re.compile(r"^(?:FAILED|ERROR) (\S+?::.+?)(?: - .*)?$", re.MULTILINE)
_TIMEOUT = "from pytest-timeout"
_STYLES = {"killed": "green", "SURVIVED": "bold red", "error": "bold yellow"}


@dataclass(frozen=True)
class Outcome:
    """What became of a mutant.

    Attributes:
        mutant: which one.
        verdict: a key of `_STYLES`.
        killer: the first test that failed, "" where none did.
        seconds: of its run.
        output: what pytest printed.
    """

    mutant: Mutant
    verdict: str
    killer: str
    seconds: float
    output: str


# ---- a copy of the tree


def copy_tree(to: Path) -> None:
    """Copy what git tracks or would track; links stay links."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    for name in filter(None, listed.split("\0")):
        source, target = ROOT / name, to / name
        if source.is_symlink() or source.is_file():  # not one that was deleted
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target, follow_symlinks=False)


@contextmanager
def planted(mutant: Mutant, tree: Path) -> Iterator[None]:
    """The tree with the fault; afterwards the file is the old one again, its time too."""
    path = tree / mutant.file
    text, stat = path.read_text(), path.stat()
    path.write_text(mutant.plant(text))
    try:
        yield
    finally:
        path.write_text(text)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


# ---- tests in a process of their own


def run_tests(tree: Path, tests: Sequence[str], *, keep_bytecode: bool = False) -> tuple[int, str]:
    """The exit status of pytest on `tests`, and what it printed.

    Bytecode is kept of the unchanged tree alone: that of a mutant could be taken for the next one.
    """
    env = {**os.environ, "PYTHONPATH": str(tree)}
    env |= {} if keep_bytecode else {"PYTHONDONTWRITEBYTECODE": "1"}
    process = subprocess.Popen(
        [sys.executable, *PYTEST, *tests],
        cwd=tree,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return -1, f"no end within {SECONDS} s\n{process.communicate()[0]}"
    return process.returncode, output


def try_mutant(mutant: Mutant, trees: "Queue[Path]") -> Outcome:
    """Plant `mutant` in a tree that nobody uses now, and run its tests."""
    tree = trees.get()
    start = time.monotonic()
    try:
        with planted(mutant, tree):
            status, output = run_tests(tree, [mutant.tests])
    finally:
        trees.put(tree)
    verdict = {0: "SURVIVED", TESTS_FAILED: "killed"}.get(status, "error")
    if _TIMEOUT in output:
        verdict = "error"
    found = _KILLER.search(output)
    killer = found[1] if verdict == "killed" and found else ""
    return Outcome(mutant, verdict, killer, time.monotonic() - start, output)


def find_red_tests(mutants: Sequence[Mutant], trees: Sequence[Path]) -> list[str]:
    """What pytest says of tests that do not pass in the unchanged tree; each runs once."""
    by_file: dict[str, list[str]] = {}
    for mutant in mutants:
        if mutant.tests not in by_file.setdefault(mutant.test_file, []):
            by_file[mutant.test_file].append(mutant.tests)
    files = list(by_file)
    shares = [files[i :: len(trees)] for i in range(len(trees))]

    def check(tree: Path, share: Sequence[str]) -> str | None:
        tests = [test for file in share for test in by_file[file]]
        if not tests:
            return None
        status, output = run_tests(tree, tests, keep_bytecode=True)
        return None if status == 0 else output

    with ThreadPoolExecutor(len(trees)) as pool:
        return [output for output in pool.map(check, trees, shares) if output is not None]


# ---- what is shown


def show(console: Console, outcomes: Sequence[Outcome]) -> None:
    table = Table(box=None, pad_edge=False)
    for column in ("mutant", "file", "killed by"):
        table.add_column(column, overflow="fold")
    table.add_column("s", justify="right")
    table.add_column("")
    for outcome in outcomes:
        mutant, style = outcome.mutant, _STYLES[outcome.verdict]
        killer = outcome.killer or f"({mutant.tests})"
        verdict = f"[{style}]{outcome.verdict}[/]"
        cells = (mutant.name, mutant.file, killer.replace("[", r"\["))
        table.add_row(*cells, f"{outcome.seconds:.0f}", verdict)
    console.print(table)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", nargs="+", metavar="NAME", help="mutants by name")
    parser.add_argument("--jobs", type=int, default=2, help="copies of the tree (2)")
    parser.add_argument("--check", action="store_true", help="plant, but run no tests")
    args = parser.parse_args()
    known = {mutant.name for mutant in MUTANTS}
    if unknown := [name for name in args.only or () if name not in known]:
        parser.error(f"there is no mutant {unknown[0]!r}")
    if args.jobs < 1:
        parser.error("--jobs must be at least 1")
    return args


def main() -> int:
    args = parse_args()
    console = Console(width=None if sys.stdout.isatty() else 160)
    mutants = [mutant for mutant in MUTANTS if not args.only or mutant.name in args.only]
    if misfits := list(find_misfits(ROOT, mutants)):
        print(*misfits, sep="\n")
        return 1
    if args.check:
        print(f"{len(mutants)} mutants can be planted")
        return 0
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        trees = [Path(folder) / str(number) for number in range(args.jobs)]
        for tree in trees:
            copy_tree(tree)
        start = time.monotonic()
        if red := find_red_tests(mutants, trees):
            print(*red, "These tests fail without a mutant.", sep="\n")
            return 1
        print(f"without a mutant the tests pass ({time.monotonic() - start:.0f} s)", flush=True)
        outcomes = try_all(mutants, trees)
    show(console, outcomes)
    killed = sum(outcome.verdict == "killed" for outcome in outcomes)
    print(f"{killed} of {len(outcomes)} killed")
    return 0 if killed == len(outcomes) else 1


def try_all(mutants: Sequence[Mutant], trees: Sequence[Path]) -> list[Outcome]:
    """The outcomes in the order of the table; each is printed as it comes."""
    free: Queue[Path] = Queue()
    for tree in trees:
        free.put(tree)
    found: dict[Mutant, Outcome] = {}
    with ThreadPoolExecutor(len(trees)) as pool:
        for done in as_completed([pool.submit(try_mutant, m, free) for m in mutants]):
            outcome = done.result()
            found[outcome.mutant] = outcome
            print(
                f"{outcome.verdict:8} {outcome.seconds:4.0f} s  {outcome.mutant.name}", flush=True
            )
            if outcome.verdict == "error":
                print(outcome.output, flush=True)
    return [found[mutant] for mutant in mutants]


if __name__ == "__main__":
    sys.exit(main())
