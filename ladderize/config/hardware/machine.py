"""What a step runs on: devices and the link between them, by numbers or by a name.

h100x8-nvlink   8 devices of devices.toml, a link of calibrated.toml or links.toml, and what is
                reached of both by calibrated.toml
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
    return {name: Device(name, **fields) for name, fields in read_table("devices").items()}


@dataclass(frozen=True)
class Hardware:
    """Ranks that are all alike, and their link.

    Attributes:
        link: between the ranks, over which each branch is divided evenly.
        flops: FLOPs per second that one rank reaches.
        memory: bytes per second that it reaches when it reads weights or a KV cache.
        launch: seconds of a block, whatever it computes.
        contention: fraction of its rate of computing that a communication at the same time takes.
        name: as `hardware_of` knows it, "" for others.
        capacity: bytes of memory of one rank, None where nobody said.
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
        """Of a block that is divided over `ranks`: the larger of computing and reading."""
        return self.launch + max(flops / self.flops, num_bytes / self.memory) / ranks

    def reduce_seconds(self, num_bytes: float) -> float:
        return self.link.seconds(num_bytes) if self.ranks > 1 else 0.0

    def exchange_seconds(self, num_bytes: float) -> float:
        """Of an all-to-all to which a rank gives `num_bytes`."""
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
        name: a device, the number of ranks and a link.
        fitted: other numbers than those that ladderize ships with.

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
    """The links that a name of hardware can end in."""
    nominal = (re.sub(r"-\d+$", "", name) for name in known_links())
    return tuple(dict.fromkeys([*calibrated_links(), *nominal]))


def _link(kind: str, ranks: int, fitted: Calibration) -> Link | None:
    """Of one kind the calibrated link, or else that of `links.toml` with the nearest ranks."""
    if kind in calibrated_links():
        return fitted.link(kind, ranks)
    alike = [link for link in known_links().values() if re.sub(r"-\d+$", "", link.name) == kind]
    if not alike:
        return None
    nearest = min(alike, key=lambda link: abs(link.ranks - ranks))
    return dataclasses.replace(nearest, name=f"{kind}-{ranks}", ranks=ranks)
