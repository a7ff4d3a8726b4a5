"""A report for the terminal, drawn with rich."""

import shutil
from collections.abc import Iterator
from io import StringIO

from rich.box import SIMPLE_HEAD
from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ladderize.report.data import ReportData
from ladderize.report.present.lines import LEAVES_OUT, Gap, Page, Row, Section, page_of

# Width without a terminal.
DEFAULT_WIDTH = 100


def as_text(report: ReportData, full: bool, width: int | None) -> str:
    """`report` without colors, in lines of at most `width` characters."""
    width = width or shutil.get_terminal_size((DEFAULT_WIDTH, 24)).columns
    drawn = StringIO()
    console = Console(file=drawn, width=width, color_system=None, force_terminal=False)
    for renderable in renderables(page_of(report, full)):
        console.print(renderable, highlight=False)
    return "\n".join(line.rstrip() for line in drawn.getvalue().rstrip().splitlines())


def renderables(page: Page) -> Iterator[RenderableType]:
    """The parts of `page`, from top to bottom."""
    yield Text(page.headline, style="bold")
    yield Text(page.warning, style="yellow")
    for part in page.parts:
        yield Text(f"\n{part.title}", style="bold red" if part.is_bad else "bold")
        if part.rows:
            yield _table(part)
        for line in part.lines:
            yield Padding(Text(line), (0, 0, 0, 2))
    yield Text(f"\n{page.footer}", style="dim")


def _table(part: Section) -> Table:
    table = Table(box=SIMPLE_HEAD, show_edge=False, padding=(0, 1), header_style="dim")
    says_what = LEAVES_OUT in part.header
    for name in part.header:
        is_number = name in ("block", "layer")
        table.add_column(name, justify="right" if is_number else "left", overflow="fold")
    for row in part.rows:
        if isinstance(row, Gap):
            table.add_row(*[""] * (len(part.header) - 2), Text(row.text, style="italic dim"))
        else:
            table.add_row(*_cells(row, says_what))
    return table


def _cells(row: Row, says_what: bool) -> list[Text]:
    reads = Text()
    if row.after:
        reads.append(row.before, "dim").append(" → ").append(row.after, "bold cyan")
    if row.also:
        reads.append(", " if row.after else "").append(row.also, "dim")
    plain = [Text(text) for text in (row.block, row.layer, row.kind)]
    left_out = [Text(row.leaves_out)] if says_what else []
    return [*plain, reads, *left_out, Text(row.module), Text(row.source, style="dim")]
