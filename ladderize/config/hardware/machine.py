"""The devices of a step and the link between them, given by numbers or by name.

h100x8-nvlink   8 devices from devices.toml, a link from calibrated.toml or links.toml, scaled by
                the fractions in calibrated.toml
"""

import dataclasses
import re
from dataclasses import dataclass
from functools import cache
from math import inf

from ladderize.config.hardware.calibrated import Calibration, calibrated_links, calibration
from ladderize.config.hardware.link import Link, known_links, read_table
from ladderize.errors import Blocker, LadderError


@dataclass(frozen=True)
class Device:
    """One accelerator.

    Attributes:
        name: name in `devices.toml`.
        flops: peak dense FLOPs per second in float16 or bfloat16.
        memory: peak memory bandwidth, bytes per second.
        capacity: bytes of memory.
        source: reference for the numbers.
    """

    name: str
    flops: float
    memory: float
    capacity: float
    source: str


@cache
def known_devices() -> dict[str, Device]:
    """The devices of `devices.toml` by name."""
    return {name: Device(name, **fields) for name, fields in read_table("devices").items()}


@dataclass(frozen=True)
class Hardware:
    """Identical ranks and the link between them.

    Attributes:
        link: link between the ranks; each branch is divided evenly over them.
        flops: FLOPs per second that one rank reaches.
        memory: bytes per second that one rank reaches reading weights or a KV cache.
        launch: fixed overhead of a block in seconds.
        contention: fraction of the compute rate lost while communication runs.
        name: name for `hardware_of`; "" if it has none.
        capacity: bytes of memory of one rank; None if unknown.
    """

    link: Link
    flops: float
    memory: float
    launch: float = 0.0
    contention: float = 0.0
    name: str = ""
    capacity: float | None = None

    def __post_init__(self) -> None:
        rates = all(0 < rate < inf for rate in (self.flops, self.memory))
        if not (rates and 0 <= self.launch < inf and 0 <= self.contention < 1):
            raise LadderError(
                f"{self} is not possible hardware: rates must be above 0, times 0 or more, "
                "contention below 1, all finite."
            )

    @property
    def ranks(self) -> int:
        return self.link.ranks

    def compute_seconds(self, flops: float, num_bytes: float, ranks: int = 1) -> float:
        """Seconds of a block divided over `ranks`: overhead, plus compute or reads if longer."""
        return self.launch + max(flops / self.flops, num_bytes / self.memory) / ranks

    def reduce_seconds(self, num_bytes: float) -> float:
        return self.link.seconds(num_bytes) if self.ranks > 1 else 0.0

    def exchange_seconds(self, num_bytes: float) -> float:
        """Seconds of an all-to-all with `num_bytes` of input on each rank."""
        return self.link.seconds(num_bytes, "all_to_all") if self.ranks > 1 else 0.0

    def __str__(self) -> str:
        link = self.link
        return (
            f"{self.ranks} ranks, {self.flops / 1e12:.4g} TFLOP/s, memory {self.memory / 1e9:.4g} "
            f"GB/s, {self.launch * 1e6:.3g} µs a block, link {link.bandwidth / 1e9:.4g} GB/s, "
            f"latency {link.latency * 1e6:.3g} µs"
        )


def hardware_of(name: str, fitted: Calibration | None = None) -> Hardware:
    """The hardware called `name`, as in `h100x8-nvlink`.

    Args:
        name: device, number of ranks and link.
        fitted: replaces the calibration that ladderize ships with.

    Raises:
        LadderError: no such device or link; the known ones are listed.
    """
    fitted = fitted or calibration()
    found = re.fullmatch(r"(\w+?)x(\d+)-(.+)", name)
    device = known_devices().get(found[1]) if found else None
    link = _link(found[3], int(found[2]), fitted) if found and int(found[2]) else None
    if device is None or link is None:
        raise LadderError(
            f"There is no hardware called {name!r}.",
            [
                Blocker(f"devices: {', '.join(known_devices())}"),
                Blocker(f"links: {', '.join(link_kinds())}"),
            ],
            "use DEVICExRANKS-LINK, such as h100x8-nvlink",
        )
    return Hardware(
        link=link,
        flops=device.flops * fitted.flops,
        memory=device.memory * fitted.memory,
        launch=fitted.launch,
        contention=fitted.contention,
        name=name,
        capacity=device.capacity,
    )


def link_kinds() -> tuple[str, ...]:
    """The link names that a hardware name can end in."""
    nominal = (re.sub(r"-\d+$", "", name) for name in known_links())
    return tuple(dict.fromkeys([*calibrated_links(), *nominal]))


def _link(kind: str, ranks: int, fitted: Calibration) -> Link | None:
    """The calibrated link `kind`, else the one of `links.toml` with the nearest rank count."""
    if kind in calibrated_links():
        return fitted.link(kind, ranks)
    alike = [link for link in known_links().values() if re.sub(r"-\d+$", "", link.name) == kind]
    if not alike:
        return None
    nearest = min(alike, key=lambda link: abs(link.ranks - ranks))
    return dataclasses.replace(nearest, name=f"{kind}-{ranks}", ranks=ranks)
