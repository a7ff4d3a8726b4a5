"""Make the table of families in docs/sharding.md from the results of `sharded_families.py`.

    python bench/families_table.py bench/results/sharded_families.json

Families that keep the same weights whole share a row, with the largest of their shares over 2 and 4
ranks. Families that cannot be built tiny, or are refused, have their own rows.
"""

import json
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from ladderize.tools.bench.record import ResultRow

HEAD = (
    "| families (`model_type`) | all-reduces per block | bytes whole | FLOPs whole "
    "| what stays whole |\n"
    "|---|---|---|---|---|"
)
# The part of a name that is shown: modules, without the layer and "weight".
_NAME = re.compile(r"[\w.]+?\.(?:weight|fn)\b|[\w.]+_proj\b")


def read_rows(path: Path) -> list[ResultRow]:
    """The rows of a results file."""
    rows = json.loads(path.read_text())["rows"]
    return [ResultRow(row["key"], row["values"]) for row in rows]


def family(row: ResultRow) -> str:
    return str(row.key["family"])


def table(rows: Sequence[ResultRow]) -> str:
    """The table as Markdown."""
    by_family: dict[str, list[ResultRow]] = defaultdict(list)
    for row in rows:
        by_family[family(row)].append(row)
    groups: dict[tuple[str, str], list[str]] = defaultdict(list)
    for name, found in by_family.items():
        groups[kind(found)].append(name)
    lines = [line(by_family, names, *key) for key, names in groups.items()]
    return "\n".join([HEAD, *(text for _, text in sorted(lines, key=lambda pair: pair[0]))])


def kind(rows: Sequence[ResultRow]) -> tuple[str, str]:
    """All-reduces per block and what stays whole; or why there are none."""
    unmeasured = [row for row in rows if row.values["difference"] is None]
    if unmeasured:
        return "", without_place(str(unmeasured[0].key["outcome"]))
    names = {name for row in rows for name in _NAME.findall(str(row.key["whole"]))}
    short = sorted({".".join(name.removesuffix(".weight").split(".")[-2:]) for name in names})
    ratios = {f"{a_block(row.values):.3g}" for row in rows}
    listed = [f"`{name}`" for name in short]
    if any("multiplies by no weight" in str(row.key["whole"]) for row in rows):
        listed.append("branches without a weight that a rule knows")
    return " to ".join(sorted(ratios)), ", ".join(listed)


def without_place(outcome: str) -> str:
    """`refused: No residual block was found: …` -> `refused: No residual block was found`."""
    said, _, why = outcome.partition(": ")
    return said if said == "cannot be built" else f"{said}: {why.split(':')[0].rstrip('.')}"


def a_block(values: Mapping[str, Any]) -> float:
    return float(values["reductions"]) / float(values["blocks"])


def line(
    by_family: Mapping[str, Sequence[ResultRow]], names: Iterable[str], ratio: str, whole: str
) -> tuple[tuple[Any, ...], str]:
    """The sort key of a row, and its text."""
    names = sorted(names)
    listed = ", ".join(names)
    values = [row.values for name in names for row in by_family[name]]
    if not ratio:
        return (2, whole), f"| {listed} | | | | {whole} |"
    shares = [max(float(v[key] or 0) for v in values) for key in SHARES]
    cells = " | ".join("0" if share == 0 else f"{share:.1%}" for share in shares)
    text = f"| {listed} | {ratio} | {cells} | {whole or 'nothing'} |"
    return (bool(whole), max(shares), listed), text


SHARES = ("whole_bytes_fraction", "whole_flops_fraction")


if __name__ == "__main__":
    Console(width=10_000).print(table(read_rows(Path(sys.argv[1]))), highlight=False, markup=False)
