"""A small decoder and a task for the training examples: repeat an unseen word."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel

TOKENS, WIDTH, HEAD_SIZE, PERIOD, LENGTH = 16, 64, 16, 4, 24

COLUMNS, ROWS = ("attention.q", "attention.k", "attention.v", "mlp.up"), ("attention.o", "mlp.down")
PLAN = {f"layers.*.{name}": ColwiseParallel() for name in COLUMNS}
PLAN |= {f"layers.*.{name}": RowwiseParallel() for name in ROWS}


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        projected = (project(x) for project in (self.q, self.k, self.v))
        heads = (value.unflatten(-1, (-1, HEAD_SIZE)).transpose(1, 2) for value in projected)
        mixed = F.scaled_dot_product_attention(*heads, is_causal=True)
        return self.o(mixed.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.up(x)))


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.attention = nn.RMSNorm(WIDTH), Attention()
        self.norm2, self.mlp = nn.RMSNorm(WIDTH), MLP()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(TOKENS, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.layers = nn.ModuleList([Layer(), Layer()])
        self.norm, self.head = nn.RMSNorm(WIDTH), nn.Linear(WIDTH, TOKENS)

    def forward(self, ids: Tensor) -> Tensor:
        """Logits `[batch, LENGTH, TOKENS]` of token ids `[batch, LENGTH]`."""
        x = self.tokens(ids) + self.places.weight
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x))


def eager_ladder(net: Decoder, ids: Tensor) -> Tensor:
    """The ladder of `net`: each branch reads the stream one block stale."""
    before = x = net.tokens(ids) + net.places.weight
    for layer in net.layers:
        for norm, branch in ((layer.norm1, layer.attention), (layer.norm2, layer.mlp)):
            before, x = x, x + branch(norm(before))
    return net.head(net.norm(x))


def make_batch(seed: int, size: int = 32) -> Tensor:
    """Rows of `LENGTH` token ids, each a random word of `PERIOD` tokens, repeated."""
    generator = torch.Generator().manual_seed(seed)
    words = torch.randint(TOKENS, (size, PERIOD), generator=generator)
    return words.repeat(1, LENGTH // PERIOD)


def loss_of(logits: Tensor, ids: Tensor) -> Tensor:
    """The loss of all tokens after the first word, which cannot be predicted."""
    return F.cross_entropy(logits[:, PERIOD - 1 : -1].flatten(0, 1), ids[:, PERIOD:].flatten())
