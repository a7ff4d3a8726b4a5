"""Watch the progress of `heal`; the command line shows it."""

import time
from collections.abc import Mapping
from typing import Any

import transformers

from ladderize.quality.runs.run_folder import RunFolder


class HealWatcher:
    """Does nothing; override its methods to show progress. Only the first rank calls them."""

    def stage(self, text: str) -> None:
        """A stage starts, such as "training"."""

    def progress(self, done: int, total: int, logs: Mapping[str, float]) -> None:
        """Steps or tokens of the stage; `logs` are the losses of a log, or empty."""


class RunClock(transformers.TrainerCallback):
    """Passes steps and logs to a watcher, and measures the time, also over resumed runs."""

    def __init__(self, watcher: HealWatcher, folder: RunFolder) -> None:
        self._watcher, self._folder = watcher, folder
        self._began = time.monotonic() - (folder.noted("seconds") or 0.0)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        self._tell(state, {})

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:  # noqa: ARG002
        self._tell(state, logs)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        if state.is_world_process_zero:
            self._folder.note("seconds", self.seconds)

    def _tell(self, state: Any, logs: Mapping[str, float]) -> None:
        if state.is_world_process_zero and state.max_steps:
            self._watcher.progress(state.global_step, state.max_steps, logs)
