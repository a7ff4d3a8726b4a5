"""What the search for a plan found out about parameters, for the next graph of the same model.

    prefill    k_proj: 1 head cannot be divided over 2 ranks     found by walking each branch twice
    decode     the same op reads the same k_proj                 known: each branch is walked once

A graph in which one of the ops that refused is missing, or stands among other readers, is searched
from the start: it may be able to divide more.
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
    """Where an op is, in the words of any graph of the model.

    Attributes:
        path: the innermost module.
        op: its name.
        operands: dtypes and numbers of dims.
        readers: the ops that read it, in alphabetical order.
        number: which of those that are alike in all this.
    """

    path: str
    op: str
    operands: tuple[Any, ...]
    readers: tuple[str, ...]
    number: int = 0


@dataclass(frozen=True)
class KnownParameter:
    """A parameter, by what a refusal may depend on.

    Attributes:
        num_readers: how many nodes compute with it.
    """

    name: str
    shape: tuple[Any, ...]
    num_readers: int


@dataclass(frozen=True)
class KnownBan:
    """A `Ban` without nodes.

    Attributes:
        parts: of its parameters, by their numbers: first entry, length, repeats.
    """

    site: Site
    parameters: tuple[KnownParameter, ...]
    reason: str
    is_consequence: bool
    parts: tuple[tuple[int, int, int, int], ...]


@dataclass(frozen=True)
class Findings:
    """Of one graph.

    Attributes:
        bans: parameters that stay whole, or parts of them, and why.
        cuts: where parameters are cut into chunks.
        split_experts: why stacks of experts are split over all ranks.
        is_complete: whether all refusals are told by parameters alone.
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
        """Let `found`, which has not run yet, start with all this; whether it fits and is any."""
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
    """Propagate shardings: from what is known, or from nothing where a rule refuses any more."""
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
    """The ops of the branches at the places that are `wanted`."""
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
