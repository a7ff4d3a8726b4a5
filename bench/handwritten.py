"""A handwritten ladder of `LlamaForCausalLM`: the reference, and what people write today.

    ladder_logits            x[i+1] = x[i] + h_i(x[i-1]), one process, no collectives
    sharded_ladder_logits    the same on one rank; every wait is written after the next block:
                             AR_0 | block 1, AR_1, wait_0 | block 2, AR_2, wait_1 | …

Both call the model's own submodules and share no code with the compiler.
"""

import copy
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

COLUMN_PARALLEL = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")
ROW_PARALLEL = ("o_proj", "down_proj")

Branch = Callable[[Tensor], Tensor]


def ladder_logits(model: Any, input_ids: Tensor) -> Tensor:
    """The logits of the ladder of an unsharded `LlamaForCausalLM`, `[batch, sequence, vocab]`."""
    x = stale = model.model.embed_tokens(input_ids)
    for branch in _branches(model, x):
        stale, x = x, x + branch(stale)
    return _head(model, x)


def sharded_ladder_logits(model: Any, input_ids: Tensor, group_name: str) -> Tensor:
    """The same on one rank of a group; `model` is `shard(model, …)`."""
    x = model.model.embed_tokens(input_ids)
    pending: Tensor | None = None
    for branch in _branches(model, x):
        launched = torch.ops._c10d_functional.all_reduce(branch(x), "sum", group_name)
        if pending is not None:
            x = x + torch.ops._c10d_functional.wait_tensor(pending)
        pending = launched
    return _head(model, x + torch.ops._c10d_functional.wait_tensor(pending))


def shard(model: nn.Module, rank: int, num_ranks: int) -> nn.Module:
    """A copy of a `LlamaForCausalLM` with this rank's part of every projection of a layer."""
    local = copy.deepcopy(model)
    for name, module in local.named_modules():
        kind = name.rpartition(".")[2]
        if kind in (*COLUMN_PARALLEL, *ROW_PARALLEL):
            assert isinstance(module, nn.Linear)
            dim = 0 if kind in COLUMN_PARALLEL else 1
            part = module.weight.detach().chunk(num_ranks, dim)[rank]
            module.weight = nn.Parameter(part.clone(), requires_grad=False)
    return local


def _branches(model: Any, x: Tensor) -> Iterator[Branch]:
    """Attention and MLP of each layer, each with its norm; partial sums if weights are sharded."""
    positions = torch.arange(x.shape[1], device=x.device).unsqueeze(0)
    rotary = model.model.rotary_emb(x, position_ids=positions)
    for layer in model.model.layers:
        yield partial(_attention, layer, rotary)
        yield partial(_mlp, layer)


def _attention(layer: Any, rotary: tuple[Tensor, Tensor], x: Tensor) -> Tensor:
    normed = layer.input_layernorm(x)
    # Without a mask, transformers' sdpa attention is causal.
    attended: Tensor = layer.self_attn(normed, position_embeddings=rotary, attention_mask=None)[0]
    return attended


def _mlp(layer: Any, x: Tensor) -> Tensor:
    made: Tensor = layer.mlp(layer.post_attention_layernorm(x))
    return made


def _head(model: Any, x: Tensor) -> Tensor:
    logits: Tensor = model.lm_head(model.model.norm(x))
    return logits
