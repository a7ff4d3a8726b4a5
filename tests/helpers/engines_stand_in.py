"""PyTorch instead of TensorRT, which does not run without a GPU.

Everything around the engines is real: the cut, the choice and binding of weights, the files. The
engines are built in tests/tensorrt.
"""

import hashlib
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from ladderize.backends.tensorrt import lower
from ladderize.backends.tensorrt.engines import BuildReport, TensorRTOptions
from ladderize.backends.tensorrt.engines.engine_report import EnginePlan
from ladderize.backends.tensorrt.engines.plan_keys import canonical_text
from ladderize.backends.tensorrt.engines.size_ranges import find_extents
from ladderize.errors import LadderError
from ladderize.frontends.sharded import engine_files


class IslandInPyTorch(nn.Module):
    """Holds copies of its weights, as an engine does: writes to the originals have no effect."""

    def __init__(self, graph: GraphModule, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.graph = graph
        self.held = {name: weight.clone() for name, weight in weights.items()}

    def forward(self, *inputs):
        rest = iter(inputs)
        slots = self.graph.graph.find_nodes(op="placeholder")
        given = (self.held[s.name] if s.name in self.held else next(rest) for s in slots)
        return self.graph(*given)


class BuiltInPyTorch:
    def __init__(self, islands: Mapping[str, GraphModule], report: BuildReport) -> None:
        self.islands, self.report = islands, report
        self.bound: Counter[str] = Counter()
        self.last: dict[str, IslandInPyTorch] = {}

    def bind(self, name: str, weights: Mapping[str, Tensor]) -> nn.Module:
        self.bound[name] += 1
        self.last[name] = IslandInPyTorch(self.islands[name], weights)
        return self.last[name]

    @property
    def num_weights(self) -> int:
        return sum(len(island.held) for island in self.last.values())


def build_in_pytorch(
    islands: Mapping[str, GraphModule],
    weights: Mapping[str, Collection[str]],
    options: TensorRTOptions,
) -> BuiltInPyTorch:
    """Replaces `engine_files.build_islands`; a plan is an empty file named by its graph's key."""
    inputs = [n for gm in islands.values() for n in gm.graph.find_nodes(op="placeholder")]
    extents = find_extents(inputs, options.sizes)
    texts = {name: canonical_text(gm, weights[name], extents) for name, gm in islands.items()}
    folder = Path(options.cache) if options.cache else None
    plans = []
    for text in dict.fromkeys(texts.values()):
        key = hashlib.sha256(text.encode()).hexdigest()
        path = folder / f"{key}.plan" if folder else None
        was_found = path is not None and path.exists()
        if not was_found and not options.build:
            raise LadderError(f"An engine is not in {folder}, and build=False:")
        if path is not None:
            path.parent.mkdir(exist_ok=True)
            path.touch()
        users = tuple(name for name in islands if texts[name] == text)
        plans.append(EnginePlan(users, 0, 0.0, was_found, ()))
    report = BuildReport(len(islands), len(plans), tuple(plans), (), 0.0, "8.9")
    return BuiltInPyTorch(islands, report)


@contextmanager
def engines_in_pytorch() -> Iterator[list[BuiltInPyTorch]]:
    """Make the TensorRT lowering build these instead of engines; yields the list of them."""
    made: list[BuiltInPyTorch] = []

    def build(*args):
        made.append(build_in_pytorch(*args))
        return made[-1]

    with ExitStack() as stack:
        stack.enter_context(patch.object(lower, "build_islands", build))
        for module in (lower, engine_files):
            stack.enter_context(patch.object(module, "require_packages", lambda: None))
            table = torch.export.default_decompositions
            stack.enter_context(patch.object(module, "tensorrt_decompositions", table))
        yield made
