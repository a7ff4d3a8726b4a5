"""Tie each wait to the launch before it, so that Inductor cannot move it back.

    before   l1; w0 = wait(l0); x1 = add(x0, w0)
    after    l1; w0 = control_deps((l1,), wait, l0); x1 = add(x0, w0)

Inductor does not keep the node order: it fuses the add that follows w0 with later adds, waits for
two all-reduces at once and, up to torch 2.13, reads a buffer in flight.

Without `control_deps`, two opaque ops wait instead. The later launch is one of their operands, so
Inductor runs them after it, but they do not read it:

    after    l1; x1 = wait_add(x0, l0, l1)                   # the add is not fused with others
    after    l1; c0 = wait_after(l0, l1); y = mul(x0, c0)    # any other reader: c0 is a copy
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from ladderize import compat
from ladderize.graph.collectives import GATHERS
from ladderize.graph.in_flight import InFlight, find_in_flight
from ladderize.passes import PassResult
from ladderize.passes.lane_times import Durations
from ladderize.sharding.views import as_expr

# Accept any strides: to change the strides of a buffer in flight, Inductor would read it.
_ANY_STRIDES = (torch.Tag.flexible_layout,)


@torch.library.custom_op("ladderize::wait_add", mutates_args=(), tags=_ANY_STRIDES)
def _wait_add(residual: Tensor, pending: Tensor, after: Tensor) -> Tensor:  # noqa: ARG001  # order
    done: Tensor = torch.ops._c10d_functional.wait_tensor(pending)
    return residual + done


@torch.library.custom_op("ladderize::wait_after", mutates_args=(), tags=_ANY_STRIDES)
def _wait_after(pending: Tensor, after: Tensor) -> Tensor:  # noqa: ARG001  # order
    # An op must not return its input, so this copies; control_deps needs no copy.
    done: Tensor = torch.ops._c10d_functional.wait_tensor(pending)
    return done.clone()


@_wait_add.register_fake
def _(residual: Tensor, pending: Tensor, after: Tensor) -> Tensor:  # noqa: ARG001
    return residual + pending


@_wait_after.register_fake
def _(pending: Tensor, after: Tensor) -> Tensor:  # noqa: ARG001
    return torch.empty_like(pending)


@dataclass(frozen=True)
class PinOrder:
    """Pin the order that `DeferWaits` has made."""

    use_control_deps: bool = field(default_factory=lambda: compat.has_control_deps())
    preserves_values: ClassVar[bool] = True

    def __call__(self, gm: GraphModule) -> PassResult:
        pairs = find_in_flight(gm.graph)
        work = Durations.of(gm.graph).work
        pins = _find_pins(gm, pairs, work)
        if self.use_control_deps:
            after = _find_early_launches(gm, pairs, work)
            for wait, before in pins.items():
                after.setdefault(wait, []).extend(before)
            compat.preserve_node_ordering(gm.graph, after)
        else:
            _make_opaque(gm, pins)
        return PassResult(changed=len(pins))


def _find_pins(
    gm: GraphModule, pairs: Sequence[InFlight], work: Mapping[Node, float]
) -> dict[Node, list[Node]]:
    """For each deferred wait, the nodes that it must come after.

    This is the latest launch of its channel. If none followed its own launch, it is the compute
    since then, without ops that other of these ops need.
    """
    channel = {pair.launch: pair.channel for pair in pairs}
    own = {pair.wait: pair for pair in pairs}
    latest: dict[tuple[str, str], Node] = {}
    computed: dict[tuple[str, str], list[Node]] = {}
    nearest: dict[Node, frozenset[Node]] = {}  # the last ops with work that lead to each node
    pins = {}
    for node in gm.graph.nodes:
        needs = frozenset().union(*(nearest.get(n, ()) for n in node.all_input_nodes))
        nearest[node] = frozenset({node}) if node in work else needs
        if node in channel:
            latest[channel[node]] = node
            computed[channel[node]] = []
        elif node in own:
            before = latest[own[node].channel]
            if before is not own[node].launch:
                pins[node] = [before]
            elif since := computed[own[node].channel]:
                pins[node] = since
        elif node in work:
            for key in latest:
                if key[0] not in GATHERS:
                    computed[key] = [*(op for op in computed[key] if op not in needs), node]
    return pins


def _find_early_launches(
    gm: GraphModule, pairs: Sequence[InFlight], work: Mapping[Node, float]
) -> dict[Node, list[Node]]:
    """For each op that computes while a transfer is in flight, the launch that it must follow.

    Without the tie, Inductor fuses the inputs of two launches into one kernel and launches both
    late; or it fuses the input of a launch with a result of a later op, which then runs first. An
    op needs no tie if it depends on a later wait, which is tied, or on another tied op.
    """
    waits = {pair.wait: pair.launch for pair in pairs}
    launches = set(waits.values())
    position = {node: i for i, node in enumerate(gm.graph.nodes)}
    kept_behind: dict[Node, int] = {}
    flying: list[Node] = []
    found = {}
    for node in gm.graph.nodes:
        behind = max((kept_behind.get(source, -1) for source in node.all_input_nodes), default=-1)
        if node in launches:
            flying.append(node)
        elif node in waits:
            flying = [launch for launch in flying if launch is not waits[node]]
            behind = position[node]
        elif flying and node in work and behind < position[flying[-1]]:
            found[node] = [flying[-1]]
            behind = position[flying[-1]]
        kept_behind[node] = behind
    return found


def _make_opaque(gm: GraphModule, pins: Mapping[Node, Sequence[Node]]) -> None:
    for wait, (*_, after) in pins.items():
        if not wait.users:  # the opaque op would be dropped as unused, and the wait with it
            continue
        (pending,) = wait.all_input_nodes
        add = _only_add(wait)
        replaced = wait if add is None else add
        with gm.graph.inserting_before(replaced):
            if add is None:
                new = gm.graph.call_function(
                    torch.ops.ladderize.wait_after.default, (pending, after)
                )
            else:
                (residual,) = (arg for arg in add.args if arg is not wait)
                new = gm.graph.call_function(
                    torch.ops.ladderize.wait_add.default, (residual, pending, after)
                )
        # Drop the old op's arguments: Inductor would match the new op's arguments with them.
        new.meta = {key: kept for key, kept in replaced.meta.items() if key != "eager_input_vals"}
        replaced.replace_all_uses_with(new)
        gm.graph.erase_node(replaced)
        if add is not None:
            gm.graph.erase_node(wait)


def _only_add(wait: Node) -> Node | None:
    """The residual add that is the only reader of `wait`; None if there is none."""
    (user, *others) = wait.users
    is_add = user.target is torch.ops.aten.add.Tensor and not user.kwargs
    operands = user.all_input_nodes
    if others or not is_add or len(operands) != 2:  # 1: adds a number, or the wait to itself
        return None
    return user if _form(operands[0]) == _form(operands[1]) else None


def _form(node: Node) -> tuple[object, ...] | None:
    """Dtype and sizes of a tensor; dynamic sizes are compared as expressions, without a guard."""
    value = node.meta["val"]
    return (value.dtype, *map(as_expr, value.shape)) if isinstance(value, Tensor) else None
