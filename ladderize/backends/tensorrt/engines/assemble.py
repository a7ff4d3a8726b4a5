"""Build the islands of a graph: find equal ones, build their engines, bind weights.

islands    island_0, island_1, … island_63
kinds       attention: island_0, island_2, …     MLP: island_1, island_3, …
bound       a module for each island, with its own weights
"""

import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn
from torch.fx import GraphModule

from ladderize.backends.tensorrt.engines.build import Builder, BuiltKind
from ladderize.backends.tensorrt.engines.engine_report import BuildReport, EnginePlan, LeftOp
from ladderize.backends.tensorrt.engines.plan_cache import CachedPlan, PlanCache
from ladderize.backends.tensorrt.engines.plan_keys import canonical_text
from ladderize.backends.tensorrt.engines.run_plans import Engine, EngineIsland
from ladderize.backends.tensorrt.engines.size_ranges import find_extents
from ladderize.backends.tensorrt.engines.targets import choose_target
from ladderize.compat import tensorrt as trt
from ladderize.config.tensorrt import TensorRTOptions
from ladderize.errors import Blocker, LadderError


@dataclass(frozen=True)
class Built:
    """Islands whose engines are built.

    Attributes:
        kinds: kind of each island, by name.
        inputs: placeholders of each island, with whether each is a weight.
        report: report on the build.
        make_engine: loads a plan; tests without a GPU replace it.
    """

    kinds: Mapping[str, BuiltKind]
    inputs: Mapping[str, tuple[tuple[str, bool], ...]]
    report: BuildReport
    make_engine: Callable[[CachedPlan], nn.Module] = Engine
    _bound: dict[str, EngineIsland] = field(default_factory=dict)
    _shared: dict[int, nn.Module] = field(default_factory=dict)

    def bind(self, name: str, weights: Mapping[str, torch.Tensor]) -> EngineIsland:
        """The module that runs island `name`; call it with the inputs that are not weights.

        Binding again gives the new weights to the same module.

        Raises:
            LadderError: weights are missing; the message names them.
        """
        slots = self.inputs[name]
        missing = [given for given, is_weight in slots if is_weight and given not in weights]
        if missing:
            raise LadderError(f"{name} was bound without:", [Blocker(each) for each in missing])
        if name not in self._bound:
            kind = self.kinds[name]
            self._bound[name] = EngineIsland(kind, lambda part: self._engine(kind, part))
        island = self._bound[name]
        island.set_weights([weights[given] if is_weight else None for given, is_weight in slots])
        return island

    def _engine(self, kind: BuiltKind, part: str) -> nn.Module:
        """A new engine if it holds weights; otherwise equal islands share one."""
        plan = kind.plans[part]
        if plan.weights:
            return self.make_engine(plan)
        if id(plan) not in self._shared:
            self._shared[id(plan)] = self.make_engine(plan)
        return self._shared[id(plan)]


def build_islands(
    islands: Mapping[str, GraphModule],
    weights: Mapping[str, Collection[str]],
    options: TensorRTOptions,
) -> Built:
    """Build the engines of all islands, once for equal islands.

    Args:
        islands: functional ATen graphs by name, with fake values in `meta["val"]`.
        weights: placeholders of each island that are weights; only shape and dtype are used.
        options: build options.

    Raises:
        LadderError: an op cannot be built (with its place in the user's code), a dynamic size has
            no bound, or the installed TensorRT cannot build for the target.
    """
    start = time.perf_counter()
    target = choose_target(options)
    inputs = {name: gm.graph.find_nodes(op="placeholder") for name, gm in islands.items()}
    extents = find_extents((node for nodes in inputs.values() for node in nodes), options.sizes)
    settings = trt.BuildSettings(
        optimization_level=options.optimization_level,
        workspace=options.workspace or 0,
        allow_tf32=torch.backends.cuda.matmul.allow_tf32,
        strip_weights=options.weights == "stripped",
        target=target,
    )
    cache = PlanCache(None if options.cache is None else Path(options.cache))
    builder = Builder(options, settings, extents, cache)
    of_text: dict[str, BuiltKind] = {}
    kinds: dict[str, BuiltKind] = {}
    for name, island in islands.items():
        text = canonical_text(island, weights[name], extents)
        if text not in of_text:
            of_text[text] = builder.build(name, island, weights[name])
        kinds[name] = of_text[text]
    report = BuildReport(
        num_islands=len(islands),
        num_kinds=len(of_text),
        plans=_plans(kinds),
        left=_left(kinds.values()),
        seconds=time.perf_counter() - start,
        target=".".join(map(str, target)),
        unusable=tuple(map(str, cache.unusable)),
    )
    slots = {
        name: tuple((node.name, node.name in weights[name]) for node in nodes)
        for name, nodes in inputs.items()
    }
    return Built(kinds, slots, report)


def _plans(kinds: Mapping[str, BuiltKind]) -> tuple[EnginePlan, ...]:
    served: dict[int, list[str]] = {}
    plans: dict[int, tuple[CachedPlan, bool]] = {}
    for name, kind in kinds.items():
        for part, plan in kind.plans.items():
            served.setdefault(id(plan), []).append(name)
            plans.setdefault(id(plan), (plan, part in kind.found))
    return tuple(
        EnginePlan(
            islands=tuple(dict.fromkeys(served[number])),
            num_bytes=len(plan.engine),
            seconds=plan.seconds,
            was_found=was_found,
            layers=plan.layers,
        )
        for number, (plan, was_found) in plans.items()
    )


def _left(kinds: Iterable[BuiltKind]) -> tuple[LeftOp, ...]:
    found: dict[tuple[str, str], LeftOp] = {}
    for op in (op for kind in kinds for op in kind.left):
        before = found.get((op.op, op.why))
        count = op.count + (0 if before is None else before.count)
        found[op.op, op.why] = LeftOp(op.op, count, op.why, (before or op).source)
    return tuple(found.values())
