"""What a step runs on, as data: devices, links between ranks, and what is reached of them.

links.toml ── link.py: Link, seconds of a collective of so many bytes ──┐
devices.toml ── Device, what a data sheet promises ─────────────────────┼── machine.py: Hardware
calibrated.toml ── calibrated.py: Calibration, what is reached of it ───┘
"""

from ladderize.config.hardware.calibrated import (
    Calibration,
    Errors,
    calibration,
    calibration_errors,
)
from ladderize.config.hardware.link import Link, known_links, link_of
from ladderize.config.hardware.machine import (
    Device,
    Hardware,
    hardware_of,
    known_devices,
    link_kinds,
)

__all__ = [
    "Calibration",
    "Device",
    "Errors",
    "Hardware",
    "Link",
    "calibration",
    "calibration_errors",
    "hardware_of",
    "known_devices",
    "known_links",
    "link_kinds",
    "link_of",
]
