"""Build an island: TensorRT parts with their plans, and PyTorch parts between them.

island    mm(x, w) → cumprod → mm(…, w2)
kind       _run_on_acc_0(x) → _run_on_gpu_1(…) → _run_on_acc_2(…)      weights are in the engines
"""

import operator
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch.fx import GraphModule, Node

from ladderize.backends.tensorrt.engines.engine_report import LeftOp
from ladderize.backends.tensorrt.engines.plan_cache import CachedPlan, EngineLayer, PlanCache
from ladderize.backends.tensorrt.engines.plan_keys import canonical_text, plan_key
from ladderize.backends.tensorrt.engines.respell import spell_island
from ladderize.backends.tensorrt.engines.size_ranges import Extents
from ladderize.backends.tensorrt.engines.strides import Layouts
from ladderize.backends.tensorrt.engines.support import why_not
from ladderize.compat import tensorrt as trt
from ladderize.compat.dispatcher import rename
from ladderize.config.tensorrt import TensorRTOptions
from ladderize.errors import Blocker, LadderError, describe_origin

PLAN_FORMAT = 1
"""Version of plans; increase it if the same graph and options would give another plan."""

_ENGINE = "_run_on_acc"  # what Torch-TensorRT's partitioner calls its submodules


@dataclass(frozen=True)
class BuiltKind:
    """What equal islands share.

    Attributes:
        graph: calls of parts, with all placeholders of an island in order; weights are not passed
            to engine parts.
        plans: plans of engine parts, by submodule name.
        weights: placeholder indices of the weights of each engine part's plan.
        layouts: memory layouts of the island's inputs and outputs.
        left: ops that run in PyTorch.
        found: engine parts whose plans were in the cache.
    """

    graph: GraphModule
    plans: Mapping[str, CachedPlan]
    weights: Mapping[str, tuple[int, ...]]
    layouts: Layouts
    left: tuple[LeftOp, ...]
    found: frozenset[str]


@dataclass(frozen=True)
class Builder:
    """Builds kinds with one set of options, using the plan cache."""

    options: TensorRTOptions
    settings: trt.BuildSettings
    extents: Extents
    cache: PlanCache

    def build(self, name: str, island: GraphModule, weights: Collection[str]) -> BuiltKind:
        """Build the kind of `island`; `name` is for error messages.

        Raises:
            LadderError: an op could not be converted or built, with its place in the user's code.
        """
        constant = () if self.options.weights == "inputs" else weights
        spelled, layouts = spell_island(island, constant)
        graph, reasons = trt.split_by_support(
            spelled,
            self.settings,
            lambda node: why_not(node, self.options.in_pytorch, self.extents),
            self.options.smallest_engine,
        )
        left = tuple(_left_ops(graph, reasons))
        if left and self.options.require_full:
            raise LadderError(
                f"Not all of {name} runs in TensorRT, and require_full=True:",
                [Blocker(f"{op.op}: {op.why}", op.source) for op in left],
            )
        plans: dict[str, CachedPlan] = {}
        indices: dict[str, tuple[int, ...]] = {}
        found = set()
        for call in _engine_calls(graph):
            part_name = str(call.target)
            part = graph.get_submodule(part_name)
            assert isinstance(part, GraphModule)
            indices[part_name] = _take_weights(call, part)
            plans[part_name], was_found = self._plan(name, part)
            if was_found:
                found.add(part_name)
        graph.recompile()
        return BuiltKind(graph, plans, indices, layouts, left, frozenset(found))

    def _plan(self, island: str, part: GraphModule) -> tuple[CachedPlan, bool]:
        placeholders = part.graph.find_nodes(op="placeholder")
        weights = [node.name for node in placeholders if node.name.startswith("weight")]
        text = canonical_text(part, weights, self.extents)
        key = plan_key(text, self._about())
        found = self.cache.find(key)
        if found is not None:
            return found, True
        if not self.options.build:
            raise LadderError(
                f"An engine of {island} is not in {self.options.cache}, and build=False:",
                [Blocker(f"installed: {version}") for version in trt.tensorrt_versions()],
                "build for this GPU with these versions, or install those that it was built with",
            )
        start = time.perf_counter()
        values = {
            node.name: _blank(node.meta["val"]) for node in placeholders if node.name in weights
        }
        inputs = [self._input(node) for node in placeholders if node.name not in weights]
        try:
            network = trt.convert(part, inputs, values, self.settings)
        except trt.ConversionFailed as error:
            raise _conversion_error(island, error) from error
        try:
            engine = trt.build_plan(network, self.settings, weights)
        except trt.BuildFailed as error:
            raise _build_error(island, part, error) from error
        plan = CachedPlan(
            engine,
            network.inputs,
            network.outputs,
            tuple(weights),
            tuple(EngineLayer(*layer) for layer in trt.layers(network)),
            time.perf_counter() - start,
        )
        self.cache.keep(key, plan)
        return plan, False

    def _about(self) -> dict[str, object]:
        return {
            "format": PLAN_FORMAT,
            "versions": trt.tensorrt_versions(),
            "settings": self.settings,
        }

    def _input(self, node: Node) -> trt.InputSpec:
        value = node.meta["val"]
        is_size = not isinstance(value, torch.Tensor)
        extents = [self.extents.of(size) for size in ([value] if is_size else value.shape)]
        return trt.InputSpec(
            node.name,
            torch.int64 if is_size else value.dtype,
            tuple(extent.least for extent in extents),
            tuple(extent.usual for extent in extents),
            tuple(extent.most for extent in extents),
            is_size,
        )


def _engine_calls(graph: GraphModule) -> list[Node]:
    return [
        n for n in graph.graph.nodes if n.op == "call_module" and str(n.target).startswith(_ENGINE)
    ]


def _take_weights(call: Node, part: GraphModule) -> tuple[int, ...]:
    """Remove the weights from an engine's call; return their placeholder indices in the island."""
    placeholders = part.graph.find_nodes(op="placeholder")
    indices: list[int] = []
    kept = []
    for number, (given, own) in enumerate(zip(call.args, placeholders, strict=True)):
        assert isinstance(given, Node)
        is_weight = given.op == "placeholder" and given.name.startswith("weight_")
        if is_weight:
            indices.append(int(given.name.removeprefix("weight_")))
        else:
            kept.append(given)
        own.target = f"{'weight' if is_weight else 'in'}{number}"
        rename(own, own.target)
    call.args = tuple(kept)
    part.recompile()
    return tuple(indices)


def _left_ops(graph: GraphModule, reasons: Mapping[Node, str]) -> list[LeftOp]:
    why = {node.name: reason for node, reason in reasons.items()}
    small = "fewer ops than smallest_engine"
    return [
        LeftOp(str(node.target), 1, why.get(node.name, small), describe_origin(node))
        for name, part in graph.named_children()
        if isinstance(part, GraphModule) and not name.startswith(_ENGINE)
        for node in part.graph.nodes
        if node.op == "call_function" and node.target is not operator.getitem
    ]


def _blank(value: torch.Tensor) -> torch.Tensor:
    """Zeros that take no memory until they are read; each tensor has its own address."""
    num_bytes = value.numel() * value.dtype.itemsize
    return torch.from_numpy(np.zeros(num_bytes, np.uint8)).view(value.dtype).view(value.shape)


def _conversion_error(island: str, error: trt.ConversionFailed) -> LadderError:
    node = error.node
    what = f"{node.target}: {error}" if node is not None else str(error)
    return LadderError(
        f"Torch-TensorRT could not convert {island}:",
        [Blocker(what, describe_origin(node) if node is not None else "")],
        f'let PyTorch run it: lowering_options={{"in_pytorch": ["{node and node.target}"]}}',
    )


def _build_error(island: str, part: GraphModule, error: trt.BuildFailed) -> LadderError:
    ops = [node for node in part.graph.nodes if node.op == "call_function"]
    what = f"{len(ops)} ops from {ops[0].target} to {ops[-1].target}: {error}"
    return LadderError(
        f"TensorRT could not build an engine of {island}:",
        [Blocker(what, describe_origin(ops[0]))],
        "let PyTorch run the op that it names (in_pytorch=), or choose another target if this one "
        "lacks a dtype, such as bfloat16 before 8.0",
    )
