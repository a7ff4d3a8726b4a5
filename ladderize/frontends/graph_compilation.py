"""Compile a Dynamo graph: convert it, agree with the other ranks, and lower it on all of them.

gm ── ladder_frame ── verdicts ── agree ── report ── (local inputs, blends) ── lower ── callable
                                    └ refused: raise, or the standard graph
"""

import dataclasses
import itertools
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch.distributed as dist
from torch.fx import Graph, GraphModule

from ladderize import compat
from ladderize.backends import Lower
from ladderize.backends.lowered import Lowered
from ladderize.config.ladder_entry import ContradictionError
from ladderize.config.options import LadderConfig
from ladderize.errors import LadderError, LadderWarning
from ladderize.frontends.agreement import (
    Absent,
    DisagreementError,
    agree,
    explain_failed_calls,
    heard_by_all,
)
from ladderize.frontends.checkpoints.conversions import note_compilation
from ladderize.frontends.dynamo_graph import copy_graph
from ladderize.frontends.generation import warn_of_standard_prefill
from ladderize.frontends.ladder import Laddered
from ladderize.frontends.mesh.earlier_plans import note_findings
from ladderize.frontends.mesh.local_caches import hold_to_one_layout
from ladderize.frontends.mesh.local_parameters import LocalInputs
from ladderize.frontends.mesh.local_parts import PARTS
from ladderize.frontends.verdicts import Verdict, describe_graph, settings_of
from ladderize.graph import ops
from ladderize.graph.collectives import find_groups
from ladderize.passes.before_autograd import dump_folder
from ladderize.passes.blend_reads import Blends, blend_inputs
from ladderize.passes.rewriting_state import Rewriting
from ladderize.report.data import GraphReport
from ladderize.report.publish import as_report, publish
from ladderize.streams.choose import chosen_numbers
from ladderize.streams.cut_streams import warn_of_cut_streams
from ladderize.streams.existing_ladders import warn_of_ladders
from ladderize.streams.fresh_reads import warn_of_fresh_reads

Groups = Sequence[dist.ProcessGroup]

_NEVER_STANDARD = (DisagreementError, ContradictionError)
"""Errors that are raised even with `strict=False`."""


@dataclass
class GraphCompilation:
    """One compilation of one graph.

    Attributes:
        gm: graph that Dynamo traced.
        example_inputs: fake inputs of the graph.
        config: options.
        groups: process groups that the graph communicates over, or is sharded over.
        lower: lowering.
        blends: blend weights that set at each call how stale the blocks read; None: fully stale.
        absent: ranks that have lowered the graph before.
    """

    gm: GraphModule
    example_inputs: Sequence[Any]
    config: LadderConfig
    groups: Groups
    lower: Lower
    blends: Blends | None = None
    absent: Absent = field(default_factory=dict)

    def run(self, rewrite: Callable[[], Laddered], *, is_laddered: bool) -> Callable[..., Any]:
        """Compile the graph; returns the callable that replaces it.

        Args:
            rewrite: runs the pipeline before autograd on the graph.
            is_laddered: whether the graph was already converted and sharded.

        Raises:
            LadderError: the graph is refused, the ranks disagree, or it cannot be lowered.
        """
        standard = None if self.config.strict else copy_graph(self.gm)
        with heard_by_all(self.groups, "failed"):
            laddered = rewrite()
        verdicts = verdicts_of(laddered, self.groups)
        try:
            self.absent = agree(verdicts)
        except DisagreementError as disagreement:
            laddered.error = disagreement
        error = laddered.error
        falls_back = standard is not None and not isinstance(error, _NEVER_STANDARD)
        graph = laddered.report("rewritten", refused="standard" if falls_back else "refused")
        self._publish(graph)
        if error is not None:
            if standard is None or not falls_back:
                raise error
            return self._standard(standard, error)
        if laddered.state.plan is not None:
            hold_to_one_layout(compat.compiled_module(), laddered.state.plan.states)
            note_findings(compat.compiled_module(), self.config, laddered.state.plan.findings)
        if not is_laddered:
            self._note_and_warn(laddered.state)
        return explain_failed_calls(self._lowered(laddered.state, graph), verdicts)

    def _publish(self, graph: GraphReport) -> None:
        publish(as_report(graph, self.config), dump_folder(self.config))

    def _standard(self, standard: Graph, error: LadderError) -> Callable[..., Any]:
        warnings.warn(LadderWarning(f"The standard graph is compiled. {error}"), stacklevel=2)
        note_compilation(compat.compiled_module(), self.config, ())
        self.gm.graph = standard
        self.gm.recompile()
        return self._lower_together(self.gm, self.example_inputs).run

    def _note_and_warn(self, state: Rewriting) -> None:
        if state.streams:
            blocks = chosen_numbers(state.streams, state.chosen)
            note_compilation(compat.compiled_module(), self.config, blocks)
        warn_of_ladders(state.streams)
        warn_of_cut_streams(state.analysis, state.streams, state.chosen, self.config)
        warn_of_fresh_reads(state.fresh_reads)
        if self.config.staleness > 0:
            warn_of_standard_prefill()

    def _lowered(self, state: Rewriting, graph: GraphReport) -> Callable[..., Any]:
        blends = blend_inputs(state.gm)
        examples = [*self.example_inputs, *(ops.value(node) for node in blends)]
        local = self._local_inputs(state, examples)
        lowered = self._lower_together(state.gm, examples if local is None else local.examples())
        if lowered.engines is not None or lowered.flights:
            known = dataclasses.replace(graph, engines=lowered.engines, flights=lowered.flights)
            publish(as_report(known, self.config), dump_folder(self.config), is_amended=True)
        run = lowered.run if local is None else local.feed(lowered.run)
        return run if self.blends is None else self.blends.feed(run, list(blends.values()))

    def _local_inputs(self, state: Rewriting, examples: Sequence[Any]) -> LocalInputs | None:
        """This rank's inputs of a sharded graph; None for other graphs."""
        if state.plan is None:
            return None
        mesh = self.config.device_mesh
        assert mesh is not None, "there is no plan without one"
        with heard_by_all(self.groups, "not lowered", self.absent):
            return LocalInputs(
                state.gm,
                state.plan,
                mesh,
                examples,
                slices=self.config.lowering != "tensorrt",  # an engine holds its part of a weight
                is_released=_is_released(),
            )

    def _lower_together(self, gm: GraphModule, examples: Sequence[Any]) -> Lowered:
        """Lower on all ranks or on none: a lowering may fail on only one of them."""
        groups = find_groups(gm)
        with heard_by_all(groups, "not lowered", self.absent):
            lowered = self.lower(gm, examples, self.config)
        agree(dict.fromkeys(groups, Verdict("lowered")), self.absent)
        return lowered


def _is_released() -> bool:
    """Whether parameters or buffers of the model being compiled were released."""
    module = compat.compiled_module()
    if module is None:
        return bool(PARTS.released)
    return any(map(PARTS.is_released, itertools.chain(module.parameters(), module.buffers())))


def verdicts_of(laddered: Laddered, groups: Groups) -> dict[dist.ProcessGroup, Verdict]:
    """The verdict for each group that the graph communicates over, before it is lowered."""
    state = laddered.state
    if laddered.error is not None:
        refused = f"refused: {laddered.error}"
        return dict.fromkeys(groups, Verdict(refused, sequence=refused))
    headline, settings = state.describe(), _settings(state)
    return {
        group: describe_graph(state.gm, headline, settings, group.group_name) for group in groups
    }


def _settings(state: Rewriting) -> list[str]:
    """The options, versions and decisions for a graph, without those that may differ by rank."""
    lines = settings_of(state.config)
    lines += [f"blocks converted: {sorted(chosen)}" for chosen in state.chosen]
    return lines if state.plan is None else [*lines, *state.plan.decisions()]
