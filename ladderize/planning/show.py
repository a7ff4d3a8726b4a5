"""A plan as tables and sentences for a terminal."""

from collections.abc import Callable, Iterator

from rich import box
from rich.console import Console
from rich.table import Table

from ladderize.planning.limits import LEAST_GAIN, Limits
from ladderize.planning.plan import Plan
from ladderize.planning.variants import VARIANTS
from ladderize.plot.units import seconds


def show(plan: Plan, console: Console) -> None:
    """Print `plan`."""
    converted = f"{plan.num_converted} of {plan.num_blocks} blocks converted"
    console.print(f"{plan.hardware.name}: {plan.hardware}", highlight=False)
    console.print(
        f"{converted}, staleness {plan.staleness}; prompt {plan.prompt}, {plan.new} new tokens\n",
        highlight=False,
    )
    for table in (_speeds(plan), _phases(plan)):
        console.print(table, highlight=False)
    for line in (*_gains(plan), "", *_sureness(plan)):
        console.print(line, highlight=False, markup=False)


def _table(*columns: str, left: int = 0) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for number, column in enumerate(columns):
        is_text = 0 < number <= left
        table.add_column(column, justify="left" if is_text else "right", no_wrap=True)
    return table


def _speeds(plan: Plan) -> Table:
    names = VARIANTS[1:]
    table = _table("batch", *(f"{v} tok/s" for v in VARIANTS), *names)
    for row in plan.batches:
        speeds = [f"{row.of(variant).tokens_per_s:,.4g}" for variant in VARIANTS]
        table.add_row(str(row.batch), *speeds, *(f"{row.speedup(v):.2f}x" for v in names))
    return table


def _phases(plan: Plan) -> Table:
    table = _table("batch", "one", "standard", "exposed", "ladder", "exposed", "bound", left=1)
    for row in plan.batches:
        nets = [row.of(name) for name in ("standard", "ladder")]
        bound = row.of("bound")
        prefill = [t for net in nets for t in (net.prefill, net.prefill_exposed)]
        decode = [t for net in nets for t in (net.decode, net.decode_exposed)]
        table.add_row(str(row.batch), "prefill", *map(seconds, (*prefill, bound.prefill)))
        table.add_row("", "decode step", *map(seconds, (*decode, bound.decode)))
    return table


def _gains(plan: Plan) -> Iterator[str]:
    for row in plan.batches:
        few = row.fewest
        if few.indices:
            yield (
                f"batch {row.batch}: 90 % of the gain with {len(few.indices)} of {few.total} "
                f"{few.unit} (--{few.unit} {few.text})"
            )
    found = plan.limits
    least = f"{100 * LEAST_GAIN:g} %"
    if found.gain < LEAST_GAIN:
        yield f"batch {found.batch}: the ladder gains less than {least}"
        return
    yield f"batch {found.batch}: the gain of {100 * found.gain:.1f} % falls below {least}"
    yield from (f"  {end}" for end in _ends(found))


def _ends(found: Limits) -> Iterator[str]:
    ends: tuple[tuple[str, str, float | None, Callable[[float], str]], ...] = (
        ("a batch", "above", found.last_batch, lambda value: f"{value:.0f}"),
        ("a prompt", "above", found.last_prompt, lambda value: f"{value:.0f} tokens"),
        ("a link", "above", found.last_bandwidth, lambda value: f"{value / 1e9:.4g} GB/s"),
        ("a latency", "below", found.least_latency, seconds),
    )
    for what, side, value, text in ends:
        yield f"with {what} {side} {text(value)}" if value else f"with no {what[2:]} that was tried"


def _sureness(plan: Plan) -> Iterator[str]:
    errors = plan.confidence.errors
    yield (
        "How sure: on the table that it was fitted to (Llama-3 70B on 2 to 8 H100), speed-ups are "
        f"off by {_percent(errors.ratio)} on average and {_percent(errors.worst_ratio)} at worst, "
        f"by {_percent(errors.left_out_ratio)} in rows left out of the fit; tokens/s by "
        f"{_percent(errors.speed)}."
    )
    if plan.confidence.outside:
        yield "Outside of that table, so that these errors say little:"
    yield from (f"  - {reason}" for reason in plan.confidence.outside)


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f} %"
