"""`Report`: the data of a report, and the ways to show it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import networkx as nx

from ladderize.report.data import ReportData
from ladderize.report.present.diff import Diff, diff_of
from ladderize.report.present.digraph import network_of
from ladderize.report.present.html import as_html
from ladderize.report.present.lines import page_of
from ladderize.report.present.text import as_text, renderables


@dataclass(frozen=True)
class Report(ReportData):
    """What was found in a model and how it is rewritten.

    A report prints with `print(report)` or rich, and shows as a table in a notebook. Its fields
    are those of `ReportData`.

    Example:
        >>> report = ladderize.explain(model, input_ids)
        >>> report.ok, len(report.blocks), report.blocks[3].kind
        (True, 8, 'MLP')
        >>> print(report.table(full=True))
    """

    def diff(self) -> Diff:
        """The rewired reads: a tuple of `Rewired` that prints like a diff."""
        return diff_of(self)

    def to_networkx(self) -> "nx.DiGraph[str]":
        """The blocks and the values of their streams as a graph; see `present/digraph.py`."""
        return network_of(self)

    def table(self, full: bool = False, width: int | None = None) -> str:
        """The report as text, without colors.

        Args:
            full: show every block; otherwise runs of equal layers are shown once.
            width: width in characters, by default that of the terminal.
        """
        return as_text(self, full, width)

    def __str__(self) -> str:
        return self.table()

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        yield from renderables(page_of(self))

    def _repr_html_(self) -> str:
        return as_html(self)
