"""Hand-written eager ladders of transformers models, independent of ladderize.

    llama_ladder(model, input_ids, chosen={4, 5, 6, 7}, staleness=1) -> logits

Each runs the model's own submodules and reroutes their reads by hand; no cache, no padding.
Each layer has two blocks: its attention is block 2l, its MLP 2l + 1. With staleness 0, or no chosen
blocks, each is the model's standard forward.
"""

from collections.abc import Collection

import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

VOCABULARY = 64


class Reads:
    """The value that each block reads, given the values of the standard model in order."""

    def __init__(self, chosen: Collection[int], staleness: int) -> None:
        self.chosen, self.staleness = chosen, staleness
        self.standard: list[Tensor] = []

    def next(self, x: Tensor) -> Tensor:
        block = len(self.standard)
        self.standard.append(x)
        if block not in self.chosen:
            return x
        return self.standard[max(block - self.staleness, 0)]


def causal_mask(model: nn.Module, x: Tensor) -> Tensor | None:
    """The mask that the model's attention adds to its scores; None if the kernel is causal."""
    if model.config._attn_implementation == "sdpa":
        return None
    length = x.shape[1]
    return torch.full((length, length), torch.finfo(x.dtype).min).triu(1)[None, None]


def llama_ladder(
    model: LlamaForCausalLM, input_ids: Tensor, chosen: Collection[int], staleness: int = 1
) -> Tensor:
    """Logits `[batch, length, vocabulary]` of the ladder net."""
    x = model.model.embed_tokens(input_ids)
    positions = torch.arange(input_ids.shape[1]).unsqueeze(0)
    rotary = model.model.rotary_emb(x, positions)
    mask = causal_mask(model, x)
    reads = Reads(chosen, staleness)
    for layer in model.model.layers:
        read = layer.input_layernorm(reads.next(x))
        x = x + layer.self_attn(read, position_embeddings=rotary, attention_mask=mask)[0]
        x = x + layer.mlp(layer.post_attention_layernorm(reads.next(x)))
    return model.lm_head(model.model.norm(x))


def gpt2_ladder(
    model: GPT2LMHeadModel, input_ids: Tensor, chosen: Collection[int], staleness: int = 1
) -> Tensor:
    """Logits `[batch, length, vocabulary]` of the ladder net."""
    body = model.transformer
    x = body.wte(input_ids) + body.wpe(torch.arange(input_ids.shape[1]).unsqueeze(0))
    mask = causal_mask(model, x)
    reads = Reads(chosen, staleness)
    for layer in body.h:
        x = x + layer.attn(layer.ln_1(reads.next(x)), attention_mask=mask)[0]
        x = x + layer.mlp(layer.ln_2(reads.next(x)))
    return model.lm_head(body.ln_f(x))


def bert_ladder(
    model: BertForMaskedLM, input_ids: Tensor, chosen: Collection[int], staleness: int = 1
) -> Tensor:
    """Logits `[batch, length, vocabulary]` of the ladder; post-norm: blocks read normed values."""
    x = model.bert.embeddings(input_ids=input_ids)
    reads = Reads(chosen, staleness)
    for layer in model.bert.encoder.layer:
        out, mlp = layer.attention.output, layer.output
        mixed = layer.attention.self(reads.next(x), attention_mask=None)[0]
        x = out.LayerNorm(x + out.dense(mixed))
        x = mlp.LayerNorm(x + mlp.dense(layer.intermediate(reads.next(x))))
    return model.cls(x)


def tiny_llama(layers: int = 4, **options: object) -> LlamaForCausalLM:
    """Grouped-query attention, 4 heads of 8; branches as large as the stream (see `_enlarge`)."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        use_cache=False,
        **options,
    )
    return _enlarge(LlamaForCausalLM(config))


def tiny_gpt2(layers: int = 3) -> GPT2LMHeadModel:
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=32,
        n_layer=layers,
        n_head=4,
        n_positions=64,
        use_cache=False,
        bos_token_id=0,
        eos_token_id=0,
    )
    return _enlarge(GPT2LMHeadModel(config))


def tiny_bert(layers: int = 3) -> BertForMaskedLM:
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=64,
    )
    return _enlarge(BertForMaskedLM(config))


def _enlarge(model: nn.Module) -> nn.Module:
    """Random weights of order 1/sqrt(width) and random biases, in evaluation mode.

    The initial weights of transformers are 0.02 and biases 0. At these widths, branches would be so
    small that a wrong read stays within the tolerance.
    """
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() > 1:
                parameter.copy_(noise * parameter.shape[-1] ** -0.5)
            else:
                parameter.copy_(0.2 * noise + (0 if name.endswith("bias") else 1))
    return model.eval()


def tokens(batch: int = 2, length: int = 7) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(1, VOCABULARY, (batch, length), generator=generator)
