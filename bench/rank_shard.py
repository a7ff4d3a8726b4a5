"""One rank's shard of a Llama for serving: random weights, static KV caches, no checkpoint.

configuration ── trace without weights ── ladder, shard ── random slices on the device ── one step

Used by `gpu_stand_in.py`. The shards of one configuration share their weights, so four variants
need the memory of one.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from transformers import LlamaConfig, LlamaForCausalLM

from ladderize.config.options import LadderConfig
from ladderize.frontends.sharded.localize import LocalProgram, localize
from ladderize.frontends.sharded.module import ShardedModule
from ladderize.frontends.sharded.state import StateEntry
from ladderize.frontends.sharded.tracing import build, trace
from ladderize.tools.sources.cached import CachedLM, set_cached


@dataclass(frozen=True)
class Phase:
    """A measured step: `new` tokens for each sequence, after `cached` tokens in the caches."""

    name: str
    batch: int
    new: int
    cached: int
    room: int  # capacity of the caches, in tokens


@dataclass
class Weights:
    """Random slices, created on the device at the first use."""

    mesh: DeviceMesh
    made: dict[tuple, Tensor] = field(default_factory=dict)

    def of(self, local: LocalProgram, buffers: dict[str, Tensor]) -> dict[str, Tensor]:
        entries = [entry for entry in local.entries if entry.kind != "index"]
        return {entry.name: self._one(entry, buffers.get(entry.name)) for entry in entries}

    def _one(self, entry: StateEntry, buffer: Tensor | None) -> Tensor:
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
        """Drop the caches, which fit one batch size only."""
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
    is_ours: bool,
    lowering: str,
    shard_vocabulary: bool,
) -> tuple[Callable[[], Tensor], Callable[[], None]]:
    """A compiled step of rank 0's shard, and a function that restores the caches.

    `is_ours`: compiled by ladderize; else by `lowering` alone.
    """

    def factory() -> CachedLM:
        default = torch.get_default_dtype()
        torch.set_default_dtype(config.dtype)
        try:
            model = LlamaForCausalLM(config).eval().requires_grad_(False)
        finally:
            torch.set_default_dtype(default)
        return CachedLM(model, phase.batch, phase.room, logits_to_keep=1).eval()

    model, _ = build(factory)
    program = trace(model, step_inputs(phase, torch.device("meta")), {})
    variant = "parallel" if is_parallel else "ladder"  # attention and MLP share one all-reduce
    options = LadderConfig(
        staleness=1 if is_parallel else staleness,
        variant=variant,
        shard_vocabulary=shard_vocabulary,
    )
    local = localize(program, weights.mesh.size(), options)
    shard = ShardedModule(local, weights.of(local, dict(model.named_buffers())), weights.mesh)
    plain = {"backend": lowering}
    ours = {"backend": "ladderize", "options": {"lowering": lowering}}
    how = ours if is_ours else plain
    compiled = torch.compile(shard, fullgraph=True, dynamic=False, **how)

    inputs = step_inputs(phase, torch.device(weights.mesh.device_type))
    return lambda: compiled(*inputs), lambda: set_cached(shard, phase.cached)


def step_inputs(phase: Phase, device: torch.device) -> tuple[Tensor, Tensor]:
    """Tokens, `[batch, new]`, and their positions, `[new]`."""
    ids = torch.zeros(phase.batch, phase.new, dtype=torch.int64, device=device)
    return ids, torch.arange(phase.cached, phase.cached + phase.new, device=device)
