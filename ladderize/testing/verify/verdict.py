"""The verdict of `verify`: a table of checks, as text and as data."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from rich.console import Console
from rich.text import Text

from ladderize.report.present.tables import plain_table

# The largest error due to another order of summation, relative to the largest magnitude.
TOLERANCES = {
    torch.float64: 1e-10,
    torch.float32: 1e-4,
    torch.float16: 2e-2,
    torch.bfloat16: 1e-1,
}


SHARED = (
    "the search for streams, the choice of blocks, what a read leaves out (ladderize.streams)",
    "the kinds, reads, writes and launches of ops (ladderize.graph)",
    "InlineRegions, SpellEngineOps, DropCasts, Functionalize, SpellSums, ReduceBranches, "
    "find_cuts, SplitSums, layout_steps, DeferWaits",
    "the reader of files and slices (ladderize.frontends)",
)
"""Parts of the compiler that `verify` relies on, whose faults it may not see."""


@dataclass(frozen=True)
class Check:
    """One line of the table.

    Attributes:
        name: name of the check.
        status: "ok", "failed", or "not run" if an earlier failure leaves nothing to check.
        found: what was found.
        where: block, tensor or input of the failure; "" without one.
        error: largest relative error, None if nothing was compared.
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
        title: one line on what was compared.
        checks: checks in the order in which they ran.
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
        """One line with the outcome and the place of the first failure."""
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
        table = plain_table("check", "", "found", left=(0, 1, 2))
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
