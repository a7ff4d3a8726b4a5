"""Fractions of the hardware's peak rates that are reached, fitted (calibrated.toml).

latency of an all-reduce over n ranks = step * log2(n)      a tree, for short messages
"""

import math
from dataclasses import dataclass
from typing import Any

from ladderize.config.hardware.link import Link, read_table


@dataclass(frozen=True)
class Calibration:
    """The six fitted numbers, all above 0.

    Attributes:
        memory: fraction of a device's memory bandwidth that is reached.
        flops: fraction of its FLOPs per second that is reached.
        launch: fixed overhead of a block in seconds: dependent kernels, norms, and the launch
            overhead that remains under CUDA graphs.
        contention: fraction of the compute rate lost while communication runs.
        nvlink: seconds of one step of an all-reduce.
        nop2p: seconds of one step without peer-to-peer access (NCCL_P2P_DISABLE=1).
    """

    memory: float
    flops: float
    launch: float
    contention: float
    nvlink: float
    nop2p: float

    def link(self, kind: str, ranks: int) -> Link:
        """The link called `kind`, one of `calibrated_links`, between `ranks` of a node."""
        fields = calibrated_links()[kind]
        latency = getattr(self, fields["step"]) * math.log2(ranks)
        return Link(f"{kind}-{ranks}", ranks, latency, fields["bandwidth"], fields["source"])


@dataclass(frozen=True)
class Errors:
    """Errors of the fitted planner on its table: means of |predicted / measured - 1|.

    Attributes:
        ratio: error of ladder / standard and parallel / standard.
        worst_ratio: largest error of these ratios.
        left_out_ratio: error of these ratios for rows left out of the fit, one at a time.
        speed: error of tokens/s.
    """

    ratio: float
    worst_ratio: float
    left_out_ratio: float
    speed: float


def calibration() -> Calibration:
    """The numbers that ladderize ships with."""
    return Calibration(**read_table("calibrated")["fitted"])


def calibration_errors() -> Errors:
    return Errors(**read_table("calibrated")["errors"])


def calibrated_links() -> dict[str, dict[str, Any]]:
    return read_table("calibrated")["links"]
