"""A transformers causal LM and its static KV cache as one module."""

from typing import Any

import torch
from torch import Tensor, nn


class CachedLM(nn.Module):
    """Computes the last token's logits, `[batch, vocabulary]`, of tokens after the cached ones.

    Keys, values and lengths are buffers (`keys_0`, …), which sharding divides by heads. They are
    not persistent, so the state dict has only the model's weights, prefixed with `model.`. They are
    on the model's device; on the meta device they take no memory.

    Args:
        model: model of any class that takes `past_key_values`.
        batch: number of sequences.
        length: capacity of the cache in tokens.
        options: keyword arguments of each model call, such as `logits_to_keep=1`.
    """

    def __init__(self, model: Any, batch: int, length: int, **options: Any) -> None:
        super().__init__()
        from transformers.cache_utils import StaticCache

        self.model = model
        self.options = options
        config = model.config.get_text_config(decoder=True)
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        width = getattr(config, "head_dim", None)
        width = width or config.hidden_size // config.num_attention_heads
        self.cache: Any = StaticCache(config=config, max_cache_len=length)
        self.cache.early_initialization(batch, heads, width, model.dtype, model.device)
        layers: Any = self.cache.layers
        for i, layer in enumerate(layers):
            self.register_buffer(f"keys_{i}", layer.keys, persistent=False)
            self.register_buffer(f"values_{i}", layer.values, persistent=False)
            self.register_buffer(f"length_{i}", layer.cumulative_length, persistent=False)

    def forward(self, ids: Tensor, positions: Tensor) -> Tensor:
        """`ids` is `[batch, new tokens]`; `positions`, `[new tokens]`, are their positions."""
        for i, layer in enumerate(self.cache.layers):
            layer.keys, layer.values = getattr(self, f"keys_{i}"), getattr(self, f"values_{i}")
            layer.cumulative_length, layer.device = getattr(self, f"length_{i}"), ids.device
        out = self.model(
            input_ids=ids,
            position_ids=positions[None],
            past_key_values=self.cache,
            use_cache=True,
            **self.options,
        )
        logits: Tensor = out.logits[:, -1]
        return logits


def set_cached(module: nn.Module, length: int) -> None:
    """Set the cached length of `module`, a `CachedLM` or a module made from one."""
    for name, buffer in module.named_buffers():
        if name.rpartition(".")[2].startswith("length_"):
            buffer.fill_(length)


def decode_inputs(model: Any, batch: int, length: int) -> tuple[Tensor, Tensor]:
    """The next token of each sequence, `[batch, 1]`, and its position, `[1]`."""
    generator = torch.Generator().manual_seed(1)
    vocabulary = model.config.get_text_config(decoder=True).vocab_size
    ids = torch.randint(0, vocabulary, (batch, 1), generator=generator)
    return ids.to(model.device), torch.tensor([length], device=model.device)
