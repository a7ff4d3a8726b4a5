"""Models on the stand-in device, and their compilation."""

from collections.abc import Callable
from typing import Any

import stand_in_gpu
import torch
import torch.distributed as dist
import transformers
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.testing._internal.distributed.fake_pg import FakeStore

import ladderize

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 8,
    "vocab_size": 128,
}
LLAMA = SIZES | {"num_key_value_heads": 8, "use_cache": False}


def mesh_of(num_ranks: int) -> DeviceMesh:
    """This process as rank 0 of a mesh."""
    if dist.is_initialized() and dist.get_world_size() != num_ranks:
        dist.destroy_process_group()
    if not dist.is_initialized():
        dist.init_process_group("fake", rank=0, world_size=num_ranks, store=FakeStore())
    return init_device_mesh("cuda", (num_ranks,))


def llama(dtype: torch.dtype = torch.float32, **options: Any) -> nn.Module:
    config = transformers.LlamaConfig(**LLAMA | {"num_hidden_layers": 2} | options)
    return _made(transformers.LlamaForCausalLM, config, dtype)


def bert(dtype: torch.dtype = torch.float32) -> nn.Module:
    return _made(
        transformers.BertModel, transformers.BertConfig(**SIZES, num_hidden_layers=2), dtype
    )


def llama_from_checkpoint(mesh: DeviceMesh) -> nn.Module:
    """A rank's shard, made by `parallelize`."""
    config = transformers.LlamaConfig(**LLAMA, num_hidden_layers=1)
    checkpoint = dict(llama(num_hidden_layers=1).state_dict())

    def factory() -> nn.Module:
        return transformers.LlamaForCausalLM(config).eval().requires_grad_(False)

    inputs = {"input_ids": torch.zeros(2, 32, dtype=torch.int64, device="meta")}
    return ladderize.parallelize(factory, mesh, kwargs=inputs, checkpoint=checkpoint)


def cached(model: nn.Module) -> dict[str, Any]:
    """Inputs of a step of decoding, with static caches."""
    with stand_in_gpu.on_gpu():
        cache = transformers.StaticCache(config=model.config, max_cache_len=64)
        heads, width = model.config.num_key_value_heads, model.config.head_dim
        cache.early_initialization(2, heads, width, model.dtype, torch.device("cuda:0"))
        ids, position = torch.zeros(2, 1, dtype=torch.int64), torch.zeros(1, 1, dtype=torch.int64)
    return {"input_ids": ids, "position_ids": position, "past_key_values": cache}


def _made(cls: type[nn.Module], config: Any, dtype: torch.dtype) -> nn.Module:
    torch.set_default_dtype(dtype)  # fake parameters cannot be cast in place
    try:
        with stand_in_gpu.on_gpu():
            return cls(config).eval().requires_grad_(False)
    finally:
        torch.set_default_dtype(torch.float32)


def ids() -> Tensor:
    with stand_in_gpu.on_gpu():
        return torch.zeros(2, 32, dtype=torch.int64)


def laddered(
    model: Callable[..., Any], dynamic: bool | None = None, **options: Any
) -> Callable[..., Any]:
    options = {"verify": "code"} | options
    return torch.compile(
        model, backend="ladderize", fullgraph=True, dynamic=dynamic, options=options
    )
