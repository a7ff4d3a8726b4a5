"""What `verify` found: a table of checks, for people and as data."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

# The largest error that sums taken in another order may make, relative to the largest magnitude.
TOLERANCES = {
    torch.float64: 1e-10,
    torch.float32: 1e-4,
    torch.float16: 2e-2,
    torch.bfloat16: 1e-1,
}


SHARED = (
    "the search for streams, the choice of blocks, what a read leaves out (ladderize.streams)",
    "what ops are, read, write and launch (ladderize.graph)",
    "InlineRegions, SpellEngineOps, DropCasts, Functionalize, SpellSums, ReduceBranches, "
    "find_cuts, SplitSums, layout_steps, DeferWaits",
    "the reader of files and slices (ladderize.frontends)",
)
"""The parts of the compiler that `verify` relies on: a fault in these it may share."""


@dataclass(frozen=True)
class Check:
    """One line of the table.

    Attributes:
        name: what was checked.
        status: "ok", "failed", or "not run", where an earlier failure leaves nothing to check.
        found: what was seen.
        where: the block, tensor or input that a failure lies at; "" where all is well.
        error: the largest relative error, None where nothing was compared.
    """

    name: str
    status: str
    found: str
    where: str = ""
    error: float | None = None


@dataclass(frozen=True)
class Verification:
    """All checks of one candidate.

    >>> ladderize.verify(program, ladderize.rewrite(program)).ok
    True

    Attributes:
        title: what was compared, in a line.
        checks: in the order in which they ran.
    """

    title: str
    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        return all(check.status == "ok" for check in self.checks)

    @property
    def failed(self) -> tuple[Check, ...]:
        return tuple(check for check in self.checks if check.status == "failed")

    def summary(self) -> str:
        """One line that says how it went, and where the first failure lies."""
        number = len(self.checks)
        if self.ok:
            return f"all {number} checks passed"
        first = self.failed[0]
        where = f" at {first.where}" if first.where else ""
        return f"{len(self.failed)} of {number} checks failed, the first ({first.name}){where}"

    def to_json(self) -> str:
        data = {
            "ok": self.ok,
            "title": self.title,
            "checks": [asdict(check) for check in self.checks],
            "shared_with_the_compiler": SHARED,
        }
        return json.dumps(data, indent=1)

    def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
        yield Text(self.title)
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
        for column in ("check", "", "found"):
            table.add_column(column, overflow="fold")
        for check in self.checks:
            sign, style = _SIGNS[check.status]
            lines = [check.found, *([f"at {check.where}"] if check.where else [])]
            table.add_row(check.name, Text(sign, style), Text("\n".join(lines)))
        yield table
        yield Text(f"shared with the compiler: {'; '.join(SHARED)}", "dim")
        yield Text(self.summary(), "green" if self.ok else "bold red")

    def __str__(self) -> str:
        console = Console(width=110, color_system=None)
        with console.capture() as capture:
            console.print(self)
        return capture.get().rstrip()


_SIGNS = {"ok": ("ok", "green"), "failed": ("FAILED", "bold red"), "not run": ("not run", "dim")}
