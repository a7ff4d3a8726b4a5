"""Emulate a link that this machine does not have: gloo moves the values, a link model the clock.

    rank 0   compute ── launch ── compute ─────── wait ░░░░░ compute     ░ exposed
    rank 1   compute ─────── launch ── compute ── wait ░░░░░ compute
                                │                          │
    link                        ├─ alpha + bytes / beta ───┤             one transfer at a time
                             started                      due

transfers.py   Transfer and Exposure: when each was launched, due, waited for and released
board.py       the ranks' launch times, in shared memory
carrier.py     the thread that moves the values; `wait()`
group.py       EmulatedGroup, the process group
priority.py    run that thread and gloo's before compute, if the system allows it
emulated_backend.py   `init_emulated`, which makes an EmulatedGroup the default group

A transfer starts when the last rank has launched it and the link is free. Its duration is that of
the rank that sends or receives most. All ranks know each other's launch times and so compute the
same schedule. `wait()` returns when the transfer is due and the values have arrived.
"""

from ladderize.tools.emulation.emulated_backend import init_emulated
from ladderize.tools.emulation.group import EmulatedGroup
from ladderize.tools.emulation.transfers import Exposure, Transfer

__all__ = ["EmulatedGroup", "Exposure", "Transfer", "init_emulated"]
