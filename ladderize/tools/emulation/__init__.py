"""A link that this machine does not have: gloo carries the values, the clock is the link's.

    rank 0   compute ── launch ── compute ─────── wait ░░░░░ compute     ░ exposed
    rank 1   compute ─────── launch ── compute ── wait ░░░░░ compute
                                │                          │
    link                        ├─ alpha + bytes / beta ───┤             one transfer at a time
                             started                      due

transfers.py   Transfer and Exposure: when each was launched, due, waited for and released
board.py       the ranks' launch times, in memory that they share
carrier.py     a thread of its own for the values; what `wait()` does
group.py       EmulatedGroup, the process group
priority.py    that thread, and gloo's, go before compute where the system allows it
emulated_backend.py   `init_emulated`, which makes an EmulatedGroup the default group

A transfer starts when the last rank has launched it and the link is free; it takes as long as on
the rank that sends, or is sent, most. All ranks know each other's launch times, and so compute the
same schedule. `wait()` returns when the transfer is due and the values are there.
"""

from ladderize.tools.emulation.emulated_backend import init_emulated
from ladderize.tools.emulation.group import EmulatedGroup
from ladderize.tools.emulation.transfers import Exposure, Transfer

__all__ = ["EmulatedGroup", "Exposure", "Transfer", "init_emulated"]
