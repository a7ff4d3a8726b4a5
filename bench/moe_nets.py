"""A mixture of experts with its own expert parallelism, and its handwritten ladder.

    layer l       x = x + attention(norm(x))                          each rank has its own tokens
                  x = x + shared(norm(x)) + routed(norm(x))           and its part of the experts
    routed        router ─ dispatch ═ all-to-all ═ experts ═ all-to-all ═ combine

    standard      attention │ router  ══D══  experts  ══C══ │ attention │ …
    written       attention   ┌ router                   experts ┐  attention, first half
                   (halves)   └══D══ attention, shared           └══C══  …

Every expert has the same number of slots for every rank, so all splits are equal and all shapes
fixed; tokens without a slot are dropped. `ladderize bench bench.moe_nets:prefill --written
bench.moe_nets:prefill_written` and `bench/scenarios/moe_*.toml` run it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

ALL_TO_ALL = {
    False: torch.ops._c10d_functional.all_to_all_single,
    True: torch.ops._c10d_functional_autograd.all_to_all_single,
}
Made = tuple[nn.Module, tuple[Tensor, ...]]


@dataclass(frozen=True)
class MoeSizes:
    """Sizes of a model and its inputs.

    Attributes:
        batch, length: sequences per rank, and new tokens of each.
        cached: earlier tokens, whose keys and values are cached.
        inner: inner width of each expert; the shared one is twice as wide.
        slots: slots of each expert for a rank's tokens, relative to an even share.
    """

    batch: int
    length: int
    cached: int = 0
    width: int = 256
    inner: int = 256
    layers: int = 6
    heads: int = 4
    num_experts: int = 8
    top: int = 2
    slots: float = 1.25
    is_trained: bool = False

    @property
    def capacity(self) -> int:
        """Slots per expert."""
        tokens = self.batch * self.length
        return math.ceil(tokens * self.top / self.num_experts * self.slots)


class CachedAttention(nn.Module):
    """Causal attention over the cached and the new tokens."""

    def __init__(self, sizes: MoeSizes) -> None:
        super().__init__()
        width, heads = sizes.width, sizes.heads
        self.heads = heads
        self.norm = nn.RMSNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        past = (sizes.batch, heads, sizes.cached, width // heads)
        self.register_buffer("keys", torch.randn(past))
        self.register_buffer("values", torch.randn(past))

    def forward(self, x: Tensor) -> Tensor:
        return self.attend(self.project(x))

    def project(self, x: Tensor) -> Tensor:
        made: Tensor = self.qkv(self.norm(x))
        return made

    def attend(self, qkv: Tensor) -> Tensor:
        batch, length, _ = qkv.shape
        parts = qkv.view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = parts.unbind(0)
        k, v = torch.cat([self.keys, k], 2), torch.cat([self.values, v], 2)
        is_causal = length > 1
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=is_causal)
        made: Tensor = self.out(mixed.transpose(1, 2).reshape(batch, length, -1))
        return made


class ExpertBlock(nn.Module):
    """The routed experts of one rank, and the shared expert.

    Attributes:
        group: name of the group whose ranks share the experts; None: this rank has all.
    """

    def __init__(self, sizes: MoeSizes, rank: int, num_ranks: int, group: str | None) -> None:
        super().__init__()
        self.sizes, self.num_ranks, self.group = sizes, num_ranks, group
        width, inner, all_experts = sizes.width, sizes.inner, sizes.num_experts
        self.norm = nn.RMSNorm(width)
        self.router = nn.Linear(width, all_experts, bias=False)
        self.shared_up = nn.Linear(width, 2 * inner, bias=False)
        self.shared_down = nn.Linear(2 * inner, width, bias=False)
        up = torch.randn(all_experts, width, inner) * width**-0.5
        down = torch.randn(all_experts, inner, width) * inner**-0.5
        self.up = nn.Parameter(up.chunk(num_ranks)[rank].clone())
        self.down = nn.Parameter(down.chunk(num_ranks)[rank].clone())

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        sent, places, weights = self.route(normed)
        computed = self.compute(self.wait(self.exchange(sent)))
        routed = self.combine(self.wait(self.exchange(computed)), places, weights)
        return self.shared(normed) + routed.view_as(x)

    def shared(self, normed: Tensor) -> Tensor:
        made: Tensor = self.shared_down(F.silu(self.shared_up(normed)))
        return made

    def route(self, normed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens in the slots of their experts, the slot of each choice, and its weight."""
        tokens = normed.reshape(-1, self.sizes.width)
        weights, experts = self.router(tokens).softmax(-1).topk(self.sizes.top)
        chosen = F.one_hot(experts.flatten(), self.sizes.num_experts)
        order = (chosen.cumsum(0) * chosen).sum(-1) - 1
        capacity = self.sizes.capacity
        num_slots = self.sizes.num_experts * capacity
        places = torch.where(order < capacity, experts.flatten() * capacity + order, num_slots)
        rows = tokens.repeat_interleave(self.sizes.top, 0)
        slots = rows.new_zeros(num_slots + 1, self.sizes.width).index_add(0, places, rows)
        return slots[:-1].contiguous(), places, weights

    def compute(self, received: Tensor) -> Tensor:
        """Run each rank's slots through the experts of this rank."""
        here, capacity = self.up.shape[0], self.sizes.capacity
        by_expert = received.view(self.num_ranks, here, capacity, -1).transpose(0, 1)
        hidden = F.silu(torch.bmm(by_expert.reshape(here, -1, self.sizes.width), self.up))
        made = torch.bmm(hidden, self.down).view(here, self.num_ranks, capacity, -1)
        return made.transpose(0, 1).reshape(received.shape).contiguous()

    def combine(self, returned: Tensor, places: Tensor, weights: Tensor) -> Tensor:
        """The weighted sum of each token's choices; a dropped one adds nothing."""
        padded = torch.cat([returned, returned.new_zeros(1, returned.shape[1])])
        return (padded[places].view(*weights.shape, -1) * weights[..., None]).sum(1)

    def exchange(self, slots: Tensor) -> Tensor:
        """Launch an all-to-all with equal splits."""
        if self.group is None:
            return slots
        splits = [slots.shape[0] // self.num_ranks] * self.num_ranks
        made: Tensor = ALL_TO_ALL[self.sizes.is_trained](slots, splits, splits, self.group)
        return made

    def wait(self, slots: Tensor) -> Tensor:
        if self.group is None:
            return slots
        made: Tensor = torch.ops._c10d_functional.wait_tensor(slots)
        return made


class MoeNet(nn.Module):
    """The standard model."""

    def __init__(self, sizes: MoeSizes) -> None:
        super().__init__()
        alone = not dist.is_initialized()
        rank, num_ranks = (0, 1) if alone else (dist.get_rank(), dist.get_world_size())
        group = None if num_ranks == 1 else dist.group.WORLD.group_name
        self.attention = nn.ModuleList(CachedAttention(sizes) for _ in range(sizes.layers))
        self.experts = nn.ModuleList(
            ExpertBlock(sizes, rank, num_ranks, group) for _ in range(sizes.layers)
        )

    def forward(self, x: Tensor) -> Tensor:
        for attention, experts in zip(self.attention, self.experts, strict=True):
            x = x + attention(x)
            x = x + experts(x)
        return x


class WrittenMoe(MoeNet):
    """Its ladder, with all-to-alls launched early and waited for late, as one writes it by hand."""

    def forward(self, x: Tensor) -> Tensor:
        stale, land = x, None  # `land` adds the result of the combine in flight
        for attention, experts in zip(self.attention, self.experts, strict=True):
            projected = attention.project(stale)
            if land is not None:
                x = land(x)
            normed = experts.norm(x)  # the stream without this layer's attention
            sent, places, weights = experts.route(normed)
            dispatched = experts.exchange(sent)
            x = x + attention.attend(projected)
            shared = experts.shared(normed)
            computed = experts.compute(experts.wait(dispatched))
            stale, land = x, _landing(experts, experts.exchange(computed), places, weights, shared)
        return land(x)


def _landing(
    experts: Any, flying: Tensor, places: Tensor, weights: Tensor, shared: Tensor
) -> Callable[[Tensor], Tensor]:
    def land(x: Tensor) -> Tensor:
        routed = experts.combine(experts.wait(flying), places, weights)
        return x + (shared + routed.view_as(x))

    return land


PREFILL = MoeSizes(batch=1, length=512)
DECODE = MoeSizes(batch=64, length=1, cached=128)
TRAINING = MoeSizes(batch=1, length=512, layers=4, is_trained=True)


def make(kind: type[MoeNet], sizes: MoeSizes) -> Made:
    model = kind(sizes).train(sizes.is_trained).requires_grad_(sizes.is_trained)
    return model, (torch.randn(sizes.batch, sizes.length, sizes.width),)


def prefill() -> Made:
    return make(MoeNet, PREFILL)


def prefill_written() -> Made:
    return make(WrittenMoe, PREFILL)


def decode() -> Made:
    return make(MoeNet, DECODE)


def decode_written() -> Made:
    return make(WrittenMoe, DECODE)


def training() -> Made:
    return make(MoeNet, TRAINING)


def training_written() -> Made:
    return make(WrittenMoe, TRAINING)
