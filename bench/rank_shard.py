"""One rank's shard of a Llama that serves tokens: random weights, static KV caches, no checkpoint.

configuration ── trace without weights ── ladder, shard ── random slices on the device ── one step

For `gpu_stand_in.py`. The shards of one configuration share their weights, so four variants need
the memory of one.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.cache_utils import StaticCache
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from ladderize.aot.localize import LocalProgram, localize
from ladderize.aot.module import ShardedModule
from ladderize.aot.state import Entry
from ladderize.aot.tracing import build, trace
from ladderize.config import LadderConfig


@dataclass(frozen=True)
class Phase:
    """A step that is measured: so many new tokens for each sequence, behind those in the caches."""

    name: str
    batch: int
    new: int
    cached: int
    room: int  # tokens that the caches hold


class Served(LlamaForCausalLM):
    """Logits of the last token of each sequence. The caches are buffers, which are sharded too."""

    def __init__(self, config: LlamaConfig, phase: Phase) -> None:
        super().__init__(config)
        self.cache = StaticCache(config=config, max_cache_len=phase.room)
        heads, head = config.num_key_value_heads, config.head_dim
        meta = torch.device("meta")  # no rank holds all heads of a cache, and neither do we
        self.cache.early_initialization(phase.batch, heads, head, config.dtype, meta)
        for i, layer in enumerate(self.cache.layers):
            self.register_buffer(f"keys_{i}", layer.keys, persistent=False)
            self.register_buffer(f"values_{i}", layer.values, persistent=False)
            self.register_buffer(f"length_{i}", layer.cumulative_length, persistent=False)

    def forward(self, ids: Tensor, positions: Tensor) -> Tensor:
        for i, layer in enumerate(self.cache.layers):
            layer.keys, layer.values = getattr(self, f"keys_{i}"), getattr(self, f"values_{i}")
            layer.cumulative_length, layer.device = getattr(self, f"length_{i}"), ids.device
        out = super().forward(
            input_ids=ids,
            position_ids=positions[None],
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return out.logits


class ParallelLayer(LlamaDecoderLayer):
    """Attention and MLP read the same value and share one sum (GPT-J, PaLM): one all-reduce."""

    def forward(self, hidden_states: Tensor, **kwargs: object) -> Tensor:
        attended, _ = self.self_attn(hidden_states=self.input_layernorm(hidden_states), **kwargs)
        computed = self.mlp(self.post_attention_layernorm(hidden_states))
        return hidden_states + (attended + computed)


@dataclass
class Weights:
    """Random slices, made on the device when they are first asked for."""

    mesh: DeviceMesh
    made: dict[tuple, Tensor] = field(default_factory=dict)

    def of(self, local: LocalProgram, buffers: dict[str, Tensor]) -> dict[str, Tensor]:
        entries = [entry for entry in local.entries if entry.kind != "index"]
        return {entry.name: self._one(entry, buffers.get(entry.name)) for entry in entries}

    def _one(self, entry: Entry, buffer: Tensor | None) -> Tensor:
        device = torch.device(self.mesh.device_type)
        if buffer is not None and buffer.device.type != "meta":  # rotary tables
            return entry.read(buffer, 0, self.mesh.size(), device)
        shape = tuple(entry.local_shape(self.mesh.size()))
        key = (entry.name, shape, entry.dtype)
        if key not in self.made:
            empty = torch.empty(shape, dtype=entry.dtype, device=device)
            is_float = entry.dtype.is_floating_point
            self.made[key] = empty.normal_(0, 0.02) if is_float else empty.zero_()
        return self.made[key]

    def forget_caches(self) -> None:
        """Those of one batch are of no use to another."""
        self.made = {
            key: tensor
            for key, tensor in self.made.items()
            if not key[0].startswith(("keys_", "values_", "length_"))
        }


def make_step(
    config: LlamaConfig,
    phase: Phase,
    weights: Weights,
    *,
    is_parallel: bool,
    staleness: int,
    lowering: str,
    shard_vocabulary: bool,
) -> tuple[Callable[[], Tensor], Callable[[], None]]:
    """A compiled step of rank 0's shard, and what puts the caches back to how they were before.

    A ladder is compiled by ladderize, everything else by `lowering` alone, as it would be today.
    """

    def factory() -> nn.Module:
        default = torch.get_default_dtype()
        torch.set_default_dtype(config.dtype)
        try:
            model = Served(config, phase).eval().requires_grad_(False)
        finally:
            torch.set_default_dtype(default)
        if is_parallel:
            for layer in model.model.layers:
                layer.__class__ = ParallelLayer
        return model

    device = torch.device(weights.mesh.device_type)
    ids = torch.zeros(phase.batch, phase.new, dtype=torch.int64, device=device)
    positions = torch.arange(phase.cached, phase.cached + phase.new, device=device)
    model, _ = build(factory)
    program = trace(model, (ids, positions), {})
    options = LadderConfig(staleness=staleness, shard_vocabulary=shard_vocabulary)
    local = localize(program, weights.mesh.size(), options)
    shard = ShardedModule(local, weights.of(local, dict(model.named_buffers())), weights.mesh)
    lengths = [b for name, b in shard.named_buffers() if name.startswith("length_")]
    plain = {"backend": lowering}
    ours = {"backend": "ladderize", "options": {"lowering": lowering}}
    how = ours if staleness else plain
    compiled = torch.compile(shard, fullgraph=True, dynamic=False, **how)

    def reset() -> None:
        for length in lengths:
            length.fill_(phase.cached)

    return lambda: compiled(ids, positions), reset
