"""The rows of a benchmark as tables for people, one for each case and link."""

from collections.abc import Callable, Iterable
from itertools import groupby

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from ladderize.benchmark.results import Key, Row, Values

Text = Callable[[Values], str]


def show(console: Console, rows: Iterable[Row]) -> None:
    """Print a table for each case and link; columns without a value are left out."""
    for _, group in groupby(rows, _case):
        console.print(_table(list(group)))


def _title(rows: list[Row]) -> str:
    key = rows[0].key
    sizes = f"batch {key['batch']}, length {key['length']}" if "batch" in key else ""
    latency = next((v for row in rows if (v := row.values.get("link_latency_s"))), None)
    link = f"link: {key['link']}" if "link" in key else ""
    if latency is not None and link:
        link += f" ({latency * 1e3:.3g} ms)"
    return ", ".join(filter(None, [str(key["phase"]), sizes, link]))


def _case(row: Row) -> Key:
    return {name: value for name, value in row.key.items() if name != "variant"}


def _table(rows: list[Row]) -> Table:
    table = Table(
        title=_title(rows),
        title_justify="left",
        title_style="bold",
        box=SIMPLE_HEAD,
        padding=(0, 1),
    )
    table.add_column("variant")
    columns = {name: [text(row.values) for row in rows] for name, text in COLUMNS.items()}
    shown = {name: texts for name, texts in columns.items() if any(texts)}
    for name in shown:
        table.add_column(name, justify="right")
    for i, row in enumerate(rows):
        table.add_row(str(row.key["variant"]), *(texts[i] for texts in shown.values()))
    return table


def _scaled(name: str, form: str, factor: float = 1.0) -> Text:
    """A column of `name`, empty where that is not known."""

    def text(values: Values) -> str:
        value = values.get(name)
        return "" if value is None else format(value * factor, form)

    return text


def _step(values: Values) -> str:
    median, spread = values["median_s"], values["quartiles_s"]
    assert median is not None
    assert spread is not None
    return f"{median * 1e3:.2f} ± {spread * 500:.2f}"


def _speedup(values: Values) -> str:
    ratio = values.get("standard_ratio")
    return f"{1 / ratio:.2f}x" if ratio else ""


def _races(values: Values) -> str:
    return f"{races:.0f}" if (races := values.get("races")) else ""


COLUMNS: dict[str, Text] = {
    "step ms": _step,
    "speedup": _speedup,
    "of bound": _scaled("bound_ratio", ".3f"),
    "tokens/s": _scaled("tokens_per_s", ",.0f"),
    "exposed ms": _scaled("exposed_s", ".2f", 1e3),
    "hidden": _scaled("hidden_fraction", ".1%"),
    "of allowed": _scaled("allowed_fraction", ".1%"),
    "error": _scaled("error", ".0e"),
    "races": _races,
    "peak MiB": _scaled("peak_bytes", ".1f", 2**-20),
    "compile s": _scaled("compile_s", ".1f"),
}
