"""Fit the planner to the paper's table; print numbers, residuals and errors of left-out rows.

    pip install scipy
    python bench/calibrate.py           # --leave-out: also fit once without each row, and by halves

The numbers are in ladderize/config/hardware/calibrated.toml.
"""

import argparse
import dataclasses
import statistics
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from paper_table import PaperRow, predicted, ratio_errors, residuals, table
from scipy.optimize import OptimizeResult, least_squares

from ladderize.config.hardware import Calibration, calibration

# Far from each other: the sum of squares has kinks and several minima.
STARTS = (
    calibration(),
    Calibration(0.8, 0.3, 10e-6, 0.1, 20e-6, 10e-6),
    Calibration(0.9, 0.1, 40e-6, 0.4, 5e-6, 40e-6),
)


def fit(rows: Sequence[PaperRow], start: Calibration) -> Calibration:
    """Minimize the sum of squared residuals over `rows`, starting from `start`."""
    return Calibration(*map(float, np.exp(_fitted(rows, start).x)))


def squares(rows: Sequence[PaperRow], fitted: Calibration) -> float:
    """The sum of squared residuals, which `fit` minimizes."""
    return sum(error**2 for row in rows for error in residuals(row, fitted))


def spread(rows: Sequence[PaperRow], fitted: Calibration) -> Calibration:
    """The standard error of each fitted number, as a fraction of it, as if residuals were noise."""
    found = _fitted(rows, fitted)
    variance = 2 * found.cost / (len(found.fun) - len(found.x))
    return Calibration(
        *map(float, np.sqrt(np.diag(np.linalg.inv(found.jac.T @ found.jac)) * variance))
    )


def _fitted(rows: Sequence[PaperRow], start: Calibration) -> OptimizeResult:
    """The six numbers are fitted as logarithms, so that they stay above 0."""

    def errors(numbers: NDArray[np.float64]) -> list[float]:
        fitted = Calibration(*map(float, np.exp(numbers)))
        return [error for row in rows for error in residuals(row, fitted)]

    return least_squares(errors, np.log(dataclasses.astuple(start)), method="lm", diff_step=1e-5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--leave-out", action="store_true")
    options = parser.parse_args()
    rows = table()
    found = min((fit(rows, start) for start in STARTS), key=lambda c: squares(rows, c))
    errors = dataclasses.asdict(spread(rows, found))
    print("| number | fitted | standard error |\n|---|---|---|")
    for name, value in dataclasses.asdict(found).items():
        print(f"| {name} | {value:.4g} | {100 * errors[name]:.0f} % |")
    print(
        "\n| link | ranks | batch | tokens/s | measured | ladder | measured | off |"
        " parallel | measured | off | bound off |"
    )
    print("|---|" + "---|" * 11)
    for row in rows:
        print(line(row, found))
    print(
        f"\nratios: {percent(mean(ratios(rows, found)))} on average, "
        f"{percent(max(map(abs, ratios(rows, found))))} at worst"
    )
    print(f"bound / standard: {percent(mean(bounds(rows, found)))}")
    off = speeds(rows, found)
    print(f"tokens/s: {percent(mean(off))}, {percent(max(map(abs, off)))} at worst")
    if options.leave_out:
        leave_out(rows, found)


def line(row: PaperRow, fitted: Calibration) -> str:
    speed, errors = predicted(row, fitted)["standard"], ratio_errors(row, fitted)
    cells = [row.link, str(row.ranks), str(row.batch), f"{speed:.1f}"]
    cells.append(f"{row.speeds['standard']:.1f}")
    for name in ("ladder", "parallel"):
        measured = row.ratios(row.speeds)[name]
        cells += [f"{measured * (1 + errors[name]):.3f}", f"{measured:.3f}", signed(errors[name])]
    cells.append(signed(errors["bound"]) if "bound" in errors else "")
    return f"| {' | '.join(cells)} |"


def leave_out(rows: Sequence[PaperRow], start: Calibration) -> None:
    parts = [[row] for row in rows]
    print(f"\nrows left out one by one: {percent(mean(apart(rows, parts, start)))}")
    halves = [rows[::2], rows[1::2]]
    print(f"every other row left out: {percent(mean(apart(rows, halves, start)))}")
    eight = [[row for row in rows if row.ranks == 8]]
    print(f"8 ranks left out: {percent(mean(apart(rows, eight, start)))}")


def apart(
    rows: Sequence[PaperRow], parts: Iterable[Sequence[PaperRow]], start: Calibration
) -> list[float]:
    """Errors of the ratios of each of `parts`, fitted to all other rows."""
    found: list[float] = []
    for part in parts:
        found += ratios(part, fit([row for row in rows if row not in part], start))
    return found


def ratios(rows: Iterable[PaperRow], fitted: Calibration) -> list[float]:
    each = [ratio_errors(row, fitted) for row in rows]
    return [errors[name] for errors in each for name in ("ladder", "parallel")]


def bounds(rows: Iterable[PaperRow], fitted: Calibration) -> list[float]:
    each = [ratio_errors(row, fitted) for row in rows]
    return [errors["bound"] for errors in each if "bound" in errors]


def speeds(rows: Iterable[PaperRow], fitted: Calibration) -> list[float]:
    each = [(row, predicted(row, fitted)) for row in rows]
    return [found[name] / row.speeds[name] - 1 for row, found in each for name in found]


def mean(errors: Iterable[float]) -> float:
    return statistics.mean(map(abs, errors))


def percent(value: float) -> str:
    return f"{100 * value:.2f} %"


def signed(value: float) -> str:
    return f"{100 * value:+.1f} %"


if __name__ == "__main__":
    main()
