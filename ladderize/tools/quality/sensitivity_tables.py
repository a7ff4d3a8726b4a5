"""A `BlockPlan` as tables for a terminal."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from ladderize.config.block_plan import BlockPlan, MeasuredBlock, MeasuredSet
from ladderize.config.selection import ranges_of
from ladderize.report.present.tables import plain_table

_BAR = 24


def show(plan: BlockPlan, shares: Sequence[float], console: Console, out: Path | None) -> None:
    """Print what each block costs, the sets for `shares`, and how to use them."""
    loss = "" if plan.standard_loss is None else f", loss of the standard model {_loss(plan)}"
    console.print(
        f"{plan.model}: {plan.tokens} tokens{loss}; staleness {plan.staleness}\n", highlight=False
    )
    for table in (_blocks(plan), _sets(plan, shares)):
        console.print(table, "", highlight=False)
    for line in _advice(shares, out):
        console.print(line, highlight=False, markup=False)


def _blocks(plan: BlockPlan) -> Table:
    """A row for each block that can be converted."""
    rows = [(i, b) for i, b in enumerate(plan.blocks) if b.kl is not None]
    most = max((b.kl or 0.0 for _, b in rows), default=0.0)
    table = plain_table("each block alone", "block", "KL", "", left=(0, 3))
    for number, block in rows:
        table.add_row(_name(block), str(number), _nats(block.kl), _bar(block.kl or 0.0, most))
    return table


def _name(block: MeasuredBlock) -> str:
    return f"{block.module or 'block'} ({block.kind})"


def _bar(value: float, most: float) -> str:
    return "█" * round(_BAR * max(value, 0.0) / most) if most > 0 else ""


def _sets(plan: BlockPlan, shares: Sequence[float]) -> Table:
    """The best set for each share, and other sets next to it."""
    healed = ["healed KL"] * any(each.healed_kl is not None for each in plan.sets)
    columns = "sets of blocks", "hidden", "KL", "loss", *healed, "blocks"
    table = plain_table(*columns, left=(0, *range(4, len(columns))))
    for share in shares:
        _add_set(table, f"best for {100 * share:g} %", plan.best(share), healed)
    for each in plan.sets if healed else ():
        if each.healed_kl is not None and each not in map(plan.best, shares):
            _add_set(table, "another candidate", each, healed)
    table.add_section()
    for name, found in plan.references.items():
        _add_set(table, name, found, healed)
    return table


def _add_set(table: Table, name: str, found: MeasuredSet, healed: Sequence[str]) -> None:
    loss = "" if found.loss is None else f"{found.loss:.2f}"
    cells = [f"{100 * found.share:.0f} %", _nats(found.kl), loss]
    cells += [_nats(found.healed_kl) for _ in healed]
    table.add_row(name, *cells, ranges_of(found.blocks))


def _advice(shares: Sequence[float], out: Path | None) -> Iterator[str]:
    yield "hidden: the share of the all-reduces that run while the next block computes."
    yield "KL: divergence of the ladder from the standard model before healing, nats per token."
    yield "Measure a set on other text before you use it: ladderize evaluate."
    if out is not None:
        yield f'\nwritten to {out}; use it as --blocks "{out}:{100 * shares[0]:g}%"'


def _nats(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _loss(plan: BlockPlan) -> str:
    return f"{plan.standard_loss:.2f}"
