"""Compare two benchmark results, and print what changed.

    python bench/compare.py OLD.json NEW.json [--tolerance 0.05]

The exit code is 1 if something got worse by more than the tolerance. If the machines differ, only
ratios, fractions and errors are compared.
"""

import argparse
from pathlib import Path

from moves import Comparison, Move, compare, read
from rich.console import Console
from rich.table import Table

from ladderize import LadderError
from ladderize.tools.bench.record import ResultRow

STYLES = {"worse": "red", "better": "green", "moved": "yellow"}


def table_of(moves: tuple[Move, ...]) -> Table:
    table = Table()
    for column in ("what", "value"):
        table.add_column(column)
    for column in ("old", "new", "new / old"):
        table.add_column(column, justify="right")
    table.add_column("")
    for move in moves:
        numbers = (shown(number) for number in (move.old, move.new, move.ratio))
        name = ResultRow(move.key, {}).name
        table.add_row(name, move.name, *numbers, move.verdict, style=STYLES[move.verdict])
    return table


def shown(number: float | None) -> str:
    return "none" if number is None else f"{number:.4g}"


def tell(found: Comparison, tolerance: float, console: Console) -> None:
    for what, differences in (("machine", found.machine), ("versions", found.versions)):
        for name, (old, new) in differences.items():
            console.print(f"{what}: {name} was {old!r}, is {new!r}", markup=False)
    if found.machine:
        console.print("Another machine: only ratios, fractions and errors are compared.")
    for which, rows in (("old", found.only_old), ("new", found.only_new)):
        for row in rows:
            console.print(f"only in the {which} file: {row.name}", markup=False)
    if found.moves:
        console.print(table_of(found.moves))
    console.print(
        f"{len(found.moves)} of {found.compared} values moved by more than {tolerance:.0%}, "
        f"{len(found.worse)} for the worse"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--tolerance", type=float, default=0.05, help="relative [default: 0.05]")
    given = parser.parse_args()
    try:
        found = compare(read(given.old), read(given.new), given.tolerance)
    except LadderError as error:
        raise SystemExit(str(error)) from None
    console = Console()
    tell(found, given.tolerance, console if console.is_terminal else Console(width=120))
    raise SystemExit(1 if found.worse else 0)


if __name__ == "__main__":
    main()
