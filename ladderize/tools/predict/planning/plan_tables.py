"""A plan as tables and sentences for a terminal."""

import textwrap
from collections.abc import Iterator

from rich.console import Console
from rich.table import Table

from ladderize.config.connectivity import LADDER
from ladderize.report.present.tables import plain_table
from ladderize.tools.predict.planning import LadderPlan
from ladderize.tools.predict.planning.damage_curve import advised
from ladderize.tools.predict.planning.limits import LEAST_GAIN, Fewest, Hiding
from ladderize.tools.predict.planning.planned_nets import VARIANTS
from ladderize.tools.units import num_bytes, seconds


def show(plan: LadderPlan, console: Console) -> None:
    """Print `plan`."""
    stale = f"{plan.num_stale} of {plan.num_blocks} blocks read stale"
    sizes = f"{plan.dtype}, prompt {plan.prompt}, {plan.new} new tokens"
    console.print(f"{plan.hardware.name}: {plan.hardware}", highlight=False, soft_wrap=True)
    console.print(
        f"{stale}, {_reads(plan)}; {sizes}\n",
        highlight=False,
    )
    for table in (_speeds(plan), _phases(plan), _ends(plan)):
        console.print(table, "", highlight=False)
    if plan.damage:
        console.print(_damage(plan), "", highlight=False)
    for line in (*_advice(plan), *_fewest(plan), "", *_sureness(plan)):
        console.print(line, highlight=False, markup=False)


def _reads(plan: LadderPlan) -> str:
    if plan.connectivity != LADDER:
        return f"connectivity {plan.connectivity}"
    return f"staleness {plan.staleness}"


def _speeds(plan: LadderPlan) -> Table:
    variants = [found.variant for found in plan.batches[0].forecasts]
    names = variants[1:]
    gap = " " if len(variants) <= len(VARIANTS) else "\n"  # fits 100 columns
    table = plain_table("batch", *(f"{v}{gap}tok/s" for v in variants), *names, left=())
    for row in plan.batches:
        speeds = [_number(row.of(variant).tokens_per_s) for variant in variants]
        table.add_row(str(row.batch), *speeds, *(f"{row.speedup(v):.2f}x" for v in names))
    return table


def _phases(plan: LadderPlan) -> Table:
    names = ("standard", plan.connectivity)
    columns = "batch", "one", names[0], "exposed", names[1], "exposed", "bound"
    table = plain_table(*columns, left=(1,))
    for row in plan.batches:
        nets = [row.of(name) for name in names]
        bound = row.of("bound")
        prefill = [t for net in nets for t in (net.prefill, net.prefill_exposed)]
        decode = [t for net in nets for t in (net.decode, net.decode_exposed)]
        table.add_row(str(row.batch), "prefill", *map(seconds, (*prefill, bound.prefill)))
        table.add_row("", "decode step", *map(seconds, (*decode, bound.decode)))
    return table


def _ends(plan: LadderPlan) -> Table | str:
    """Where the gain ends, and what the shortest block hides."""
    found = plan.limits
    least = f"{100 * LEAST_GAIN:g} %"
    if found.gain < LEAST_GAIN:
        return f"At batch {found.batch} the {plan.connectivity} form gains less than {least}."
    where = f"at batch {found.batch}, all else as above"
    table = plain_table(
        where, f"the gain of {100 * found.gain:.0f} % falls below {least}", left=(0, 1)
    )
    table.add_row("batch", _above(found.last_batch, found.full_batch, ""))
    table.add_row("prompt", _above(found.last_prompt, found.full_prompt, " tokens"))
    bandwidth, latency = found.last_bandwidth, found.least_latency
    none = "never (latency-bound)"
    table.add_row("bandwidth of the link", _rate("above", bandwidth) if bandwidth else none)
    op = f"an {found.prefill.op.replace('_', '-')}"
    table.add_row(f"latency of {op}", f"below {seconds(latency)}" if latency else "never")
    table.add_section()
    for name, phase in (("prefill", found.prefill), ("decode", found.decode)):
        table.add_row(f"{op} of {name}, {seconds(phase.reduce)}", _hidden(phase))
    return table


def _above(last: int | None, full: int | None, unit: str) -> str:
    if last is not None:
        return f"above {_number(last)}{unit}"
    return f"never: memory is full at {full:,}{unit}" if full else "at no tested value"


def _number(value: float) -> str:
    """`value` with four significant digits, or all integer digits."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def _rate(side: str, bandwidth: float) -> str:
    return f"{side} {num_bytes(int(bandwidth))}/s"


def _hidden(phase: Hiding) -> str:
    room = f"the shortest block hides up to {seconds(phase.hidden)}"
    if phase.bandwidth is None:
        return f"{room}, never all of it (latency-bound)"
    return f"{room}; all of it {_rate('above', phase.bandwidth)}"


def _damage(plan: LadderPlan) -> Table:
    """At most `_MOST_ROWS` sets, spread over the curve, and the advised one."""
    best = advised(plan.damage)
    step = -(-len(plan.damage) // _MOST_ROWS)
    table = plain_table(
        f"sets at batch {plan.batches[0].batch}", "hidden", "KL", "tok/s", "speedup", left=()
    )
    for number, point in enumerate(plan.damage):
        is_last = point is plan.damage[-1]
        if number % step and point is not best and not is_last:
            continue
        name = f"{len(point.blocks)} blocks" + ("  <- advised" if point is best else "")
        share, kl = f"{100 * point.share:.0f} %", f"{point.kl:.3f}"
        table.add_row(name, share, kl, _number(point.tokens_per_s), f"{point.speedup:.2f}x")
    return table


_MOST_ROWS = 12


def _advice(plan: LadderPlan) -> Iterator[str]:
    best = advised(plan.damage)
    if best is not None:
        yield f"Advised, at the knee of gain and damage: --blocks {[*best.blocks]}"
        yield (
            "KL is before healing, in nats per token. Heal this set and its neighbors, then "
            "compare them.\n"
        )


def _fewest(plan: LadderPlan) -> Iterator[str]:
    """One line for all batch sizes that need the same layers."""
    batches: dict[Fewest, list[str]] = {}
    for row in plan.batches:
        batches.setdefault(row.fewest, []).append(str(row.batch))
    for few, found in batches.items():
        if few.indices:
            yield (
                f"{len(few.indices)} of {few.total} {few.unit} give 90 % of the gain at batch "
                f"{', '.join(found)}: --{few.unit} {few.text}"
            )


def _sureness(plan: LadderPlan) -> Iterator[str]:
    errors = plan.confidence.errors
    yield "Accuracy: fitted to Llama-3 70B on 2 to 8 H100, batch 1 to 64. Errors there:"
    yield (
        f"  speedups {_percent(errors.ratio)} on average, {_percent(errors.worst_ratio)} at worst, "
        f"{_percent(errors.left_out_ratio)} for rows left out of the fit;"
    )
    yield f"  tokens/s {_percent(errors.speed)} on average."
    if plan.confidence.outside:
        yield "Outside the measured range, so errors may be larger:"
    for reason in plan.confidence.outside:
        yield textwrap.fill(reason, 96, initial_indent="  - ", subsequent_indent="    ")


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f} %"
