"""What is reached of what hardware can do: the fitted numbers (calibrated.toml).

latency of an all-reduce over n ranks = step * log2(n)      as by trees, for short messages
"""

import math
from dataclasses import dataclass
from typing import Any

from ladderize.config.hardware.link import Link, read_table


@dataclass(frozen=True)
class Calibration:
    """The six numbers that were fitted, all of them above 0.

    Attributes:
        memory: fraction of a device's memory bandwidth that is reached.
        flops: fraction of its FLOPs per second.
        launch: seconds of a block beside them, whatever it computes: kernels that wait for each
            other, norms, what CUDA graphs leave of launches.
        contention: fraction of the rate of compute that a communication at the same time takes.
        nvlink: seconds of one step of an all-reduce.
        nop2p: the same where ranks cannot reach each other's memory (NCCL_P2P_DISABLE=1).
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
    """How far the fitted planner is off its table: means of |predicted / measured - 1|.

    Attributes:
        ratio: of ladder / standard and parallel / standard.
        worst_ratio: the largest of them.
        left_out_ratio: the mean for rows that were left out of the fit, one by one.
        speed: of tokens/s.
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
