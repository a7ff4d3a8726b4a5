"""Check the code that Inductor emits: no races on buffers of collectives, and no early waits.

source of the wrapper -> read_events -> Program -> find_races, find_disorder, order_string
"""

from ladderize.backends.emitted.checks import (
    Finding,
    Flight,
    check_emitted,
    find_disorder,
    find_flights,
    find_races,
    foreign_waits,
    order_string,
)
from ladderize.backends.emitted.events import read_events
from ladderize.backends.emitted.program import Event, EventKind, Program

__all__ = [
    "Event",
    "EventKind",
    "Finding",
    "Flight",
    "Program",
    "check_emitted",
    "find_disorder",
    "find_flights",
    "find_races",
    "foreign_waits",
    "order_string",
    "read_events",
]
