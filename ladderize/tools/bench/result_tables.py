"""The rows of a benchmark as tables: times, communication and costs of each case."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from ladderize.tools.bench.record import ResultRow, Values

Text = Callable[[Values], str]
_OF_A_KIND = re.compile(r"communicating_(.+)_s")


def show(console: Console, rows: Iterable[ResultRow]) -> None:
    """Print the tables; rows and columns without a value, and empty tables, are left out."""
    rows = list(rows)
    for _, group in groupby(rows, lambda row: _without(row, "variant")):
        found = list(group)
        _show(console, f"{_case(found[0])}{_link(found)}", found, TIMES)
        _show(console, "communication", found, COMMUNICATION)
        _show(console, "communication by kind", found, _by_kind(found))
    compiled = [row for row in rows if row.key["variant"] != "free"]  # compiled as the ladder
    for _, group in groupby(compiled, lambda row: _without(row, "variant", "link")):
        found = list({str(row.key["variant"]): row for row in group}.values())
        _show(console, f"{_case(found[0])}: compilation and memory", found, COSTS)


def _without(row: ResultRow, *names: str) -> Mapping[str, str | int | float]:
    return {name: value for name, value in row.key.items() if name not in names}


def _case(row: ResultRow) -> str:
    key = row.key
    sizes = f", batch {key['batch']}, length {key['length']}" if "batch" in key else ""
    return f"{key['phase']}{sizes}"


def _link(rows: Sequence[ResultRow]) -> str:
    latencies = [v for row in rows if (v := row.values.get("link_latency_s")) is not None]
    if "link" not in rows[0].key:
        return ""
    seconds = f", {latencies[0] * 1e3:.3g} ms per empty collective" if latencies else ""
    return f", link: {rows[0].key['link']}{seconds}"


def _show(
    console: Console, title: str, rows: Sequence[ResultRow], columns: Mapping[str, Text]
) -> None:
    rows = [row for row in rows if any(text(row.values) for text in columns.values())]
    texts = {name: [text(row.values) for row in rows] for name, text in columns.items()}
    shown = {name: cells for name, cells in texts.items() if any(cells)}
    if not shown:
        return
    table = Table(
        title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, padding=(0, 0, 0, 1)
    )
    table.add_column("variant", overflow="fold")
    for name in shown:
        table.add_column(name, justify="right", overflow="fold")
    for i, row in enumerate(rows):
        table.add_row(str(row.key["variant"]), *(cells[i] for cells in shown.values()))
    console.print(table)


def _scaled(name: str, form: str, factor: float = 1.0) -> Text:
    """A column of the value `name`; cells are empty if it is unknown."""

    def text(values: Values) -> str:
        value = values.get(name)
        return "" if value is None else format(value * factor, form)

    return text


def _by_kind(rows: Iterable[ResultRow]) -> dict[str, Text]:
    """Two columns for each kind of collective, if there are several kinds."""
    names = {name for row in rows for name in row.values}
    kinds = sorted(found[1] for name in names if (found := _OF_A_KIND.fullmatch(name)))
    if len(kinds) < 2:
        return {}
    return {
        title: text
        for kind in kinds
        for title, text in (
            (f"{kind} exposed ms", _scaled(f"exposed_{kind}_s", ".2f", 1e3)),
            (f"{kind} hidden", _scaled(f"hidden_{kind}_fraction", ".1%")),
        )
    }


def _speedup(values: Values) -> str:
    ratio = values.get("standard_ratio")
    return f"{1 / ratio:.2f}x" if ratio else ""


def _slow(values: Values) -> str:
    slow = values.get("slow_transfers")
    return f"{slow:.1f}" if slow else ""


TIMES: dict[str, Text] = {
    "step ms": _scaled("median_s", ".2f", 1e3),
    "±": _scaled("quartiles_s", ".2f", 500),
    "speedup": _speedup,
    "of bound": _scaled("bound_ratio", ".3f"),
    "of free": _scaled("free_ratio", ".3f"),
    "tokens/s": _scaled("tokens_per_s", ",.0f"),
    "error": _scaled("error", ".0e"),
}
COMMUNICATION: dict[str, Text] = {
    "exposed ms": _scaled("exposed_s", ".2f", 1e3),
    "hidden": _scaled("hidden_fraction", ".1%"),
    "possible": _scaled("allowed_fraction", ".1%"),
    "straggler ms": _scaled("late_peers_s", ".2f", 1e3),
    "slow": _slow,
}
COSTS: dict[str, Text] = {
    "races": _scaled("races", ".0f"),
    "peak MiB": _scaled("peak_bytes", ".1f", 2**-20),
    "compile s": _scaled("compile_s", ".1f"),
    "passes s": _scaled("passes_s", ".3f"),
}
