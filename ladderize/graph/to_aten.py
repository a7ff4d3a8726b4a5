"""Translate a Dynamo graph to pre-dispatch ATen: the same program in one dialect, before autograd.

    before   q = torch._C._nn.linear(h, w);  y = call_method view(q, 2, 8, -1)
    after    q = aten.linear.default(h, w);  y = aten.view.default(q, [2, 8, -1])

Composite ops with sharding rules (linear, attention, layer_norm) are not decomposed. A weight that
is a wrapper subclass (quantized) is traced as a plain tensor; `wrapped` returns the original.
"""

import contextlib
from collections.abc import Mapping
from typing import Any

import torch
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.traceback import preserve_node_meta

from ladderize import compat
from ladderize.compat.dispatcher import OpOverload
from ladderize.compat.frames import carry_inputs
from ladderize.errors import Blocker, LadderError
from ladderize.graph import ops
from ladderize.graph.call_templates import spell_calls
from ladderize.graph.higher_order import REGION


def to_aten(gm: GraphModule, names: Mapping[Node, str]) -> tuple[GraphModule, dict[Node, str]]:
    """Trace `gm` on its fake inputs. Returns the ATen graph and `names` carried over to it.

    The trace keeps the order of inputs, module paths, source lines and the regions of inlined
    calls. Fake values are in `meta["val"]`, under the fake mode of the inputs.
    """
    inputs = gm.graph.find_nodes(op="placeholder")
    given = [ops.value(node) for node in inputs]
    aten = None
    if not any(map(compat.is_wrapper_subclass, given)):
        with compat.fake_mode_of(given) or contextlib.nullcontext():
            aten = spell_calls(gm)
    if aten is None:
        aten = _trace_whole(gm)
    carry_inputs(gm, aten)
    traced = aten.graph.find_nodes(op="placeholder")
    carried = {new: names[old] for old, new in zip(inputs, traced, strict=True) if old in names}
    for node, value in zip(traced, given, strict=True):
        if compat.is_wrapper_subclass(value):
            node.meta[_WRAPPED] = value
    return aten, carried


def _trace_whole(gm: GraphModule) -> GraphModule:
    inputs = gm.graph.find_nodes(op="placeholder")
    for node in gm.graph.nodes:
        if REGION in node.meta:
            node.meta["custom"] = {**node.meta.get("custom", {}), REGION: node.meta[REGION]}
    # The backend's example inputs do not work: if Dynamo made a tensor of a Python float
    # (dynamic=True), they hold a real tensor without its symbol, whose item() cannot be traced.
    given = [ops.value(node) for node in inputs]
    values = [compat.plain_like(v) if compat.is_wrapper_subclass(v) else v for v in given]

    def interpret(*args: Any) -> Any:
        return torch.fx.Interpreter(gm).run(*args)

    with preserve_node_meta(), compat.fake_mode_of(values) or contextlib.nullcontext():
        aten = make_fx(interpret, pre_dispatch=True, tracing_mode="real")(*values)
    for node in aten.graph.nodes:  # tracers copy only "custom" to the new graph
        if region := node.meta.get("custom", {}).pop(REGION, None):
            node.meta[REGION] = region
    _refuse_lost_values(aten)
    return aten


def _refuse_lost_values(aten: GraphModule) -> None:
    """Raise if the trace turned a computed value into a constant."""
    lost = {name for name, tensor in aten.named_buffers() if compat.fake_mode_of([tensor])}
    readers = [
        Blocker.at(reader, f"{reader.target} reads a value that torch has lost")
        for node in aten.graph.find_nodes(op="get_attr")
        if node.target in lost
        for reader in node.users
    ]
    if readers:
        raise LadderError(
            "This graph cannot be traced to ATen, which sharding needs:",
            dict.fromkeys(readers),
            "choose another implementation of the model, without associative_scan "
            "(use_associative_scan=False)",
        )


def wrapped(node: Node) -> torch.Tensor | None:
    """The wrapper subclass that a graph input was before tracing replaced it by a plain tensor."""
    found: torch.Tensor | None = node.meta.get(_WRAPPED)
    return found


def is_aten(gm: GraphModule) -> bool:
    """Whether `gm` is an ATen graph already, such as that of an exported program."""
    calls = [node for node in gm.graph.nodes if node.op.startswith("call_")]
    return any(isinstance(node.target, OpOverload) for node in calls) and not any(
        node.op != "call_function" or getattr(node.target, "__module__", "") in _DIALECTS
        for node in calls
    )


_WRAPPED = "ladderize_wrapped"
_DIALECTS = ("torch", "torch.nn.functional", "torch._C._nn")
