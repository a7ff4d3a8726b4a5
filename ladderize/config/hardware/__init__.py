"""Hardware as data: devices, links between ranks, and the fractions of peak rates reached.

links.toml ── link.py: Link, seconds of a collective by its bytes ──────┐
devices.toml ── Device, peak rates from data sheets ────────────────────┼── machine.py: Hardware
calibrated.toml ── calibrated.py: Calibration, fractions of them reached ┘
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
