"""The result of `heal` as a table for a terminal."""

from pathlib import Path

from rich.console import Console
from rich.table import Table

from ladderize.quality.runs.heal_result import HealResult
from ladderize.report.present.tables import plain_table


def show(result: HealResult, out: Path, console: Console) -> None:
    """Print the ladder before and after healing, and how to use it."""
    blocks = f"{len(result.blocks)} of {result.num_blocks} blocks read stale"
    console.print(
        f"{blocks}; {result.tokens:,} tokens in {result.seconds:,.0f} s; measured on "
        f"{result.held_out_tokens:,} held-out tokens\n",
        highlight=False,
    )
    console.print(_table(result), "", highlight=False)
    console.print(
        f"written to {out}; load it and call ladderize.compile(model) to get the ladder",
        highlight=False,
        markup=False,
    )


def _table(result: HealResult) -> Table:
    measured = {"before": result.before, "fitted": result.fitted, "after": result.after}
    found = {name: each for name, each in measured.items() if each is not None}
    table = plain_table("", "standard", *found, "healed")
    rows = {
        "KL to the standard model, nats": ("kl", "0"),
        "loss, nats": ("loss", f"{result.before['standard_loss']:.4f}"),
    }
    for text, (name, standard) in rows.items():
        values = [f"{each[name]:.4f}" for each in found.values()]
        table.add_row(text, standard, *values, _percent(result.recovered(name)))
    agreement = [_percent(each["agreement"]) for each in found.values()]
    table.add_row("same next token", "100 %", *agreement, "")
    return table


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f} %"
