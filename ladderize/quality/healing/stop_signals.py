"""The first SIGTERM or SIGINT asks a run to stop when it can, the second one ends it at once.

signal   ── signals.received is set        the run looks at it after each step
signal   ── SystemExit, KeyboardInterrupt  wherever it is
"""

import signal
import threading
from types import FrameType
from typing import Any, Self

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopSignals:
    """Use as a context manager, around the run; outside of it signals do what they did before.

    Only the main thread gets signals; in another one this does nothing.

    Attributes:
        received: the signal that came, None as long as none did.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {each: signal.signal(each, self._receive) for each in _SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for each, handler in self._before.items():
            signal.signal(each, handler)
        self._before = {}

    def _receive(self, number: int, _: FrameType | None) -> None:
        if self.received is None:
            self.received = signal.Signals(number)
        elif number == signal.SIGINT:
            raise KeyboardInterrupt
        else:
            raise SystemExit(128 + number)
