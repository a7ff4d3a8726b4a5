"""Propagate the logits of a head, sharded along the vocabulary, as far as rules allow.

y = to(linear(x, w), float32) / 30     each rank computes with its own columns
cross_entropy(y, labels)               a loss takes sharded logits
return y                               gathered: no rule applies
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.fx import GraphModule, Node

from ladderize.sharding.placement import Shard
from ladderize.sharding.rules.table import apply_rule
from ladderize.sharding.values import Illegal, NeedsCuts, NeedsReduction, Value, Values
from ladderize.sharding.visit import Visit, packet

aten = torch.ops.aten


@dataclass
class Logits:
    """Propagates the logits of `heads` as far as rules allow.

    Attributes:
        gm: graph module.
        parameters: names of parameters and buffers.
        num_ranks: number of ranks.
        heads: products that compute logits, with their weights.
        values: placements of sharded values.
        visits: calls that compute with sharded values.
        losses: cross entropies that take sharded logits.
        gathered: sharded values, with the readers that need them whole.
    """

    gm: GraphModule
    parameters: Mapping[Node, str]
    num_ranks: int
    heads: Mapping[Node, Node]
    values: dict[Node, Values] = field(default_factory=dict)
    visits: list[Visit] = field(default_factory=list)
    losses: list[Node] = field(default_factory=list)
    gathered: dict[Node, list[Node]] = field(default_factory=dict)

    def walk(self) -> None:
        weights = set(self.heads.values())
        banned = {p for p in self.parameters if len(p.users) > 1 and p not in weights}
        for node in self.gm.graph.nodes:
            sharded = [source for source in node.all_input_nodes if source in self.values]
            if (not sharded and node not in self.heads) or _checks_type(node):
                continue
            if sharded and self._is_loss(node):
                self.losses.append(node)
            elif not self._carry(node, banned):
                for source in sharded:
                    self.gathered.setdefault(source, []).append(node)

    def _carry(self, node: Node, banned: Collection[Node]) -> bool:
        """Apply the rule of `node`; whether its result is sharded."""
        visit = Visit(node, self.values, self.parameters, banned, {}, {}, self.num_ranks)
        try:
            value = apply_rule(visit)
        except (Illegal, NeedsCuts, NeedsReduction):
            return False
        if not isinstance(value, Value) or value.shard is None:
            return False
        self.values[node] = value
        self.visits.append(visit)
        return True

    def _is_loss(self, node: Node) -> bool:
        """Whether `node` is a cross entropy with class indices, without weights and smoothing."""
        if packet(node) is not aten.cross_entropy_loss or node.kwargs or len(node.args) < 2:
            return False
        logits, labels, weight, _, _, smoothing = read_loss(node)
        if logits not in self.values or not is_integer(labels):
            return False
        classes = min(1, logits.meta["val"].ndim - 1)
        return self.shard(logits).dim == classes and weight is None and smoothing == 0

    def shard(self, node: Node) -> Shard:
        value = self.values[node]
        assert isinstance(value, Value) and value.shard is not None
        return value.shard

    def placements(self) -> dict[Node, Shard]:
        demands = [item for visit in self.visits for item in visit.demands.items()]
        return {p: placed for p, placed in demands if isinstance(placed, Shard)}


def _checks_type(node: Node) -> bool:
    """Whether `node` is a check by torch.export that also holds for a local part."""
    return packet(node) is aten._assert_tensor_metadata and not any(node.args[1:3])


def read_loss(node: Node) -> tuple[Any, ...]:
    """Logits, labels, weight, reduction, ignore_index and label_smoothing of a cross entropy."""
    defaults = (None, None, None, 1, -100, 0.0)
    return (*node.args, *defaults[len(node.args) :])


def is_integer(node: Node) -> bool:
    dtype = node.meta["val"].dtype
    return not dtype.is_floating_point and not dtype.is_complex
