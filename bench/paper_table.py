"""The table that calibrates the planner: tokens/s of Llama-3 70B, measured and predicted.

paper_70b.csv (arXiv 2501.06589) ── PaperRow ── residuals ── calibrate.py
"""

import csv
import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ladderize.config.hardware import Calibration, Hardware, hardware_of
from ladderize.tools.predict.planning.confidence import NEW, PROMPT
from ladderize.tools.predict.planning.forecast import Request, tokens_per_s
from ladderize.tools.predict.planning.planned_nets import VARIANTS, PlannedNet, variants
from ladderize.tools.predict.planning.workload import PlannedBlock, PlannedCosts, Workload

# Ratios of two models count twice as much as speeds, because plans are used for ratios.
RATIO_WEIGHT = 2.0


@dataclass(frozen=True)
class PaperRow:
    """One row of the table: tokens/s by variant; the bound only with P2P."""

    link: str
    batch: int
    ranks: int
    speeds: dict[str, float]

    @property
    def request(self) -> Request:
        return Request(self.batch, PROMPT, NEW)

    def hardware(self, fitted: Calibration) -> Hardware:
        return hardware_of(f"h100x{self.ranks}-{self.link}", fitted)

    def ratios(self, speeds: dict[str, float]) -> dict[str, float]:
        """Ratio of each measured variant to the standard model."""
        names = [name for name in self.speeds if name != "standard"]
        return {name: speeds[name] / speeds["standard"] for name in names}


@cache
def table() -> tuple[PaperRow, ...]:
    text = Path(__file__).with_name("paper_70b.csv").read_text("utf-8")
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return tuple(map(_row, csv.DictReader(lines)))


def _row(cells: dict[str, str]) -> PaperRow:
    columns = dict(zip(VARIANTS, ("standard", "ladder", "parallel", "upper_bound"), strict=True))
    speeds = {name: float(cells[column]) for name, column in columns.items() if cells[column]}
    link = "nvlink" if cells["p2p"] == "1" else "nop2p"
    return PaperRow(link, int(cells["batch"]), int(cells["tp"]), speeds)


@cache
def llama_70b() -> tuple[PlannedNet, ...]:
    """The variants of Llama-3 70B, in float16, from the sizes in its configuration."""
    hidden, inner, layers, words = 8192, 28672, 80, 128256
    heads, kv_heads, width = 64, 8, 128
    attention = hidden * width * (2 * heads + 2 * kv_heads)  # q, k, v, o
    mlp = 3 * hidden * inner
    kinds = (
        PlannedCosts(
            2 * attention, 4 * heads * width, 2 * (attention + hidden), 4 * kv_heads * width
        ),
        PlannedCosts(2 * mlp, weight_bytes=2 * (mlp + hidden)),
    )
    blocks = tuple(
        PlannedBlock(index, 0, index // 2, index % 2 == 0, kinds[index % 2], 2 * hidden)
        for index in range(2 * layers)
    )
    head = PlannedCosts(2 * hidden * words, weight_bytes=2 * (hidden * words + hidden))
    return variants(Workload(blocks, head, frozenset(range(2 * layers))))


def predicted(row: PaperRow, fitted: Calibration) -> dict[str, float]:
    """Predicted tokens/s of each measured variant."""
    hardware = row.hardware(fitted)
    nets = [net for net in llama_70b() if net.name in row.speeds]
    return {net.name: tokens_per_s(net, row.request, hardware) for net in nets}


def residuals(row: PaperRow, fitted: Calibration) -> list[float]:
    """Logarithms of predicted / measured: the standard model's speed, then the ratios to it."""
    found = predicted(row, fitted)
    ratios, measured = row.ratios(found), row.ratios(row.speeds)
    speed = math.log(found["standard"] / row.speeds["standard"])
    return [speed, *(RATIO_WEIGHT * math.log(ratios[name] / measured[name]) for name in ratios)]


def ratio_errors(row: PaperRow, fitted: Calibration) -> dict[str, float]:
    """Predicted / measured ratio to the standard model, minus 1."""
    ratios, measured = row.ratios(predicted(row, fitted)), row.ratios(row.speeds)
    return {name: ratios[name] / measured[name] - 1 for name in ratios}
