"""Islands for tests: of a laddered model, sharded over two ranks, seen on one of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.fx import GraphModule
from torch.testing._internal.distributed.fake_pg import FakeStore
from transformers import (
    BertConfig,
    BertModel,
    BloomConfig,
    BloomForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

import ladderize.frontends.backend
from ladderize import compat
from ladderize.backends import LOWERINGS
from ladderize.backends.lowered import Lowered
from ladderize.backends.tensorrt.cut import CutIslands
from ladderize.backends.tensorrt.drop_checks import DropChecks
from ladderize.backends.tensorrt.islands import is_call, islands_of
from ladderize.passes.defer_waits import DeferWaits
from ladderize.passes.join_waits import JoinWaits
from ladderize.passes.runner import Log, run_pass

SHAPE = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "vocab_size": 96}
# "sdpa" is what a user gets; both models take it by default.
MODELS: dict[str, Callable[[], nn.Module]] = {
    "llama": lambda: LlamaForCausalLM(
        LlamaConfig(num_hidden_layers=4, num_key_value_heads=2, use_cache=False, **SHAPE)
    ),
    "bert": lambda: BertModel(BertConfig(num_hidden_layers=3, **SHAPE)),
}

# Tied embeddings and fused projections; a cap on the logits of attention; positions as a bias.
OTHERS: dict[str, Callable[[], nn.Module]] = {
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(n_embd=64, n_layer=3, n_head=4, vocab_size=96)),
    "gemma2": lambda: Gemma2ForCausalLM(
        Gemma2Config(num_hidden_layers=3, num_key_value_heads=2, head_dim=16, **SHAPE)
    ),
    "bloom": lambda: BloomForCausalLM(
        BloomConfig(hidden_size=64, n_layer=3, n_head=4, vocab_size=96)
    ),
}


@dataclass(frozen=True)
class Cut:
    """A graph cut into islands.

    Attributes:
        gm: the graph around them, after its waits were deferred.
        islands: by name.
        weights: which inputs of each are weights.
        inputs: of `gm`, as it was called last.
        call: calls the compiled model.
    """

    gm: GraphModule
    islands: dict[str, GraphModule]
    weights: dict[str, set[str]]
    inputs: list[Any] = field(default_factory=list)
    call: Callable[..., Any] = print


def laddered(model: nn.Module, *, dynamic: bool = False, **inputs: Any) -> Cut:
    """The islands of rank 0 of `model`, laddered and sharded over two ranks."""
    if not dist.is_initialized():
        dist.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    mesh = dist.device_mesh.init_device_mesh("cpu", (2,))
    found: list[Cut] = []
    are_weights: list[bool] = []

    def backend(gm: GraphModule, given: Sequence[Any]) -> Callable[..., Any]:
        are_weights.extend(isinstance(value, nn.Parameter) for value in given)
        return ladderize.frontends.backend.ladderize(
            gm, given, options={"mesh": mesh, "lowering": "aot_eager"}
        )

    def lower(gm: GraphModule, given: Sequence[Any], _: Any) -> Lowered:
        def compiler(aten: GraphModule, _: Sequence[Any]) -> Callable[..., Any]:
            cut = _cut(aten, are_weights)
            found.append(cut)

            def run(*real: Any) -> Any:
                cut.inputs[:] = real
                return aten.forward(*real)

            return compat.boxed(run)

        return Lowered(compat.aot_compile(gm, given, compiler))

    torch._dynamo.reset()
    usual, LOWERINGS["aot_eager"] = LOWERINGS["aot_eager"], lower
    try:
        compiled = torch.compile(model.eval(), backend=backend, fullgraph=True)
        for tensor in inputs.values() if dynamic else ():
            torch._dynamo.mark_dynamic(tensor, 0, min=1, max=8)
            torch._dynamo.mark_dynamic(tensor, 1, min=2, max=64)
        compiled = torch.no_grad()(compiled)
        compiled(**inputs)
    finally:
        LOWERINGS["aot_eager"] = usual
    (result,) = found
    return replace(result, call=compiled)


def _cut(aten: GraphModule, are_weights: Sequence[bool]) -> Cut:
    log = Log()
    run_pass(aten, JoinWaits(), log)
    run_pass(aten, DeferWaits(), log)
    run_pass(aten, DropChecks(), log)
    run_pass(aten, CutIslands(), log)
    placeholders = aten.graph.find_nodes(op="placeholder")
    parameters = {n for n, is_weight in zip(placeholders, are_weights, strict=False) if is_weight}
    islands = islands_of(aten)
    weights = {}
    for call in aten.graph.nodes:
        if is_call(call):
            own = islands[str(call.target)].graph.find_nodes(op="placeholder")
            weights[str(call.target)] = {
                mine.name for mine, given in zip(own, call.args, strict=True) if given in parameters
            }
    return Cut(aten, islands, weights)
