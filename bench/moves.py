"""Compare two results, an old one and a new one, value by value.

    old  {"variant": "ladder"} median_s 1.00      new  {"variant": "ladder"} median_s 1.20
    compare(old, new)  ->  Move(variant=ladder, "median_s", 1.0, 1.2, ratio 1.2, verdict "worse")

Seconds and bytes of different machines cannot be compared. There, only ratios, fractions and errors
are compared, which have no unit.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from ladderize import LadderError
from ladderize.tools.bench.record import FORMAT, Key, ResultRow, Results


@dataclass(frozen=True)
class _Kind:
    """How values with these names are compared.

    Attributes:
        names: pattern for `fnmatch`.
        better: the better direction: "lower", "higher", or "" if there is none.
        has_unit: whether values of different machines cannot be compared.
        floor: smallest reference of a relative difference, against noise of small values.
        slack: factor on the tolerance, for values noisier than a median.
    """

    names: str
    better: str
    has_unit: bool = True
    floor: float = 0.0
    slack: float = 1.0


# The first match counts.
_KINDS = (
    _Kind("*tokens_per_s", "higher"),
    _Kind("*speedup_ratio", "higher", has_unit=False),
    _Kind("*_ratio", "lower", has_unit=False),
    _Kind("*_fraction", "higher", has_unit=False, floor=1.0),
    _Kind("*error", "lower", has_unit=False, floor=1e-5, slack=100.0),
    _Kind("races", "lower", has_unit=False),
    _Kind("exposed_*s", "lower", floor=1e-3),
    _Kind("communicating_*s", ""),  # the requested time of the link
    _Kind("*_latency_s", ""),
    _Kind("compile_s", "lower", slack=6.0),
    _Kind("passes_s", "lower", floor=0.1, slack=6.0),
    _Kind("*_s", "lower"),
    _Kind("*_bytes", "lower"),
    _Kind("*", ""),
)
# The spread of the repeats of one run, and parts of a sum that is compared.
_NOT_COMPARED = ("quartiles_s", "passes_*_s", "*_ratio_low", "*_ratio_high")


@dataclass(frozen=True)
class Move:
    """A value that changed.

    Attributes:
        key, name: key of the row, and name of the value.
        old, new: the values; None if not measured.
        verdict: "better", "worse", or "moved" if there is no better direction.
    """

    key: Key
    name: str
    old: float | None
    new: float | None
    verdict: str

    @property
    def ratio(self) -> float | None:
        """New divided by old; None if either is None, or the old one is 0."""
        if self.old is None or self.new is None or self.old == 0:
            return None
        return self.new / self.old


@dataclass(frozen=True)
class Comparison:
    """The result of `compare`.

    Attributes:
        moves: values that changed by more than the tolerance.
        only_old, only_new: rows that only one result has.
        machine, versions: differences, each (old, new).
        compared: number of compared values.
    """

    moves: tuple[Move, ...]
    only_old: tuple[ResultRow, ...]
    only_new: tuple[ResultRow, ...]
    machine: Mapping[str, tuple[object, object]]
    versions: Mapping[str, tuple[object, object]]
    compared: int

    @property
    def worse(self) -> tuple[Move, ...]:
        return tuple(move for move in self.moves if move.verdict == "worse")


def read(path: Path) -> Results:
    """Read the results that `Results.write` wrote to `path`.

    Raises:
        LadderError: the file cannot be read, or has other content or another format version.
    """
    try:
        data = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise LadderError(f"The results in {path} cannot be read: {error.strerror}.") from None
    except ValueError as error:
        raise LadderError(f"{path} holds no results: {error}.") from None
    if not isinstance(data, dict) or "format" not in data:
        raise LadderError(f"{path} holds no results: it has no format.")
    if data["format"] != FORMAT:
        raise LadderError(
            f"{path} has results of format {data['format']}, read is {FORMAT}.",
            cure="measure again, or compare with the ladderize that wrote it",
        )
    try:
        needed = [field.name for field in fields(Results) if field.name != "subject"]
        given = {name: data[name] for name in needed} | {"subject": data.get("subject", "")}
        return Results(**(given | {"rows": tuple(map(_row, data["rows"]))}))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, LadderError):
            raise
        what = f"{type(error).__name__}: {error}"
        raise LadderError(f"{path} holds malformed results: {what}.") from None


def _row(data: Any) -> ResultRow:
    values = {n: None if v is None else float(v) for n, v in data["values"].items()}
    return ResultRow(dict(data["key"]), values)


def compare(old: Results, new: Results, tolerance: float = 0.05) -> Comparison:
    """Find what changed from `old` to `new`.

    Args:
        tolerance: allowed relative difference from the old value.
    """
    machine = _differences(old.machine, new.machine)
    olds = {frozenset(row.key.items()): row for row in old.rows}
    news = {frozenset(row.key.items()): row for row in new.rows}
    pairs = [
        (olds[key].key, name, olds[key].values.get(name), news[key].values.get(name))
        for key in olds
        if key in news
        for name in dict.fromkeys([*olds[key].values, *news[key].values])
        if not any(fnmatchcase(name, pattern) for pattern in _NOT_COMPARED)
        and not (machine and _kind(name).has_unit)
    ]
    return Comparison(
        tuple(
            Move(*pair, verdict=_verdict(*pair[1:]))
            for pair in pairs
            if _has_moved(*pair[1:], tolerance)
        ),
        tuple(row for key, row in olds.items() if key not in news),
        tuple(row for key, row in news.items() if key not in olds),
        machine,
        _differences(old.versions, new.versions),
        len(pairs),
    )


def _differences(
    old: Mapping[str, object], new: Mapping[str, object]
) -> dict[str, tuple[object, object]]:
    names = dict.fromkeys([*old, *new])
    return {n: (old.get(n), new.get(n)) for n in names if old.get(n) != new.get(n)}


def _kind(name: str) -> _Kind:
    return next(kind for kind in _KINDS if fnmatchcase(name, kind.names))


def _has_moved(name: str, old: float | None, new: float | None, tolerance: float) -> bool:
    if old is None or new is None:
        return old is not new
    if not (math.isfinite(old) and math.isfinite(new)):
        return str(old) != str(new)
    kind = _kind(name)
    return abs(new - old) > kind.slack * tolerance * max(abs(old), kind.floor)


def _verdict(name: str, old: float | None, new: float | None) -> str:
    """The verdict on a change; a value that is no longer a number is worse, a new number better."""
    was, is_ = (value is not None and math.isfinite(value) for value in (old, new))
    if not (was and is_):
        return "worse" if was else "better" if is_ else "moved"
    better = _kind(name).better
    if not better:
        return "moved"
    assert old is not None and new is not None
    return "better" if (new < old) == (better == "lower") else "worse"
