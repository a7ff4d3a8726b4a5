"""The findings of a plan about parameters, reused for other graphs of the same model.

    prefill    k_proj: 1 head cannot be divided over 2 ranks     found by walking each branch twice
    decode     the same op reads the same k_proj                 known: each branch is walked once

If an op that refused is missing from a graph, or has other readers, the search starts from scratch,
because more may be sharded.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.fx import Node

from ladderize.errors import Blocker, module_path
from ladderize.graph import ops
from ladderize.sharding.propagate import Ban, Propagation
from ladderize.sharding.values import Origin
from ladderize.sharding.visit import packet


@dataclass(frozen=True)
class Site:
    """The location of an op, independent of a graph of the model.

    Attributes:
        path: path of the innermost module.
        op: name of the op.
        operands: dtypes and numbers of dims of the operands.
        readers: ops that read it, in alphabetical order.
        number: index among ops that are equal in all the above.
    """

    path: str
    op: str
    operands: tuple[Any, ...]
    readers: tuple[str, ...]
    number: int = 0


@dataclass(frozen=True)
class KnownParameter:
    """A parameter, with the properties that a refusal may depend on.

    Attributes:
        name: fully qualified name.
        shape: shape.
        num_readers: number of nodes that compute with it.
    """

    name: str
    shape: tuple[Any, ...]
    num_readers: int


@dataclass(frozen=True)
class KnownBan:
    """A `Ban` without nodes.

    Attributes:
        site: op that refused.
        parameters: parameters that are kept whole.
        reason, is_consequence: as in `Ban`.
        parts: parts of parameters: index of the parameter, first entry, length, repeats.
    """

    site: Site
    parameters: tuple[KnownParameter, ...]
    reason: str
    is_consequence: bool
    parts: tuple[tuple[int, int, int, int], ...]


@dataclass(frozen=True)
class Findings:
    """The findings of one graph.

    Attributes:
        bans: parameters, or parts of them, that stay whole, with the reasons.
        cuts: positions at which parameters are cut into chunks.
        split_experts: reasons why stacks of experts are split over all ranks.
        is_complete: whether all refusals can be expressed by parameters alone.
    """

    bans: tuple[KnownBan, ...] = ()
    cuts: Mapping[KnownParameter, frozenset[int]] = field(default_factory=dict)
    split_experts: Mapping[KnownParameter, Blocker] = field(default_factory=dict)
    is_complete: bool = True

    @classmethod
    def of(cls, found: Propagation) -> "Findings":
        kept = (ban for bans in found.kept.values() for ban in bans)
        bans = list(dict.fromkeys([*found.bans.values(), *kept]))
        if not all(p in found.parameters for ban in bans for p in ban.parameters):
            return cls(is_complete=False)
        sites = {node: site for site, node in _sites(found, {_place(ban.node) for ban in bans})}
        if not all(ban.node in sites for ban in bans):
            return cls(is_complete=False)
        return cls(
            tuple(_known_ban(found, ban, sites[ban.node]) for ban in bans),
            {_known(found, p): cuts for p, cuts in found.cuts.items() if p in found.parameters},
            {_known(found, p): why for p, why in found.stacks.refused.items()},
        )

    def seed(self, found: Propagation) -> bool:
        """Start `found`, which has not run yet, with these findings; False if they do not apply."""
        if not self.is_complete or not (self.bans or self.cuts or self.split_experts):
            return False
        nodes = {_known(found, node): node for node in found.parameters}
        wanted = {(ban.site.path, ban.site.op) for ban in self.bans}
        sites = dict(_sites(found, wanted))
        known = [*self.cuts, *self.split_experts, *(p for b in self.bans for p in b.parameters)]
        if not nodes.keys() >= set(known) or not sites.keys() >= {b.site for b in self.bans}:
            return False
        for ban in self.bans:
            found.record(_ban(ban, [nodes[p] for p in ban.parameters], sites[ban.site]))
        found.cuts.update({nodes[p]: cuts for p, cuts in self.cuts.items()})
        for p, why in self.split_experts.items():
            found.stacks.refuse(nodes[p], why)
        return True


def search(start: Callable[[], Propagation], earlier: Findings | None) -> Propagation:
    """Propagate shardings from earlier findings, or from scratch if a rule still refuses."""
    found = start()
    is_seeded = earlier is not None and earlier.seed(found)
    found.run()
    if is_seeded and found.num_refusals:
        found = start()
        found.run()
    return found


def _known(found: Propagation, parameter: Node) -> KnownParameter:
    shape = ops.expressions(parameter.meta["val"].shape)
    return KnownParameter(found.parameters[parameter], shape, found.num_readers(parameter))


def _known_ban(found: Propagation, ban: Ban, site: Site) -> KnownBan:
    parts = tuple(
        (ban.parameters.index(p.parameter), p.start, p.length, p.repeats) for p in ban.parts
    )
    known = tuple(_known(found, p) for p in ban.parameters)
    return KnownBan(site, known, ban.reason, ban.is_consequence, parts)


def _ban(known: KnownBan, parameters: list[Node], node: Node) -> Ban:
    parts = tuple(Origin(parameters[i], *rest) for i, *rest in known.parts)
    return Ban(tuple(parameters), known.reason, node, known.is_consequence, parts)


def _place(node: Node) -> tuple[str, str]:
    return module_path(node), str(packet(node))


def _sites(found: Propagation, wanted: set[tuple[str, str]]) -> Iterator[tuple[Site, Node]]:
    """The ops of the branches at the `wanted` places."""
    counts: dict[Site, int] = {}
    for node in dict.fromkeys(node for walked in found.walked for node in walked):
        if wanted and (place := _place(node)) in wanted:
            values = (source.meta.get("val") for source in node.all_input_nodes)
            operands = tuple(
                (value.dtype, value.dim()) if isinstance(value, Tensor) else None
                for value in values
            )
            readers = tuple(sorted(str(packet(user)) for user in node.users))
            alike = Site(*place, operands, readers)
            counts[alike] = number = counts.get(alike, -1) + 1
            yield Site(*place, operands, readers, number), node
