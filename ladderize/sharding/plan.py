"""Plan the sharding of a residual model's branches over ranks, without changing the graph.

    h = linear(norm(x), w1);  y = linear(silu(h), w2, b);  x1 = add(x, y)
    w1: sharded on dim 0 · w2: sharded on dim 1 · y: one reduction, then b

The plan is the same on every rank. Ranks differ only in the local parts of parameters and in index
inputs. `passes.shard.ShardBranches` applies the plan.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch.fx import GraphModule, Node

from ladderize.compat.dispatcher import set_grad_enabled
from ladderize.errors import Blocker
from ladderize.graph.local_heads import keep_part, kept_part
from ladderize.sharding.edits import BranchEntry, ExpertEdit, MixedWeight, Reduction, Rewrite
from ladderize.sharding.expert_edits import expert_edits, first_experts
from ladderize.sharding.expert_stacks import ExpertStacks
from ladderize.sharding.findings import Findings, search
from ladderize.sharding.folded_lines import folded_lines
from ladderize.sharding.joint_sums import join_small_sums
from ladderize.sharding.layer_sums import join_layer_sums
from ladderize.sharding.own_streams import OwnStreams
from ladderize.sharding.placement import IndexInput, Placement, Shard
from ladderize.sharding.propagate import Propagation
from ladderize.sharding.undivided import Undivided, find_undivided, whole_cache_bytes
from ladderize.sharding.values import RowSelection
from ladderize.sharding.visit import Visit, is_tensor, packet
from ladderize.sharding.vocabulary import Vocabulary, find_vocabulary
from ladderize.streams.block import Block


@dataclass(frozen=True)
class ShardPlan:
    """Placements and edits; ranks compare `decisions`.

    Attributes:
        num_ranks: size of the mesh axis.
        placements: placement of each sharded parameter, by fully qualified name; other parameters
            are replicated.
        parameter_nodes: placements of the graph inputs with sharded parameters.
        rewrites, entries, mixed, reductions: edits, in graph order.
        experts: edits of calls that compute with whole experts, in graph order.
        whole_experts: names of parameters with whole experts on each rank.
        split_experts: reasons why other experts are split although they should be whole.
        vocabulary: edits outside of the branches, with their own collectives.
        index_inputs: inputs added to the graph, after its own inputs.
        whole: branches and parameters that are kept whole, with reasons.
        states: placements of cache states that are kept in parts, by site; None for whole states.
        cache_bytes: bytes of caches on each rank beyond an even share.
        visits: number of rule evaluations.
        refusals: number of refused evaluations; 0 if an earlier graph's findings apply.
        findings: findings for other graphs of the model.
    """

    num_ranks: int
    placements: Mapping[str, Placement]
    parameter_nodes: Mapping[Node, Placement]
    rewrites: tuple[Rewrite, ...]
    entries: tuple[BranchEntry, ...]
    mixed: tuple[MixedWeight, ...]
    reductions: tuple[Reduction, ...]
    experts: tuple[ExpertEdit, ...]
    whole_experts: frozenset[str]
    split_experts: tuple[Blocker, ...]
    vocabulary: Vocabulary
    index_inputs: tuple[IndexInput, ...]
    whole: tuple[Undivided, ...]
    states: Mapping[str, Shard | None]
    cache_bytes: int
    visits: int
    refusals: int = 0
    findings: Findings = field(default_factory=Findings)

    @property
    def num_reductions(self) -> int:
        """Number of all-reduces of the branches in a forward pass."""
        return sum(reduction.is_sent for reduction in self.reductions)

    def decisions(self) -> list[str]:
        """One line for each decision. Ranks that run together have the same lines."""
        parts: list[object] = [self.num_ranks, *self.index_inputs]
        parts += sorted(f"{name}: {placement!r}" for name, placement in self.placements.items())
        parts += sorted(f"{site}: {part}" for site, part in self.states.items())
        parts += [*self.rewrites, *self.entries, *self.mixed, *self.experts, *self.reductions]
        return [str(part) for part in (*parts, *self.vocabulary.edits)]

    def describe(self) -> list[str]:
        """Lines for a report."""
        lines = [f"{name}: {self.describe_placement(name)}" for name in self.placements]
        lines.append(f"{self.num_reductions} all-reduces over {self.num_ranks} ranks")
        lines += self.vocabulary.describe()
        lines += [f"kept whole: {line}" for line in folded_lines(self.whole)]
        return lines + [f"experts split: {reason}" for reason in self.split_experts]

    def describe_placement(self, name: str) -> str:
        """The placement of a parameter as text; for experts, with their number on each rank."""
        placement = self.placements[name]
        if name not in self.whole_experts or not isinstance(placement, Shard):
            return str(placement)
        return f"{placement.local_size(self.num_ranks)} of {placement.size} experts, {placement}"

    @property
    def whole_branches(self) -> tuple[Undivided, ...]:
        """The branches in `whole` that are not sharded at all."""
        return tuple(undivided for undivided in self.whole if undivided.is_branch)


def plan_sharding(
    gm: GraphModule,
    branches: Sequence[Block],
    parameters: Mapping[Node, str],
    num_ranks: int,
    differentiable: Collection[Node] | None = None,
    shard_vocabulary: bool = True,
    by_expert: bool = False,
    joins_sums: bool = False,
    unreduced: frozenset[Block] = frozenset(),
    earlier: Findings | None = None,
) -> ShardPlan:
    """Plan the tensor-parallel form of `branches` over `num_ranks` ranks. Linear in depth.

    Args:
        gm: pre-dispatch ATen graph with fake values in `meta["val"]`.
        branches: residual blocks; outside of them only a vocabulary is sharded.
        parameters: graph inputs (or attributes) with parameters and buffers, and their names.
        num_ranks: size of the mesh axis.
        differentiable: inputs that can require gradients; None: all floating-point inputs.
        shard_vocabulary: whether to shard the embedding and the head; see `sharding.vocabulary`.
        by_expert: whether to shard stacks of expert weights by experts, if the ranks divide them.
        joins_sums: whether to reduce sums together that only the next sum reads; see `layer_sums`.
        unreduced: blocks that are not reduced; see `own_streams`.
        earlier: findings of another graph of the model; ignored if they do not apply.

    Raises:
        LadderError: the analysis does not converge (a bug), or `unreduced` blocks must be reduced.
    """
    sums_norms = not unreduced  # the ranks' streams would be mixed

    def start() -> Propagation:
        stacks = ExpertStacks(by_expert)
        return Propagation(branches, parameters, num_ranks, stacks, sums_norms)

    found = search(start, earlier)
    vocabulary = Vocabulary()
    if shard_vocabulary:
        vocabulary = find_vocabulary(gm, branches, parameters, num_ranks)
    writer = _Writer(gm, found, differentiable, vocabulary)
    plan = writer.plan(joins_sums)
    if not unreduced:
        return plan
    own = OwnStreams.of(gm, found, writer.reductions(), unreduced, writer.gradients)
    return replace(plan, reductions=own.reductions(), entries=own.entries(plan.entries))


class _Writer:
    """Converts the result of the propagation to edits."""

    def __init__(
        self,
        gm: GraphModule,
        found: Propagation,
        differentiable: Collection[Node] | None,
        vocabulary: Vocabulary,
    ) -> None:
        self.gm = gm
        self.found = found
        self.vocabulary = vocabulary
        self.gradients = _carries_gradients(gm, differentiable)
        self.indices: dict[tuple[tuple[int, ...], ...], IndexInput] = {}

    def plan(self, joins_sums: bool = False) -> ShardPlan:
        found, visits = self.found, self._visits_in_order()
        entries = tuple(
            self._entry(visit, operand, selection)
            for visit in visits
            for operand, selection in visit.entries.items()
        )
        placements = found.placements() | dict(self.vocabulary.placements)
        placed = {p: s for p, s in placements.items() if isinstance(s, Shard)}
        experts = tuple(e for visit in visits for e in expert_edits(visit, found.num_ranks))
        firsts = (*first_experts(experts, found.num_ranks), *self.vocabulary.index_inputs)
        per_block = self.reductions()
        reductions = [reduction for own in per_block for reduction in own]
        if joins_sums:
            reductions = join_layer_sums(found.branches, per_block)
        return ShardPlan(
            num_ranks=found.num_ranks,
            placements={found.parameters[p]: placement for p, placement in placed.items()},
            parameter_nodes=placed,
            rewrites=tuple(
                Rewrite(v.node, v.target, v.args, v.kwargs) for v in visits if v.args is not None
            ),
            entries=entries,
            mixed=tuple(
                self._mixed(visit.node, weight, shard)
                for visit in visits
                for weight, shard in visit.mixed.items()
                if weight in self.gradients
            ),
            reductions=tuple(reductions),
            experts=experts,
            whole_experts=frozenset(found.parameters[p] for p in found.stacks.divided),
            split_experts=tuple(found.stacks.refused.values()),
            vocabulary=self.vocabulary,
            index_inputs=tuple(dict.fromkeys([*self.indices.values(), *firsts])),
            whole=(
                *find_undivided(found, [bool(reductions) for reductions in per_block]),
                *self.vocabulary.whole,
            ),
            states=_states(self.gm, visits),
            cache_bytes=whole_cache_bytes(self.gm, found),
            visits=found.num_visits,
            refusals=found.num_refusals,
            findings=Findings.of(found),
        )

    def reductions(self) -> list[list[Reduction]]:
        """The reductions of each branch."""
        return [self._reductions(i, block) for i, block in enumerate(self.found.branches)]

    def _visits_in_order(self) -> list[Visit]:
        nodes = dict.fromkeys(node for walked in self.found.walked for node in walked)
        return [*(self.found.visits[node] for node in nodes), *self.vocabulary.visits]

    def _entry(self, visit: Visit, operand: Node, selection: RowSelection | None) -> BranchEntry:
        # Whole or sharded values have entered where they are computed.
        needs_copy = operand in self.gradients and visit.value(operand).is_replicated
        share = self.found.num_ranks if operand in visit.shared else 1
        if selection is None:
            return BranchEntry(visit.node, operand, needs_copy, share=share)
        name = f"rank_index_{len(self.indices)}"
        index = self.indices.setdefault(selection.rows, IndexInput(name, selection.rows))
        return BranchEntry(
            visit.node, operand, needs_copy, selection.dim, index.name, selection.inner
        )

    def _mixed(self, user: Node, weight: Node, shard: Shard) -> MixedWeight:
        count = self.found.num_ranks
        pieces = tuple(
            (length, True) if i in shard.whole else (length // count, False)
            for i, length in enumerate(shard.chunks)
        )
        return MixedWeight(user, weight, shard.dim, pieces)

    def _reductions(self, index: int, block: Block) -> list[Reduction]:
        """The reductions of the partial values of one branch."""
        found = self.found
        inner = [
            Reduction((node,), found.biases[node])
            for node in found.owned(index)
            if node in found.reduced
        ]
        pending = [node for node in block.outputs if self._is_partial(node)]
        inner = join_small_sums(inner)
        if not pending:
            return inner
        others = tuple(node for node in _summands(block) if node not in pending)
        biases = tuple(b for node in pending for b in found.biases[node])
        return [*inner, Reduction(tuple(pending), biases, others, block.skip, block.add)]

    def _is_partial(self, node: Node) -> bool:
        value = self.found.values.get(node)
        return not isinstance(value, tuple) and value is not None and value.is_partial


def _summands(block: Block) -> list[Node]:
    """All summands of the residual add except the skip, in any association."""
    found: list[Node] = []
    stack: list[Any] = list(block.add.args[:2])
    while stack:
        node = stack.pop(0)
        is_leaf = node in block.outputs or node is block.skip or len(node.users) > 1
        is_sum = packet(node) is torch.ops.aten.add and not node.kwargs
        if is_leaf or not is_sum or len(node.all_input_nodes) < 2:
            found.append(node)
        else:
            stack[:0] = node.args[:2]
    found.remove(block.skip)
    return found


def _carries_gradients(gm: GraphModule, inputs: Collection[Node] | None) -> set[Node]:
    """The floating-point nodes that depend on an input that can require gradients."""
    carries: set[Node] = set()
    is_enabled = True
    for node in gm.graph.nodes:
        if node.target is set_grad_enabled:
            is_enabled = bool(node.args[0])
        if not is_enabled:
            continue
        value = node.meta.get("val")
        if isinstance(value, torch.Tensor) and not (
            value.is_floating_point() or value.is_complex()
        ):
            continue
        if node.op in ("placeholder", "get_attr"):
            if is_tensor(node) and (inputs is None or node in inputs):
                carries.add(node)
        elif any(source in carries for source in node.all_input_nodes):
            carries.add(node)
    return carries


def _states(gm: GraphModule, visits: Sequence[Visit]) -> dict[str, Shard | None]:
    """The placement of each state that the graph keeps or reads, by its site."""
    by_parts = (keep_part, kept_part)
    sites = [str(node.args[2]) for node in gm.graph.nodes if node.target in by_parts]
    kept = {site: part for visit in visits for site, part in visit.kept.items()}
    return {site: kept.get(site) for site in sites}
