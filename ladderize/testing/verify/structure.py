"""Check the structure of a candidate: run it with random weights, and find the stream values.

The weights make every branch count, so a sum of the stream is recognized by its value and names of
nodes do not matter.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import Node

from ladderize.errors import describe_origin
from ladderize.report.snapshot import module_of
from ladderize.testing.verify import reads as reading
from ladderize.testing.verify.candidate import Candidate, bind
from ladderize.testing.verify.check_state import returned
from ladderize.testing.verify.diagnose import describe_block, diagnose
from ladderize.testing.verify.inputs import random_parameters, sample_inputs
from ladderize.testing.verify.locate import Locator, Name, Wanted, relative_error, wanted_values
from ladderize.testing.verify.lockstep import JOINED, NodeFails, RanksPart, run_ranks
from ladderize.testing.verify.precision import Precision
from ladderize.testing.verify.sizes import Sizes
from ladderize.testing.verify.substituted import Original, run_reference
from ladderize.testing.verify.verdict import TOLERANCES, Check

RECURRENCE = "recurrence"
COLLECTIVES = "order of collectives"
FORMS = "shapes"


@dataclass(frozen=True, eq=False)
class Structure:
    """The result of `check_structure`.

    Attributes:
        checks: checks of the order of collectives, of the recurrence and of shapes.
        places: name of the node that computes each stream value, by rank.
        weights: random weights that were used; empty if the program's own were.
    """

    checks: tuple[Check, ...]
    places: tuple[Mapping[Name, str], ...]
    weights: Mapping[str, Tensor] = field(default_factory=dict)


def check_structure(
    program: ExportedProgram,
    original: Original,
    candidate: Candidate,
    dtype: torch.dtype,
    sizes: Sizes,
) -> Structure:
    """Compare what each stream value is computed from with the specification.

    Args:
        program: original as exported.
        original: its graph in standard form.
        candidate: program to verify.
        dtype: dtype of the weights. Half precision runs in float32, so that a single wrong read
            stands out from rounding.
        sizes: sizes of dynamic dims; the largest, so that every position is covered.
    """
    precision = Precision(dtype, torch.float32 if dtype.itemsize < 4 else dtype)
    graphs = [part.gm for part in candidate.parts]
    with precision.of_graphs([original.gm, *graphs]):
        return _check(program, original, candidate, precision, sizes)


def _check(
    program: ExportedProgram,
    original: Original,
    candidate: Candidate,
    precision: Precision,
    sizes: Sizes,
) -> Structure:
    close = TOLERANCES[precision.wanted]
    given = [precision.of(value) for value in sample_inputs(program, sizes, 0)]
    full, values = _run_reference(program, original, given, precision)
    wanted = wanted_values(original.streams, values, close, original.inner_sums())
    locators = [Locator(wanted, close) for _ in candidate.parts]
    arguments = [
        part.arguments(precision.state(candidate.state(rank, full)), given)
        for rank, part in enumerate(candidate.parts)
    ]
    graphs = [part.gm for part in candidate.parts]
    misshapen: list[tuple[int, Node, Tensor]] = []

    def see(rank: int, node: Node, value: Any) -> None:
        locators[rank].see(node, value)
        if not _has_its_form(node, value, precision):
            misshapen.append((rank, node, value))

    try:
        outputs = run_ranks(graphs, arguments, see)
    except RanksPart as part:
        return _parted(part, wanted, locators)
    except NodeFails as fault:
        failed = Check(FORMS, "failed", str(fault), describe_origin(fault.node))
        return Structure((failed, Check(RECURRENCE, "not run", "")), ({},) * len(graphs))
    forms = _check_forms(misshapen)
    places = tuple({name: n.name for name, n in loc.found.items()} for loc in locators)
    order = Check(COLLECTIVES, "ok", _count(candidate))
    for rank, locator in enumerate(locators):
        if departed := locator.departures():
            first = departed[0]
            found = diagnose(original, values, first, candidate, arguments, rank, close)
            on = f"on rank {rank}, " if candidate.num_ranks > 1 else ""
            check = Check(RECURRENCE, "failed", f"{on}{found}", describe_block(first))
            return Structure((order, check, forms), places, full)
    check = _compare_reads(original, candidate, wanted, locators)
    if check.status == "ok":
        check = _compare_outputs(program, original, candidate, outputs, values, close) or check
    return Structure((order, check, forms), places, full)


def _run_reference(
    program: ExportedProgram, original: Original, given: Sequence[Any], precision: Precision
) -> tuple[dict[str, Tensor], dict[Node, Any]]:
    """Random weights (or the program's, if values overflow), and the reference's values."""
    own = {**program.state_dict, **program.constants}
    full = random_parameters(program)
    values = run_reference(original, bind(program, precision.state({**own, **full}), given))
    sums = [values[block.add] for stream in original.streams for block in stream.blocks]
    if all(bool(torch.isfinite(value).all()) for value in sums):
        return full, values
    return {}, run_reference(original, bind(program, precision.state(own), given))


def _has_its_form(node: Node, value: Any, precision: Precision) -> bool:
    """Whether `value` has the dtype and sizes in the graph; symbolic sizes match any."""
    said = node.meta.get("val")
    if not isinstance(said, Tensor) or not isinstance(value, Tensor):
        return True
    dtype = precision.wanted if said.dtype is precision.given else said.dtype
    if value.dim() != said.dim() or value.dtype is not dtype:
        return False
    sizes = zip(said.shape, value.shape, strict=True)
    return all(not isinstance(size, int) or size == found for size, found in sizes)


def _check_forms(misshapen: Sequence[tuple[int, Node, Tensor]]) -> Check:
    if not misshapen:
        return Check(FORMS, "ok", "every value has the shape and dtype in its graph")
    rank, node, value = misshapen[0]
    said = list(node.meta["val"].shape)
    found = f"{node.name} is {list(value.shape)}, its graph says {said} (rank {rank})"
    return Check(FORMS, "failed", found, describe_origin(node))


def _parted(
    part: RanksPart, wanted: Sequence[Sequence[Wanted]], locators: Sequence[Locator]
) -> Structure:
    """The result if ranks would hang; it names the first block that some rank has not summed."""
    waiting = [departed[0] for locator in locators if (departed := locator.departures())]
    last = wanted[-1][-1]
    where = min(waiting, key=lambda w: w.name) if waiting else last
    checks = (
        Check(COLLECTIVES, "failed", str(part), describe_block(where)),
        Check(RECURRENCE, "not run", "the ranks would hang"),
    )
    return Structure(checks, ({},) * len(locators))


def _count(candidate: Candidate) -> str:
    nodes = candidate.parts[0].gm.graph.nodes
    number = len([node for node in nodes if node.target in JOINED])
    if candidate.num_ranks == 1 and not number:
        return "one rank, no collectives"
    return f"the same {number} on all {candidate.num_ranks} ranks"


def _compare_reads(
    original: Original,
    candidate: Candidate,
    wanted: Sequence[Sequence[Wanted]],
    locators: Sequence[Locator],
) -> Check:
    for rank, locator in enumerate(locators):
        values = [w for ws in wanted for w in ws if w.name in locator.found]
        in_original = {value.node: value.name for value in values}
        in_candidate = {node: name for name, node in locator.found.items()}
        gm = candidate.parts[rank].gm
        should = reading.specified(original, in_original)
        found = reading.follow(gm, in_candidate)
        for value in values:
            is_ = found[locator.found[value.name]]
            if is_ != should[value.node]:
                spelled = reading.spell_name(value.name)
                return _misread(spelled, is_, should[value.node], describe_block(value))
        pairs = zip(
            reading.results(gm, found, in_candidate),
            reading.results(original.gm, should, in_original),
            strict=True,
        )
        for number, (is_, wanted_reads) in enumerate(pairs):
            if is_ != wanted_reads:
                return _misread(f"output {number}", is_, wanted_reads, _behind(original))
    blocks = sum(len(stream.blocks) for stream in original.streams)
    streams = len(original.streams)
    plural = "stream" if streams == 1 else "streams"
    return Check(
        RECURRENCE,
        "ok",
        f"{blocks} blocks in {streams} {plural}, {original.num_stale} read stale, "
        "all reads are right",
    )


def _misread(what: str, is_: reading.Reads, should: reading.Reads, where: str) -> Check:
    found = f"{what} is computed from {reading.spell(is_)}, not from {reading.spell(should)}"
    return Check(RECURRENCE, "failed", found, where)


def _behind(original: Original) -> str:
    last = original.streams[-1].blocks[-1]
    return f"what follows the last block, {last.index} ({module_of(last)})"


def _compare_outputs(
    program: ExportedProgram,
    original: Original,
    candidate: Candidate,
    outputs: Sequence[Sequence[Any]],
    values: Mapping[Node, Any],
    close: float,
) -> Check | None:
    """The failed check of the outputs, or None if they are right."""
    (output,) = original.gm.graph.find_nodes(op="output")
    wanted = returned(program, values[output])
    for rank, part in enumerate(candidate.parts):
        results = returned(part.program, outputs[rank])
        for number, (result, expected) in enumerate(zip(results, wanted, strict=True)):
            if not isinstance(expected, Tensor):
                continue
            off = relative_error(result, expected)
            if off > close:
                on = f" on rank {rank}" if len(outputs) > 1 else ""
                return Check(
                    RECURRENCE,
                    "failed",
                    f"all blocks are right, but output {number}{on} is off by {off:.1e}",
                    _behind(original),
                    off,
                )
    return None
