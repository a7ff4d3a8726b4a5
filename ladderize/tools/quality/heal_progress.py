"""Show the progress of `heal`: bars on a terminal, lines in a log.

training  ━━━━━━━━━╸━━━━━━━  120/195  0:02:10  kl 0.3512
training: step 120 of 195, loss 0.3512, kl 0.3512
"""

from collections.abc import Mapping
from typing import Self

import typer
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from ladderize.quality.runs.heal_watcher import HealWatcher

_SHOWN = {"loss": "loss", "kl": "kl", "eval_kl": "held out: kl", "eval_loss": "loss"}


def watcher_of(told: Console) -> "HealBars | HealLines":
    """A context manager that shows bars if `told` is a terminal, otherwise lines."""
    return HealBars(told) if told.is_terminal else HealLines()


class HealLines(HealWatcher):
    """Prints a line for each stage and each log of losses."""

    _stage = ""

    def stage(self, text: str) -> None:
        self._stage = text
        typer.echo(text, err=True)

    def progress(self, done: int, total: int, logs: Mapping[str, float]) -> None:
        if losses := losses_of(logs):
            typer.echo(f"{self._stage}: step {done} of {total}, {losses}", err=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class HealBars(HealWatcher):
    """Shows a bar for the current stage."""

    def __init__(self, told: Console) -> None:
        columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
        losses = TextColumn("{task.fields[losses]}")
        self._progress = Progress(*columns, losses, console=told, transient=True)
        self._task: TaskID | None = None

    def stage(self, text: str) -> None:
        if self._task is not None:
            self._progress.remove_task(self._task)
        self._task = self._progress.add_task(text, total=None, losses="")

    def progress(self, done: int, total: int, logs: Mapping[str, float]) -> None:
        if self._task is None:
            return
        self._progress.update(self._task, completed=done, total=total)
        if losses := losses_of(logs):
            self._progress.update(self._task, losses=losses)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()


def losses_of(logs: Mapping[str, float]) -> str:
    """The losses in a log as text, such as "loss 0.3512, kl 0.3512"; "" if it has none."""
    return ", ".join(f"{text} {logs[name]:.4f}" for name, text in _SHOWN.items() if name in logs)
