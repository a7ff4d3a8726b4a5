"""A decoder that owns its KV caches, and the modules that read its stream."""

import torch
from torch import nn

LENGTH = 16

HEAD = 4

READS = ["layers.*.norm", "layers.*.mlp_norm"]


class Layer(nn.Module):
    """Attention over a cache, and an MLP; `spelling` is the way in which the cache is written."""

    def __init__(self, heads: int, kv: int, spelling: str) -> None:
        super().__init__()
        width = heads * HEAD
        self.heads, self.kv, self.spelling = heads, kv, spelling
        self.norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q = nn.Linear(width, width)
        self.k, self.v = (nn.Linear(width, kv * HEAD) for _ in range(2))
        self.out = nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        for name in ("keys", "values"):
            self.register_buffer(name, torch.zeros(1, kv, LENGTH, HEAD), persistent=False)

    def write(self, cache: torch.Tensor, positions: torch.Tensor, new: torch.Tensor) -> None:
        if self.spelling == "index_copy_":
            cache.index_copy_(2, positions, new)
        else:
            cache[:, :, positions] = new

    def attend(self, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        batch, length, _ = x.shape
        q, k, v = (
            each(x).view(batch, length, count, HEAD).transpose(1, 2)
            for each, count in ((self.q, self.heads), (self.k, self.kv), (self.v, self.kv))
        )
        self.write(self.keys, positions, k)
        self.write(self.values, positions, v)
        mask = torch.arange(LENGTH) <= positions[:, None]
        mixed = nn.functional.scaled_dot_product_attention(
            q, self.keys, self.values, attn_mask=mask, enable_gqa=True
        )
        return self.out(mixed.transpose(1, 2).reshape(batch, length, -1))

    def forward(self, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        x = x + self.attend(self.norm(x), positions)
        return x + self.down(torch.relu(self.up(self.mlp_norm(x))))


class Decoder(nn.Module):
    def __init__(self, heads: int = 4, kv: int = 2, spelling: str = "index_copy_") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(64, heads * HEAD)
        self.layers = nn.ModuleList(Layer(heads, kv, spelling) for _ in range(2))
        self.head = nn.Linear(heads * HEAD, 64)

    def forward(self, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x, positions)
        return self.head(x)


EXAMPLE = (torch.arange(3)[None], torch.arange(3))
