"""Print what the ranks found: residual map, error, generated order, and what to type next."""

import json
from collections.abc import Sequence
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ladderize.report.data import WARNING
from ladderize.report.report import Report
from ladderize.tools.demo.rank_work import NUM_RUNS, Compiled, Outcome

MAX_ERROR = 1e-4
NUM_BLOCKS_SHOWN = 3
MAX_CODE = 88
COLORS = {"AR_": "bold cyan", "W_": "bold green"}

LEGEND = """\
AR_i launches the all-reduce of block i, W_i waits for it: what stands between the two hides it.
k is a fused kernel, other words are kernels by name; [bold red]![/] touches a buffer in flight."""

OWN_MODEL = """\
# my_script.py
mesh = torch.distributed.device_mesh.init_device_mesh("cuda", (num_gpus,))     # or "cpu"
model = torch.compile(model, backend="ladderize", fullgraph=True, options={"mesh": mesh})

$ torchrun --nproc-per-node NUM_GPUS my_script.py"""


def show_map(console: Console, report: Report) -> None:
    """Which blocks were found, and which of them read stale."""
    for line in report.table(False, console.width).splitlines():
        if not line.startswith(WARNING):  # it is said at the end
            console.print(line, markup=False, highlight=False)
    console.print()


def show_error(console: Console, outcomes: Sequence[Outcome]) -> None:
    first = outcomes[0]
    source = (
        "an eager ladder written by hand"
        if first.plain is not None
        else "ladderize's rewrite, unsharded, in eager mode"
    )
    console.print(
        f"Largest difference of the logits on {len(outcomes)} ranks to {source}, one process:\n"
        f"  [bold]{ladder_error(outcomes):.1e}[/]   (the logits reach {first.scale:.1f})\n",
        highlight=False,
    )
    if first.plain is None:
        console.print(
            f"  Nobody has written the ladder of {first.model} by hand here; `ladderize demo` "
            "without --hf\n  compares Llama's with one that shares no code with ladderize.\n",
            highlight=False,
        )


def show_orders(console: Console, outcomes: Sequence[Outcome]) -> None:
    """The generated code of rank 0; errors are the largest of all ranks."""
    columns = {"ladderize": [outcome.ladder for outcome in outcomes]}
    if plain := [outcome.plain for outcome in outcomes if outcome.plain is not None]:
        columns["plain torch.compile, by hand"] = plain
    blocks = [blocks_of(column[0].order) for column in columns.values()]
    shown = shown_blocks(blocks[-1])

    title = f"What Inductor generated for blocks {shown[0]} to {shown[-1]} of {len(blocks[0])}"
    table = Table("", *columns, title=title)
    for index in shown:
        table.add_row(f"block {index}", *(_order(column[index]) for column in blocks))
        table.add_section()
    errors = [max(compiled.error for compiled in column) for column in columns.values()]
    table.add_row("largest error", *map(_error, errors))
    table.add_row("races", *(_count(len(column[0].races)) for column in columns.values()))
    table.add_row("waits too early", *(_count(column[0].num_early) for column in columns.values()))
    _print(console, table)
    console.print(LEGEND, highlight=False)
    if plain:
        _show_verdict(console, plain[0], errors[-1])


def show_next(console: Console, outcome: Outcome) -> None:
    console.print("\n[bold]For your own model[/]")
    console.print(OWN_MODEL, markup=False, highlight=False)
    console.print(
        f"\n[bold yellow]A ladder is another function than the standard net[/]: on these random "
        f"weights the logits differ\nby up to {outcome.drift:.1f}. Converted weights must be "
        "trained, or healed, before they are of use.\n",
        highlight=False,
    )


def as_data(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """What was measured, for machines: of rank 0; errors are the largest of all ranks."""
    first = outcomes[0]
    columns = {"ladderize": [outcome.ladder for outcome in outcomes]}
    if plain := [outcome.plain for outcome in outcomes if outcome.plain is not None]:
        columns["plain"] = plain
    compiled = {
        name: {
            "error": max(column.error for column in columns[name]),
            "order": columns[name][0].order,
            "races": list(columns[name][0].races),
            "waits_too_early": columns[name][0].num_early,
        }
        for name in columns
    }
    return {
        "model": first.model,
        "num_ranks": len(outcomes),
        "drift": first.drift,
        **compiled,
        "report": json.loads(first.report.to_json()),
    }


def ladder_error(outcomes: Sequence[Outcome]) -> float:
    return max(outcome.ladder.error for outcome in outcomes)


def blocks_of(order: str) -> list[str]:
    """An order string cut after each launch; the waits at the end stay with the last block."""
    blocks: list[list[str]] = [[]]
    for word in order.split():
        blocks[-1].append(word)
        if word.startswith("AR_"):
            blocks.append([])
    tail = blocks.pop()
    if not blocks:
        return [" ".join(tail)]
    blocks[-1] += tail
    return [" ".join(block) for block in blocks]


def shown_blocks(blocks: Sequence[str]) -> range:
    """Three blocks: around the first race, or the first three that hide something."""
    racing = [index for index, block in enumerate(blocks) if "!" in block]
    first = racing[0] - 1 if racing else 1
    first = max(0, min(first, len(blocks) - NUM_BLOCKS_SHOWN))
    return range(first, min(first + NUM_BLOCKS_SHOWN, len(blocks)))


def _error(error: float) -> Text:
    if error <= MAX_ERROR:
        return Text(f"{error:.1e}", style="green")
    return Text(f"{error:.2g}  WRONG", style="bold red")


def _count(number: int) -> Text:
    return Text(str(number), style="bold red" if number else "green")


def _order(words: str) -> Text:
    text = Text()
    for word in words.split():
        word = "attention" if "attention" in word else word
        style = next((style for prefix, style in COLORS.items() if word.startswith(prefix)), "dim")
        text.append(word.removesuffix("!"), style=style)
        text.append("!" if word.endswith("!") else "", style="bold red")
        text.append(" ")
    return text


def _show_verdict(console: Console, plain: Compiled, error: float) -> None:
    lines = [f"\nPlain torch.compile of torch {torch.__version__} on the same ladder:"]
    if plain.races:
        lines.append(f"  Races in what it generated: {len(plain.races)}. The first:")
        lines += [f"    {part}" for part in _cut(plain.races[0])]
        if error <= MAX_ERROR:
            lines.append(
                f"  Its results were right in {NUM_RUNS} runs here; they may not be next time."
            )
        else:
            lines.append(f"  Its results are wrong by up to {error:.2g}, and nothing says so.")
    elif error <= MAX_ERROR:
        lines.append("  No race, and its results are right.")
    if plain.num_early:
        lines.append(
            f"  Waits that come too early: {plain.num_early}. What they wait for is exposed."
        )
    console.print("\n".join(lines), markup=False, highlight=False)


def _cut(race: str) -> list[str]:
    """A race as its description and its line of code, the latter shortened."""
    what, _, code = race.rpartition("): ")
    return [f"{what})", code if len(code) <= MAX_CODE else f"{code[:MAX_CODE]} …"]


def _print(console: Console, table: Table) -> None:
    table.title_justify = "left"
    table.title_style = "bold"
    console.print(table)
    console.print()
