"""Least squares over the whole table at once: Gauss-Newton with damping (Levenberg, Marquardt).

The six numbers of a `Calibration` are fitted as logarithms, so that they stay above 0.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ladderize.tools.predict.hardware import Calibration
from ladderize.tools.predict.planning.paper import Row, residuals

Vector = NDArray[np.float64]
_STEP = 1e-5
_SMALLEST_GAIN = 1e-10
_LARGEST_DAMPING = 1e8


def fit(rows: Sequence[Row], start: Calibration) -> Calibration:
    """The numbers with the least sum of squared residuals over `rows`, looked for from `start`."""
    numbers = np.log(np.array(dataclasses.astuple(start)))
    error = _residuals(rows, numbers)
    damping, gain = 1e-3, float("inf")
    while gain > _SMALLEST_GAIN and damping < _LARGEST_DAMPING:
        slopes = _slopes(rows, numbers, error)
        square = slopes.T @ slopes
        step = np.linalg.solve(square + damping * np.diag(np.diag(square)), -slopes.T @ error)
        tried = _residuals(rows, numbers + step)
        gained = float(error @ error - tried @ tried)
        if gained > 0:
            numbers, error, gain, damping = numbers + step, tried, gained, damping / 5
        else:
            damping *= 5
    return _calibration(numbers)


def squares(rows: Sequence[Row], fitted: Calibration) -> float:
    """What `fit` makes small."""
    return sum(error**2 for row in rows for error in residuals(row, fitted))


def spread(rows: Sequence[Row], fitted: Calibration) -> Calibration:
    """The standard error of each fitted number, as a fraction of it, as if residuals were noise."""
    numbers = np.log(np.array(dataclasses.astuple(fitted)))
    error = _residuals(rows, numbers)
    slopes = _slopes(rows, numbers, error)
    variance = error @ error / (len(error) - len(numbers))
    found = np.sqrt(np.diag(np.linalg.inv(slopes.T @ slopes)) * variance)
    return Calibration(*map(float, found))


def _calibration(numbers: Vector) -> Calibration:
    return Calibration(*map(float, np.exp(numbers)))


def _residuals(rows: Sequence[Row], numbers: Vector) -> Vector:
    fitted = _calibration(numbers)
    return np.array([error for row in rows for error in residuals(row, fitted)])


def _slopes(rows: Sequence[Row], numbers: Vector, error: Vector) -> Vector:
    moved = numbers + _STEP * np.eye(len(numbers))
    return np.array([(_residuals(rows, other) - error) / _STEP for other in moved]).T
