"""What the ranks are doing right now: ranks append to files, the parent reads them and shows it.

rank r            Reporter.stage("model") ── appends a line to FOLDER/rank-r
parent (thread)   follow() reads all of them; a step is over when every rank has left it
"""

import faulthandler
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self, TextIO

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

HANG_AFTER = 180.0
"""Seconds after which a rank that is still in one stage gives up, with a traceback."""


class Reporter:
    """A rank's side. Each stage has `hang_after` seconds: then the rank prints where it hangs to
    stderr and exits with an error, which makes the launcher end the others. None: as many as it
    takes."""

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


def begun_by_all(folder: Path, num_ranks: int, stages: Sequence[str]) -> list[str]:
    """The stages, in order, that every rank has begun."""
    paths = [folder / f"rank-{rank}" for rank in range(num_ranks)]
    begun = [path.read_text().splitlines() if path.exists() else [] for path in paths]
    return [stage for stage in stages if all(stage in names for names in begun)]


class Steps(Protocol):
    """Shows one step after the other; `begin` ends the one before."""

    def begin(self, text: str) -> None: ...
    def end(self) -> None: ...


@contextmanager
def follow(
    folder: Path, num_ranks: int, stages: dict[str, str], steps: Steps, interval: float = 0.1
) -> Iterator[None]:
    """Show the stages of the ranks while the body runs. `stages` are in order, with their texts."""
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


class LiveSteps:
    """Steps on a terminal: a spinner and a running clock."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            SpinnerColumn(finished_text="[green]✓"),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            console=console,
        )
        self._task: TaskID | None = None

    def begin(self, text: str) -> None:
        self.end()
        self._task = self._progress.add_task(text, total=1)

    def end(self) -> None:
        if self._task is not None:
            self._progress.update(self._task, completed=1)
            self._task = None

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        if kind is None:
            self.end()
        self._progress.stop()


class DottedSteps:
    """Steps in a pipe or a log: a line each, with a dot for every second."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._began: float | None = None
        self._thread = threading.Thread(target=self._tick, daemon=True)

    def begin(self, text: str) -> None:
        self.end()
        with self._lock:
            self._began = time.monotonic()
            self._write(f"  {text} ")

    def end(self, outcome: str = "") -> None:
        with self._lock:
            if self._began is not None:
                seconds = time.monotonic() - self._began
                self._write(f" {outcome or f'{seconds:.1f} s'}\n")
                self._began = None

    def _tick(self) -> None:
        while not self._stop.wait(1.0):
            with self._lock:
                if self._began is not None:
                    self._write(".")

    def _write(self, text: str) -> None:
        self._file.write(text)
        self._file.flush()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        self.end("" if kind is None else "stopped")
        self._stop.set()


def steps_on(console: Console) -> LiveSteps | DottedSteps:
    return LiveSteps(console) if console.is_terminal else DottedSteps(console.file)  # type: ignore[arg-type]
