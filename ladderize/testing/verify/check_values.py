"""Check values with the real weights at several sizes: streams, outputs and written state."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

from ladderize.errors import describe_origin
from ladderize.frontends.rewrite import copy_of
from ladderize.testing.verify.candidate import Candidate, bind, on_cpu
from ladderize.testing.verify.check_state import (
    STATE,
    left_behind,
    returned,
    state_errors,
    versions,
    written_parameters,
)
from ladderize.testing.verify.check_tensors import home_of
from ladderize.testing.verify.diagnose import describe_block
from ladderize.testing.verify.inputs import sample_inputs
from ladderize.testing.verify.locate import Name, Wanted, relative_error, wanted_values
from ladderize.testing.verify.lockstep import OP_ERRORS, NodeFails, RanksPart, reason_of, run_ranks
from ladderize.testing.verify.precision import Precision
from ladderize.testing.verify.reads import spell_name
from ladderize.testing.verify.sizes import Plan, Sizes
from ladderize.testing.verify.substituted import Original, run_reference
from ladderize.testing.verify.verdict import TOLERANCES, Check

Places = Sequence[Mapping[Name, str]]


def check_values(
    program: ExportedProgram,
    original: Original,
    candidate: Candidate,
    places: Places,
    dtypes: Sequence[torch.dtype],
    plan: Plan,
) -> Iterator[Check]:
    """Yield a check for each dtype and set of random inputs, then one of sizes and one of state.

    Args:
        program: original as exported.
        original: its graph in standard form.
        candidate: program to verify.
        places: names of the nodes that compute the stream values, by rank.
        dtypes: dtypes to compute in; the first is the program's own.
        plan: sizes of the inputs.
    """
    standard = on_cpu(copy_of(program))
    graphs = [standard, original.gm, *(part.gm for part in candidate.parts)]
    failing: dict[int, str] = {}
    state = _State(original)
    for dtype in dtypes:
        precision = Precision(dtypes[0], dtype)
        runs = (*plan.base, *plan.further) if dtype is dtypes[0] else plan.base
        with precision.of_graphs(graphs):
            in_dtype = _In(program, standard, original, candidate, precision, state)
            for variant, sizes in enumerate(runs):
                try:
                    expected = in_dtype.expect(sizes, variant)
                except OP_ERRORS as error:
                    if variant == 0:
                        raise
                    failing[variant] = reason_of(error)
                else:
                    yield in_dtype.check(places, expected)
    yield from plan.check(failing)
    yield state.check()


def why_it_fails(program: ExportedProgram, original: Original, sizes: Sizes) -> str:
    """The error of the reference at these sizes; "" if it runs."""
    state = {**program.state_dict, **program.constants}
    try:
        run_reference(original, bind(program, state, sample_inputs(program, sizes, 0)))
    except OP_ERRORS as error:
        return reason_of(error)
    return ""


@dataclass
class _State:
    """The state after calls, over all runs.

    Attributes:
        original: original, to find where a tensor is read.
        seen: names that were compared.
        wrong: error, name and run of the first tensor that is off.
    """

    original: Original
    seen: set[str] = field(default_factory=set)
    wrong: tuple[float, str, str] | None = None

    def see(self, error: float, allowed: float, name: str, run: str) -> None:
        self.seen.add(name)
        if not error <= allowed and self.wrong is None:
            self.wrong = (error, name, run)

    def check(self) -> Check:
        if self.wrong is None:
            number = f"{len(self.seen)} buffers, constants and inputs"
            return Check(STATE, "ok", f"{number}, each as after the original")
        error, name, run = self.wrong
        off = "has another form" if error == float("inf") else f"is off by {error:.1e}"
        found = f"{name} {off} after the call ({run})"
        return Check(STATE, "failed", found, home_of(self.original, name), error)


@dataclass(frozen=True, eq=False)
class _Expected:
    """A run of the reference.

    Attributes:
        run: description of its dtype and sizes.
        given: inputs.
        values: values of all nodes, including the output.
        results: outputs returned to the caller.
        state: tensors that outlive the call.
        standard: largest error of the standard model's results compared with the ladder's.
    """

    run: str
    given: Sequence[Any]
    values: dict[Node, Any]
    results: Sequence[Any]
    state: Mapping[str, Tensor]
    standard: float


class _In:
    """Runs of reference and candidate in one dtype."""

    def __init__(
        self,
        program: ExportedProgram,
        standard: GraphModule,
        original: Original,
        candidate: Candidate,
        precision: Precision,
        state: _State,
    ) -> None:
        self.program, self.standard, self.original = program, standard, original
        self.candidate, self.parts, self.state = candidate, candidate.parts, state
        self.precision, self.dtype = precision, precision.wanted
        self.full = self.precision.state({**program.state_dict, **program.constants})
        self.states = [self.precision.state(part.tensors) for part in self.parts]

    def expect(self, sizes: Sizes, variant: int) -> _Expected:
        given = [self.precision.of(value) for value in sample_inputs(self.program, sizes, variant)]
        shapes = " ".join("x".join(map(str, v.shape)) for v in given if isinstance(v, Tensor))
        run = f"{str(self.dtype).removeprefix('torch.')}, {shapes}"
        arguments = bind(self.program, self.full, given)
        values = run_reference(self.original, arguments)
        (output,) = self.original.gm.graph.find_nodes(op="output")
        results = returned(self.program, values[output])
        (standard,) = run_ranks([self.standard], [bind(self.program, self.full, given)])
        return _Expected(
            run=run,
            given=given,
            values=values,
            results=results,
            state=left_behind(self.program, self.program, arguments, values[output]),
            standard=_largest_error(returned(self.program, standard), results),
        )

    def check(self, places: Places, expected: _Expected) -> Check:
        name = f"values, {expected.run}"
        seen: list[dict[str, Any]] = [{} for _ in self.parts]
        kept = [set(of_rank.values()) for of_rank in places]

        def see(rank: int, node: Node, value: Any) -> None:
            if node.name in kept[rank]:
                seen[rank][node.name] = value.clone()

        inputs = [
            part.arguments(state, expected.given)
            for part, state in zip(self.parts, self.states, strict=True)
        ]
        before = [versions(arguments) for arguments in inputs]
        try:
            outputs = run_ranks([part.gm for part in self.parts], inputs, see)
        except RanksPart as part:
            return Check(name, "not run", str(part))
        except NodeFails as fault:
            return Check(name, "failed", str(fault), describe_origin(fault.node))
        for rank, arguments in enumerate(inputs):
            self._compare_state(rank, arguments, before[rank], outputs[rank], expected)
        wanted = [
            w for ws in wanted_values(self.original.streams, expected.values, 0.0) for w in ws
        ]
        results = [
            returned(part.program, of_rank)
            for part, of_rank in zip(self.parts, outputs, strict=True)
        ]
        errors = [*self._errors(wanted, places, seen)]
        known = {value.name for _, value in errors}
        missing = [value for value in wanted if value.must_be and value.name not in known]
        return self._judge(name, errors, missing, results, expected)

    def _compare_state(
        self,
        rank: int,
        arguments: Sequence[Any],
        before: Sequence[int],
        outputs: Sequence[Any],
        expected: _Expected,
    ) -> None:
        program = self.parts[rank].program
        run = f"{expected.run}, rank {rank}" if len(self.parts) > 1 else expected.run
        found = left_behind(self.program, program, arguments, outputs)
        for error, name in state_errors(self.candidate, rank, found, expected.state):
            self.state.see(error, TOLERANCES[self.dtype], name, run)
        for name in written_parameters(program, arguments, before):
            self.state.see(float("inf"), 0.0, name, f"{run}, it is a weight and was written")

    def _errors(
        self, wanted: Sequence[Wanted], places: Places, seen: Sequence[Mapping[str, Any]]
    ) -> Iterator[tuple[float, Wanted]]:
        """The largest error of each stream value over the ranks."""
        for value in wanted:
            found = [
                value.error(seen[rank][of_rank[value.name]])
                for rank, of_rank in enumerate(places)
                if value.name in of_rank
            ]
            if found:
                yield max(found), value

    def _judge(
        self,
        name: str,
        errors: Sequence[tuple[float, Wanted]],
        missing: Sequence[Wanted],
        results: Sequence[Sequence[Any]],
        expected: _Expected,
    ) -> Check:
        allowed = TOLERANCES[self.dtype]
        off = max(_largest_error(of_rank, expected.results) for of_rank in results)
        worst = max(errors, key=lambda e: e[0], default=None)
        wrong = [value for error, value in errors if not error <= allowed]
        largest = max(off, worst[0] if worst else 0.0)
        at = spell_name(worst[1].name) if worst and worst[0] >= off else "an output"
        off_by = f"worst error {largest:.1e} at {at}" if largest else "identical"
        found = f"{off_by}; the standard model's {expected.standard:.1e}"
        if largest <= allowed:
            return Check(name, "ok", found, error=largest)
        first = next(iter((*wrong, *missing)), None)
        where = describe_block(first) if first else "what follows the last block"
        return Check(name, "failed", found, where, largest)


def _largest_error(results: Sequence[Any], expected: Sequence[Any]) -> float:
    """The largest relative error of one run's outputs."""
    pairs = zip(results, expected, strict=True)
    return max(
        (relative_error(r, want) for r, want in pairs if isinstance(want, Tensor)), default=0.0
    )
