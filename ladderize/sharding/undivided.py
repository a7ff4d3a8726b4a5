"""Branches and parameters that are kept whole on all ranks: location, reason and cost.

branch: layers.0.self_attn.q_proj.weight: 7 heads of size 8 cannot be divided over 2 ranks
    (layers.0.self_attn at …); 12,544 bytes and 301,056 FLOPs more on each rank
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch.fx import GraphModule, Node

from ladderize import compat
from ladderize.errors import Blocker
from ladderize.graph import ops
from ladderize.graph.flops import flops_of
from ladderize.graph.local_heads import all_heads, keep_part, kept_part
from ladderize.graph.writes import written_operands
from ladderize.sharding.propagate import Ban, Propagation
from ladderize.sharding.rules.caches import CACHE_RULES
from ladderize.sharding.rules.products import PRODUCTS
from ladderize.sharding.rules.table import has_rule
from ladderize.sharding.unpacked import nodes_behind
from ladderize.sharding.visit import is_tensor, op_name, packet
from ladderize.streams.block import Block

NO_WEIGHT = "the branch multiplies by no weight of its own that can be divided"


@dataclass(frozen=True)
class Undivided:
    """A branch, or parameters of an otherwise sharded branch, that are whole on every rank.

    Attributes:
        reasons: reasons with locations.
        parameters: fully qualified names.
        num_bytes: bytes of the parameters that each rank holds beyond an even share.
        flops: FLOPs of a forward pass that each rank computes beyond an even share.
        is_branch: whether the branch is not sharded at all.
    """

    reasons: tuple[Blocker, ...]
    parameters: tuple[str, ...]
    num_bytes: int
    flops: int
    is_branch: bool

    def describe(self) -> str:
        """The reasons, without the cost."""
        kind = "branch: " if self.is_branch else ""
        return f"{kind}{'; '.join(map(str, self.reasons))}"

    def __str__(self) -> str:
        return f"{self.describe()}; {cost_of(self.num_bytes, self.flops)}"


def cost_of(num_bytes: int, flops: int) -> str:
    return f"{num_bytes:,} bytes and {flops:,} FLOPs more on each rank"


def find_undivided(found: Propagation, is_divided: Sequence[bool]) -> Iterator[Undivided]:
    """Find them in graph order. The bytes of parameters shared by branches are counted once."""
    counted: set[Node] = set()
    told: set[Ban] = set()
    for block, divided in zip(found.branches, is_divided, strict=True):
        weights = dict.fromkeys(w for node in block.branch for w in _weights(found, node))
        bans = _bans(found, weights)
        if not divided:
            yield _branch(found, block, bans, [w for w in weights if w not in counted])
            counted.update(weights)
        for ban in bans if divided else ():
            if ban not in told and counted.isdisjoint(ban.parameters):
                yield _rest(found, block, ban)
            told.add(ban)


def whole_cache_bytes(gm: GraphModule, found: Propagation) -> int:
    """What each rank holds of caches beyond an even share of them.

    These are the states of convolutions and of state-space layers, which keep their full size, and
    keys and values whose heads are not divided, or are on several ranks.
    """
    held: dict[object, Node] = {
        node.args[2]: node for node in gm.graph.nodes if node.target in (keep_part, kept_part)
    }
    held |= {ban.node: ban.node for ban in found.bans.values() if _extends(found, ban.node)}
    whole = sum(beyond_share(num_bytes(node), found.num_ranks) for node in held.values())
    own = [(n.args[0], n.args[3]) for n in gm.graph.nodes if n.target is all_heads]
    return whole + sum(beyond_share(num_bytes(part), copies) for part, copies in own)


def _extends(found: Propagation, node: Node) -> bool:
    """Whether `node` writes new entries into a tensor that the caller passes, or appends them."""
    given = (source for source in node.all_input_nodes if source not in found.parameters)
    return packet(node) in {*CACHE_RULES, torch.ops.aten.cat} and any(
        source.op == "placeholder" and source.meta["val"].dim() == node.meta["val"].dim()
        for source in given
        if is_tensor(source) and source.meta["val"].dim() > 1
    )


def _weights(found: Propagation, node: Node) -> list[Node]:
    """The parameters with two or more dims that `node` computes with, which could be sharded."""
    read = (found.parameter(source) for source in node.all_input_nodes)
    held = [p for main in read if main is not None for p in found.packed.with_it(main)]
    return [p for p in held if p.meta["val"].dim() > 1 or p in found.bans]


def _bans(found: Propagation, weights: Iterable[Node]) -> list[Ban]:
    bans = [found.bans[p] for p in weights if p in found.bans]
    kept = [ban for p in weights if p not in found.bans for ban in found.kept.get(p, ())]
    return list(dict.fromkeys([*bans, *kept]))


def _branch(
    found: Propagation, block: Block, bans: Sequence[Ban], weights: Sequence[Node]
) -> Undivided:
    """A branch that is whole. Reasons that are consequences are omitted if a cause is known."""
    causes = [ban for ban in bans if not ban.is_consequence] or bans
    reasons = tuple(dict.fromkeys(_reason(found, ban) for ban in causes))
    if not reasons and (computed := dict(_computed(found, block))):
        reasons = tuple(_computed_reason(found, node, computed[node]) for node in computed)
        weights = [*weights, *dict.fromkeys(p for held in computed.values() for p in held)]
    reasons = reasons or tuple(_without_rule(found, block))
    return Undivided(
        reasons or (Blocker.at(block.add, NO_WEIGHT),),
        tuple(found.parameters[w] for w in weights),
        beyond_share(sum(map(num_bytes, weights)), found.num_ranks),
        beyond_share(sum(map(flops_of, block.branch)), found.num_ranks),
        is_branch=True,
    )


def _without_rule(found: Propagation, block: Block) -> Iterator[Blocker]:
    """The ops with parameters but without a rule, such as kernels of packed weights."""
    for node in block.branch:
        held = _weights(found, node) if not has_rule(node) else []
        if held:
            names = ", ".join(found.parameters[parameter] for parameter in held)
            yield Blocker.at(node, f"{names}: no sharding rule for {op_name(node)}")


def _computed(found: Propagation, block: Block) -> Iterator[tuple[Node, list[Node]]]:
    """The products with a computed weight, such as an unpacked one, and its parameters."""
    for node in block.branch:
        form = PRODUCTS.get(packet(node))
        weight = node.args[form.weight] if form is not None else None
        if isinstance(weight, Node) and found.parameter(weight) is None:
            held = _parameters_behind(found, weight)
            if held or (held is not None and weight not in block.members):
                yield node, held


def _computed_reason(found: Propagation, node: Node, held: Sequence[Node]) -> Blocker:
    weight = node.args[PRODUCTS[packet(node)].weight]
    assert isinstance(weight, Node)
    names = ", ".join(sorted(found.parameters[parameter] for parameter in held))
    what = f"{packet(weight)} of {names or 'memory that the graph fills'}"
    write = next(_writes_behind(found, weight), None) if held else None
    if write is not None:
        what += f", into which {op_name(write)} writes in place"
    return Blocker.at(node, f"{op_name(node)} multiplies by {what}: only parameters are sharded")


def _parameters_behind(found: Propagation, weight: Node) -> list[Node] | None:
    """The parameters that `weight` is computed from; None if it depends on other inputs."""
    behind = nodes_behind(weight, found.parameters)
    given = [n for n in behind if n.op == "placeholder" and n not in found.parameters]
    return None if given else [node for node in behind if node in found.parameters]


def _writes_behind(found: Propagation, weight: Node) -> Iterator[Node]:
    """The writes into memory that `weight` is computed from."""
    computed = [
        node for node in nodes_behind(weight, found.parameters) if node not in found.parameters
    ]
    memory = {storage for node in computed for storage in ops.storages(node)}
    for node in weight.graph.nodes:
        written = (storage for w in written_operands(node) for storage in ops.storages(w))
        if not memory.isdisjoint(written):
            yield node


def _rest(found: Propagation, block: Block, ban: Ban) -> Undivided:
    """Parameters, or parts of them, that stay whole in a sharded branch."""
    readers = [n for n in block.branch if not set(_weights(found, n)).isdisjoint(ban.parameters)]
    parameters = dict.fromkeys(q for p in ban.parameters for q in found.packed.with_it(p))
    held, flops = sum(map(num_bytes, parameters)), sum(map(flops_of, readers))
    if ban.parts:
        size = max(part.start + part.length for part in ban.parts)
        dims = [p.meta["val"].shape for p in ban.parameters]
        size = max([size, *(max(shape) for shape in dims)])
        length = sum(part.length for part in ban.parts)
        held, flops = held * length // size, flops * length // size
    names = tuple(map(found.name, ban.parameters))
    return Undivided(
        (_reason(found, ban),),
        names,
        beyond_share(held, found.num_ranks),
        beyond_share(flops, found.num_ranks),
        is_branch=False,
    )


def _reason(found: Propagation, ban: Ban) -> Blocker:
    names = ", ".join(map(found.name, ban.parameters))
    if ban.parts:
        names += " [" + ", ".join(f"{p.start}:{p.start + p.length}" for p in ban.parts) + "]"
    return Blocker.at(ban.node, f"{names}: {ban.reason}")


def beyond_share(amount: int, num_ranks: int) -> int:
    """The amount that each rank has beyond an even share if all ranks have the whole."""
    return amount - amount // num_ranks


def num_bytes(parameter: Node) -> int:
    value: torch.Tensor = parameter.meta["val"]
    return value.element_size() * int(compat.hint(value.numel()))
