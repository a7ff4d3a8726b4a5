"""Segments for tests: of a laddered model that is sharded over two ranks, one of which is here."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.fx import GraphModule
from torch.testing._internal.distributed.fake_pg import FakeStore
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM

import ladderize
from ladderize import compat
from ladderize.dynamo import parameter_names
from ladderize.passes.cut import CutSegments
from ladderize.passes.defer_waits import DeferWaits
from ladderize.passes.join_waits import JoinWaits
from ladderize.runner import Log, run_pass
from ladderize.segments import is_call, segments_of

SHAPE = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "vocab_size": 96}
# "sdpa" is what a user gets; both models take it by default.
MODELS: dict[str, Callable[[], nn.Module]] = {
    "llama": lambda: LlamaForCausalLM(
        LlamaConfig(num_hidden_layers=4, num_key_value_heads=2, use_cache=False, **SHAPE)
    ),
    "bert": lambda: BertModel(BertConfig(num_hidden_layers=3, **SHAPE)),
}


@dataclass(frozen=True)
class Cut:
    """A graph cut into segments.

    Attributes:
        gm: the graph around them, after its waits were deferred.
        segments: by name.
        weights: which inputs of each are weights.
        inputs: the example inputs of `gm`, real tensors.
    """

    gm: GraphModule
    segments: dict[str, GraphModule]
    weights: dict[str, set[str]]
    inputs: tuple[Any, ...]


def laddered(model: nn.Module, *args: Any, dynamic: Any = None, num_ranks: int = 2, **kwargs: Any) -> Cut:
    """The segments of rank 0 of `model`, laddered and sharded."""
    if not dist.is_initialized():
        dist.init_process_group("fake", rank=0, world_size=num_ranks, store=FakeStore())
    mesh = dist.device_mesh.init_device_mesh("cpu", (num_ranks,))
    shard = ladderize.parallelize(model.eval(), mesh, args, kwargs, dynamic_shapes=dynamic)
    return cut(shard, *args, dynamic=dynamic is not None, **kwargs)


def cut(model: Callable[..., Any], *args: Any, dynamic: bool = False, **kwargs: Any) -> Cut:
    """The segments of a function's ATen graph, cut as the lowering to TensorRT cuts it."""
    found: list[Cut] = []

    def backend(gm: GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        names = parameter_names(gm)
        placeholders = gm.graph.find_nodes(op="placeholder")
        are_weights = [isinstance(value, nn.Parameter) for value in inputs]
        assert sum(are_weights) <= len(names)
        assert len(placeholders) == len(inputs)

        def compiler(aten: GraphModule, _: Sequence[Any]) -> Callable[..., Any]:
            log = Log()
            run_pass(aten, JoinWaits(), log)
            run_pass(aten, DeferWaits(), log)
            run_pass(aten, CutSegments(), log)
            found.append(_cut_of(aten, are_weights, inputs))
            return compat.boxed(aten.forward)

        return compat.aot_compile(gm, inputs, compiler)

    torch._dynamo.reset()
    with torch.no_grad():
        torch.compile(model, backend=backend, fullgraph=True, dynamic=dynamic)(*args, **kwargs)
    (result,) = found
    return result


def _cut_of(aten: GraphModule, are_weights: Sequence[bool], inputs: Sequence[Any]) -> Cut:
    placeholders = aten.graph.find_nodes(op="placeholder")
    parameters = {n for n, is_weight in zip(placeholders, are_weights, strict=True) if is_weight}
    segments = segments_of(aten)
    weights = {}
    for call in aten.graph.nodes:
        if is_call(call):
            own = segments[str(call.target)].graph.find_nodes(op="placeholder")
            weights[str(call.target)] = {
                mine.name for mine, given in zip(own, call.args, strict=True) if given in parameters
            }
    return Cut(aten, segments, weights, tuple(inputs))
