"""A device by name: what its data sheet promises (devices.toml)."""

import tomllib
from dataclasses import dataclass
from functools import cache
from importlib import resources


@dataclass(frozen=True)
class Device:
    """One accelerator.

    Attributes:
        name: as in `devices.toml`.
        flops: per second at most, dense, in float16 or bfloat16.
        memory: bytes per second at most.
        capacity: bytes of memory.
        source: where the numbers are from.
    """

    name: str
    flops: float
    memory: float
    capacity: float
    source: str


@cache
def known_devices() -> dict[str, Device]:
    """Those of `devices.toml` by name."""
    text = (
        resources.files("ladderize.tools.predict.hardware")
        .joinpath("devices.toml")
        .read_text("utf-8")
    )
    return {name: Device(name, **fields) for name, fields in tomllib.loads(text).items()}
