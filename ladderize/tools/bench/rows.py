"""Turn what the ranks measured into rows: medians over repeats, each timed by its slowest rank.

[rank][Measured] ── rows_of ── ResultRow {variant, phase, batch, length, link} {median_s, …}
"""

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby

from ladderize.tools.bench.least_exposed import exposed_at_least
from ladderize.tools.bench.paired import step_values
from ladderize.tools.bench.rank import Measured
from ladderize.tools.bench.record import ResultRow


def rows_of(ranks: Sequence[Sequence[Measured]]) -> tuple[ResultRow, ...]:
    """One row for each case, link and variant.

    Values:
        median_s, quartiles_s, standard_ratio, bound_ratio, …_low, …_high: see `step_values`.
        tokens_per_s: tokens computed per second.
        exposed_s, communicating_s: exposed and total communication of a step, each the median of
            the slowest rank.
        late_peers_s: time spent waiting for stragglers; not exposed.
        slow_transfers: mean number of transfers per step in which gloo was slower than the
            emulated link.
        hidden_fraction: fraction of the communication that compute covers.
        exposed_KIND_s, communicating_KIND_s, hidden_KIND_fraction: the same for each kind of
            collective.
        allowed_fraction: hidden time over the time that the schedule could hide, with the step
            minus exposed time as compute. Known for the ladder, and for each variant of a model
            with its own collectives (`StepGraph`).
        error: largest difference from eager, over the largest value.
        races: accesses of the emitted code to a buffer in flight.
        peak_bytes: peak memory of a step, without weights and inputs.
        compile_s, passes_s: time of the first two calls, and of ladderize's passes in them.
    """
    cases = groupby(zip(*ranks, strict=True), lambda seen: (seen[0].case, seen[0].asked))
    found: list[ResultRow] = []
    for _, together in cases:
        variants = {seen[0].variant: seen for seen in together}
        steps = {name: _steps(seen) for name, seen in variants.items()}
        found += [_row(seen, steps) for seen in variants.values()]
    return tuple(found)


def _steps(seen: Sequence[Measured]) -> list[float]:
    """Seconds of each repeat on its slowest rank."""
    return [max(each) for each in zip(*(m.samples.seconds for m in seen), strict=True)]


def _row(seen: Sequence[Measured], variants: Mapping[str, Sequence[float]]) -> ResultRow:
    """The row of one variant, given the steps of all variants."""
    first = seen[0]
    values = step_values(first.variant, variants)
    median = statistics.median(variants[first.variant])
    if first.case.batch:
        values["tokens_per_s"] = first.case.num_tokens / median
    if first.link is not None:
        values["link_latency_s"] = first.link.latency
    values |= _communication(seen, median)
    errors = [m.samples.error for m in seen if m.samples.error is not None]
    values["error"] = max(errors, default=None)
    races = [m.compiled.num_races for m in seen if m.compiled.num_races is not None]
    values["races"] = max(races, default=None)
    values["peak_bytes"] = max(m.compiled.peak_bytes for m in seen)
    values["compile_s"] = max(m.compiled.seconds for m in seen)
    values["passes_s"] = max(sum(m.compiled.passes.values()) for m in seen)
    for name, seconds in first.compiled.passes.items():
        values[f"passes_{name}_s"] = seconds
    return ResultRow(_key(first), values)


def _key(measured: Measured) -> dict[str, str | int | float]:
    case = measured.case
    key: dict[str, str | int | float] = {"variant": measured.variant, "phase": case.phase}
    if case.batch:
        key |= {"batch": case.batch, "length": case.length}
    if measured.asked:
        key["link"] = measured.asked
    return key


def _communication(seen: Sequence[Measured], median: float) -> Iterable[tuple[str, float]]:
    first = seen[0]
    exposed = [statistics.median(m.samples.exposed) for m in seen if m.samples.exposed]
    taken = [statistics.median(m.samples.communicating) for m in seen if m.samples.communicating]
    late = [statistics.median(m.samples.late_peers) for m in seen if m.samples.late_peers]
    if any(late):
        yield "late_peers_s", max(late)
    if not exposed or not max(taken) or first.variant == "free":
        return
    yield "exposed_s", max(exposed)
    yield "communicating_s", max(taken)
    yield "hidden_fraction", 1 - max(exposed) / max(taken)
    yield from _by_kind(seen)
    if first.link is None:
        return
    yield "slow_transfers", max(m.samples.num_slow / len(m.samples.exposed) for m in seen)
    if first.graph is not None:
        least = first.graph.least_exposed(median - max(exposed), first.link)
        yield "allowed_fraction", (max(taken) - max(exposed)) / (max(taken) - least)
    elif first.variant == "ladder":
        durations = [first.link.seconds(block.reduce_bytes or 0) for block in first.blocks]
        # Collectives of embedding and head belong to no block.
        outside = max(taken) - sum(durations)
        least = outside + exposed_at_least(first.blocks, median - max(exposed), durations)
        yield "allowed_fraction", (max(taken) - max(exposed)) / (max(taken) - least)


def _by_kind(seen: Sequence[Measured]) -> Iterator[tuple[str, float]]:
    """Exposed and total time for each kind of collective: medians of the slowest rank."""
    for kind in sorted({kind for m in seen for repeat in m.samples.kinds for kind in repeat}):
        repeats = [[repeat[kind] for repeat in m.samples.kinds if kind in repeat] for m in seen]
        exposed = max(statistics.median(each.exposed for each in rank) for rank in repeats)
        taken = max(statistics.median(each.total for each in rank) for rank in repeats)
        yield f"exposed_{kind}_s", exposed
        yield f"communicating_{kind}_s", taken
        if taken:
            yield f"hidden_{kind}_fraction", 1 - exposed / taken
