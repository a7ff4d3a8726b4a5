"""Show what the ranks are doing: each rank appends to a file, which the parent reads.

rank r            Reporter.stage("model") ── appends a line to FOLDER/rank-r
parent (thread)   follow() reads all of them; a step is over when every rank has left it
"""

import faulthandler
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from rich.console import Console

HANG_AFTER = 180.0
"""Seconds in one stage after which a rank exits with a traceback."""


class Reporter:
    """The side of a rank. If a stage takes longer than `hang_after` seconds (None: no limit), the
    rank prints its traceback to stderr and exits with an error; the launcher ends the others."""

    def __init__(self, folder: Path, rank: int, hang_after: float | None = HANG_AFTER) -> None:
        self._path = folder / f"rank-{rank}"
        self._hang_after = hang_after

    def stage(self, name: str) -> None:
        if self._hang_after is not None:
            faulthandler.dump_traceback_later(self._hang_after, exit=True)
        with self._path.open("a") as file:
            file.write(f"{name}\n")

    def done(self) -> None:
        faulthandler.cancel_dump_traceback_later()


class Steps:
    """Shows steps in turn: a spinner on a terminal, and a line for each finished step."""

    def __init__(self, console: Console) -> None:
        self._console, self._status = console, console.status("")
        self._current: tuple[str, float] | None = None

    def begin(self, text: str) -> None:
        self.end()
        self._current = text, time.monotonic()
        self._status.update(text)

    def end(self) -> None:
        if self._current is not None:
            text, began = self._current
            line = f"  {text}  {time.monotonic() - began:.1f} s"
            self._console.print(line, highlight=False, markup=False)
            self._current = None

    def __enter__(self) -> Self:
        self._status.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.end()
        self._status.stop()


@contextmanager
def follow(
    folder: Path, num_ranks: int, stages: dict[str, str], steps: Steps, interval: float = 0.1
) -> Iterator[None]:
    """Show the stages of the ranks while the body runs. `stages` maps them, in order, to texts."""
    stop = threading.Event()

    def watch() -> None:
        num_shown = 0
        while not stop.wait(interval):
            begun = begun_by_all(folder, num_ranks, list(stages))
            for stage in begun[num_shown:]:
                steps.begin(stages[stage])
            num_shown = len(begun)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def begun_by_all(folder: Path, num_ranks: int, stages: Sequence[str]) -> list[str]:
    """The stages, in order, that every rank has begun."""
    paths = [folder / f"rank-{rank}" for rank in range(num_ranks)]
    begun = [path.read_text().splitlines() if path.exists() else [] for path in paths]
    return [stage for stage in stages if all(stage in names for names in begun)]
