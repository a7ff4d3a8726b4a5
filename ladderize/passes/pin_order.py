"""Tie each wait to the launch before it, so that the engine cannot move it back.

    before   l1; w0 = wait(l0); x1 = add(x0, w0)
    after    l1; w0 = control_deps((l1,), wait, l0); x1 = add(x0, w0)

Node order alone does not survive Inductor: it fuses the add that follows w0 with later adds, waits
for two all-reduces at once and, up to torch 2.13, reads a buffer in flight (DESIGN §6.1).

Where `control_deps` is missing, two opaque ops wait instead. They name the later launch among
their operands, so that Inductor runs them after it, but never read it:

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

# Any strides will do: to change those of a buffer in flight, Inductor would read it.
_ANY_STRIDES = (torch.Tag.flexible_layout,)


@torch.library.custom_op("ladderize::wait_add", mutates_args=(), tags=_ANY_STRIDES)
def _wait_add(residual: Tensor, pending: Tensor, after: Tensor) -> Tensor:  # noqa: ARG001  # order
    done: Tensor = torch.ops._c10d_functional.wait_tensor(pending)
    return residual + done


@torch.library.custom_op("ladderize::wait_after", mutates_args=(), tags=_ANY_STRIDES)
def _wait_after(pending: Tensor, after: Tensor) -> Tensor:  # noqa: ARG001  # order
    # An op must not return its input; the copy is what the missing control_deps costs here.
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
    """Expects the order that `DeferWaits` leaves behind."""

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
    """For each wait that was put off, what it has to come after.

    That is the latest launch of its channel; where no other has followed yet, what computes since
    its own, apart from what other of these ops need.
    """
    channel = {pair.launch: pair.channel for pair in pairs}
    own = {pair.wait: pair for pair in pairs}
    latest: dict[tuple[str, str], Node] = {}
    computed: dict[tuple[str, str], list[Node]] = {}
    nearest: dict[Node, frozenset[Node]] = {}  # of each node the last ops that compute it
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
    """For each op that computes while something is in flight the launch that it stays behind.

    Without the tie Inductor fuses what two launches need into one kernel, and launches both late;
    or fuses what a launch needs with what an op of the stretch behind it makes, and has that op
    run first. An op needs no tie that needs a later wait, which has one, or another op with one.
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
        # Without the arguments of the op replaced, to which Inductor would match those of the new.
        new.meta = {key: kept for key, kept in replaced.meta.items() if key != "eager_input_vals"}
        replaced.replace_all_uses_with(new)
        gm.graph.erase_node(replaced)
        if add is not None:
            gm.graph.erase_node(wait)


def _only_add(wait: Node) -> Node | None:
    """The residual add that alone reads `wait`, if that is what reads it."""
    (user, *others) = wait.users
    is_add = user.target is torch.ops.aten.add.Tensor and not user.kwargs
    operands = user.all_input_nodes
    if others or not is_add or len(operands) != 2:  # 1: a number is added, or the wait to itself
        return None
    return user if _form(operands[0]) == _form(operands[1]) else None


def _form(node: Node) -> tuple[object, ...] | None:
    """Dtype and sizes of a tensor; dynamic sizes are compared as expressions, without a guard."""
    value = node.meta["val"]
    return (value.dtype, *map(as_expr, value.shape)) if isinstance(value, Tensor) else None
