"""Values with the real weights: the candidate's streams and outputs against the reference's."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

from ladderize.frontends.rewrite import copy_of
from ladderize.testing.verify.candidate import Candidate, bind, on_cpu
from ladderize.testing.verify.diagnose import describe_block
from ladderize.testing.verify.inputs import sample_inputs
from ladderize.testing.verify.locate import Name, Wanted, relative_error, wanted_values
from ladderize.testing.verify.lockstep import RanksPart, run_ranks
from ladderize.testing.verify.precision import Precision
from ladderize.testing.verify.reads import spell_name
from ladderize.testing.verify.substituted import Original, run_reference
from ladderize.testing.verify.verdict import TOLERANCES, Check

Places = Sequence[Mapping[Name, str]]


def check_values(
    program: ExportedProgram,
    original: Original,
    candidate: Candidate,
    places: Places,
    dtypes: Sequence[torch.dtype],
    variants: int,
) -> Iterator[Check]:
    """A check for each dtype and each set of random inputs.

    Args:
        program: the original as exported.
        original: its graph in standard form.
        candidate: what is verified.
        places: where each rank computes which stream value.
        dtypes: to compute in; the first is the program's own.
        variants: of inputs: other values, and other sizes where they may vary.
    """
    standard = on_cpu(copy_of(program))
    graphs = [standard, original.gm, *(part.gm for part in candidate.parts)]
    for dtype in dtypes:
        precision = Precision(dtypes[0], dtype)
        with precision.of_graphs(graphs):
            in_dtype = _In(program, standard, original, candidate, precision)
            for variant in range(variants):
                yield in_dtype.check(places, variant)


class _In:
    """Everything in one dtype."""

    def __init__(
        self,
        program: ExportedProgram,
        standard: GraphModule,
        original: Original,
        candidate: Candidate,
        precision: Precision,
    ) -> None:
        self.program, self.standard, self.original = program, standard, original
        self.parts = candidate.parts
        self.precision, self.dtype = precision, precision.wanted
        self.full = self.precision.state({**program.state_dict, **program.constants})
        self.states = [self.precision.state(part.tensors) for part in self.parts]

    def check(self, places: Places, variant: int) -> Check:
        given = [self.precision.of(value) for value in sample_inputs(self.program, variant)]
        shapes = " ".join("x".join(map(str, v.shape)) for v in given if isinstance(v, Tensor))
        name = f"values, {str(self.dtype).removeprefix('torch.')}, {shapes}"
        arguments = bind(self.program, self.full, given)
        expected = run_reference(self.original, arguments)
        seen: list[dict[str, Any]] = [{} for _ in self.parts]
        kept = [set(of_rank.values()) for of_rank in places]

        def see(rank: int, node: Node, value: Any) -> None:
            if node.name in kept[rank]:
                seen[rank][node.name] = value.clone()

        inputs = [
            part.arguments(state, given)
            for part, state in zip(self.parts, self.states, strict=True)
        ]
        try:
            outputs = run_ranks([part.gm for part in self.parts], inputs, see)
        except RanksPart as part:
            return Check(name, "not run", str(part))
        wanted = [w for ws in wanted_values(self.original.streams, expected, 0.0) for w in ws]
        (output,) = self.original.gm.graph.find_nodes(op="output")
        standard = self._standard_error(arguments, expected[output])
        return self._judge(
            name, [*self._errors(wanted, places, seen)], outputs, expected[output], standard
        )

    def _errors(
        self, wanted: Sequence[Wanted], places: Places, seen: Sequence[Mapping[str, Any]]
    ) -> Iterator[tuple[float, Wanted]]:
        """Of each stream value the largest error over the ranks."""
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
        outputs: Sequence[Sequence[Any]],
        expected: Sequence[Any],
        standard: float,
    ) -> Check:
        allowed = TOLERANCES[self.dtype]
        off = max(_output_error(results, expected) for results in outputs)
        worst = max(errors, key=lambda e: e[0], default=None)
        first = next((value for error, value in errors if not error <= allowed), None)
        largest = max(off, worst[0] if worst else 0.0)
        at = spell_name(worst[1].name) if worst and worst[0] >= off else "an output"
        off_by = f"worst error {largest:.1e} at {at}" if largest else "identical"
        found = f"{off_by}; the standard net's {standard:.1e}"
        if largest <= allowed:
            return Check(name, "ok", found, error=largest)
        return Check(name, "failed", found, describe_block(first) if first else "", largest)

    def _standard_error(self, arguments: Sequence[Any], expected: Sequence[Any]) -> float:
        """How far the standard net's outputs are from the ladder's."""
        return _output_error(self.standard(*[_copied(a) for a in arguments]), expected)


def _output_error(results: Sequence[Any], expected: Sequence[Any]) -> float:
    """The largest relative error of one run's outputs."""
    pairs = zip(results, expected, strict=True)
    return max(
        (relative_error(r, want) for r, want in pairs if isinstance(want, Tensor)), default=0.0
    )


def _copied(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value
