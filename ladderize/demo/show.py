"""Print what the ranks found: residual map, error, generated order, and what to type next."""

from collections.abc import Sequence

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from ladderize.demo.survey import BlockRow
from ladderize.demo.work import NUM_RUNS, Compiled, Outcome

MAX_ERROR = 1e-4
NUM_BLOCKS_SHOWN = 3
MAX_ROWS = 16
COLORS = {"AR_": "bold cyan", "W_": "bold green"}

OWN_MODEL = """\
# my_script.py
mesh = torch.distributed.device_mesh.init_device_mesh("cuda", (num_gpus,))     # or "cpu"
model = torch.compile(model, backend="ladderize", fullgraph=True, options={"mesh": mesh})

$ torchrun --nproc-per-node NUM_GPUS my_script.py"""


def show_map(console: Console, rows: Sequence[BlockRow]) -> None:
    converted = sum(row.stale != row.fresh for row in rows)
    table = Table(title=f"Residual map: {len(rows)} blocks, {converted} read one block earlier")
    table.add_column("block", justify="right")
    table.add_column("layer", justify="right")
    table.add_column("module that ends the branch")
    table.add_column("ops", justify="right")
    table.add_column("weights", justify="right")
    table.add_column("standard reads")
    table.add_column("ladder reads")
    for row in rows[:MAX_ROWS]:
        table.add_row(
            str(row.index),
            "" if row.layer is None else str(row.layer),
            escape(row.module),
            str(row.num_ops),
            f"{row.num_weights:,}",
            f"x[{row.fresh}]",
            Text(f"x[{row.stale}]", style="bold" if row.stale != row.fresh else "dim"),
        )
    if len(rows) > MAX_ROWS:
        table.add_row("…", "", f"and {len(rows) - MAX_ROWS} more")
    _print(console, table)


def show_error(console: Console, outcomes: Sequence[Outcome]) -> None:
    first = outcomes[0]
    source = (
        "an eager ladder written by hand"
        if first.plain is not None
        else "ladderize's own rewrite, unsharded, run op by op"
    )
    console.print(
        f"Largest difference of the logits on {len(outcomes)} ranks to {source}, on one process:\n"
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
    ladder, plain = outcomes[0].ladder, outcomes[0].plain
    rows = {"ladderize": blocks_of(ladder.order)}
    if plain is not None:
        rows["plain torch.compile"] = blocks_of(plain.order)
    num_blocks = len(rows["ladderize"])
    first = max(0, min(1, num_blocks - NUM_BLOCKS_SHOWN))
    shown = range(first, min(first + NUM_BLOCKS_SHOWN, num_blocks))

    table = Table(title=f"What Inductor generated, blocks {shown[0]} to {shown[-1]}", leading=1)
    table.add_column("", justify="right")
    for name in rows:
        table.add_column(name)
    for index in shown:
        table.add_row(f"block {index}", *(_order(blocks[index]) for blocks in rows.values()))
    table.add_section()
    for label, texts in _verdicts(outcomes).items():
        table.add_row(label, *texts)
    _print(console, table)
    console.print(
        "AR_i launches the all-reduce of block i, W_i waits for it, k is a fused kernel, other "
        "words are\nkernels by name; [bold red]![/] uses a buffer whose all-reduce is still running.",
        highlight=False,
    )
    if plain is not None:
        _show_race(
            console, plain, max(outcome.plain.error for outcome in outcomes if outcome.plain)
        )


def show_next(console: Console, outcome: Outcome) -> None:
    console.print("\n[bold]For your own model[/]")
    console.print(OWN_MODEL, markup=False, highlight=False)
    console.print(
        f"\n[bold yellow]A ladder is another function than the standard net[/]: on these random "
        f"weights the logits differ\nby up to {outcome.drift:.1f}. Converted weights must be "
        "trained, or healed, before they are of use.\n",
        highlight=False,
    )


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


def _verdicts(outcomes: Sequence[Outcome]) -> dict[str, list[Text]]:
    """Each row of the table's lower part: one text for each compiled program."""
    columns = [[outcome.ladder for outcome in outcomes]]
    plain = [outcome.plain for outcome in outcomes if outcome.plain is not None]
    columns += [plain] if plain else []
    return {
        "largest error": [_error(max(c.error for c in column)) for column in columns],
        "races": [_count(len(column[0].races)) for column in columns],
        "waits too early": [_count(column[0].num_early) for column in columns],
    }


def _error(error: float) -> Text:
    if error <= MAX_ERROR:
        return Text(f"{error:.1e}", style="green")
    return Text(f"{error:.2g}  WRONG", style="bold red")


def _count(number: int) -> Text:
    return Text(str(number), style="bold red" if number else "green")


def _order(words: str) -> Text:
    text = Text()
    for word in words.split():
        style = next((style for prefix, style in COLORS.items() if word.startswith(prefix)), "dim")
        text.append(word.removesuffix("!"), style=style)
        text.append("!" if word.endswith("!") else "", style="bold red")
        text.append(" ")
    return text


def _show_race(console: Console, plain: Compiled, error: float) -> None:
    version = torch.__version__
    if plain.races:
        console.print(
            f"\nOne of plain Inductor's {len(plain.races)} races on torch {version}:",
            highlight=False,
        )
        console.print(
            f"  {plain.races[0]}", markup=False, highlight=False, style="red", soft_wrap=True
        )
        if error <= MAX_ERROR:
            console.print(
                f"  It did not show in {NUM_RUNS} runs here; it may in the next.", highlight=False
            )
    elif error <= MAX_ERROR:
        console.print(
            f"\nOn torch {version} plain Inductor's program is right; "
            f"{plain.num_early} of its waits come too early, and what they wait for is exposed.",
            highlight=False,
        )


def _print(console: Console, table: Table) -> None:
    table.title_justify = "left"
    table.title_style = "bold"
    console.print(table)
    console.print()
