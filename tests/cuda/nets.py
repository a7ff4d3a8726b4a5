"""Models on the device that is not there, and what compiles them."""

from collections.abc import Callable
from typing import Any

import stand_in_gpu
import torch
import torch.distributed as dist
import transformers
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.testing._internal.distributed.fake_pg import FakeStore

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "vocab_size": 128,
}


def mesh_of(num_ranks: int) -> DeviceMesh:
    """This process as rank 0 of as many."""
    if dist.is_initialized() and dist.get_world_size() != num_ranks:
        dist.destroy_process_group()
    if not dist.is_initialized():
        dist.init_process_group("fake", rank=0, world_size=num_ranks, store=FakeStore())
    return init_device_mesh("cuda", (num_ranks,))


def llama(dtype: torch.dtype = torch.float32, **options: Any) -> nn.Module:
    sizes = SIZES | {"num_key_value_heads": 8, "use_cache": False} | options
    config = transformers.LlamaConfig(**sizes)
    return _made(transformers.LlamaForCausalLM, config, dtype)


def bert(dtype: torch.dtype = torch.float32) -> nn.Module:
    return _made(transformers.BertModel, transformers.BertConfig(**SIZES), dtype)


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
