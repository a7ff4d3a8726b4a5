"""Run torchtitan's trainer on CPU with gloo: `torchtitan.train` supports only accelerators.

    torchrun --nproc-per-node 2 examples/torchtitan/on_cpu.py --module tiny --config llama3

Without an accelerator, torchtitan assumes CUDA. Here the device is the CPU, and its memory
statistics are empty.
"""

import types
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torchtitan.tools import utils


def memory_stats(_: Any = None) -> dict[str, int]:
    return {}


def nothing(*_: Any) -> None:
    pass


def sum_gradients(model: nn.Module) -> None:
    """Sum gradients as torchtitan does with a factor of 1, which gloo does not support."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)


cpu = types.SimpleNamespace(
    set_device=torch.cpu.set_device,
    device_count=torch.cpu.device_count,
    current_device=lambda: 0,
    synchronize=torch.cpu.synchronize,
    get_device_name=lambda _: "CPU",
    get_device_properties=lambda _: types.SimpleNamespace(total_memory=1 << 30),
    memory_stats=memory_stats,
    reset_peak_memory_stats=nothing,
    empty_cache=nothing,
)


def use_cpu() -> None:
    """Select the CPU. Call this before other imports of torchtitan: its modules copy the device."""
    utils.device_type, utils.device_module = "cpu", cpu
    if not hasattr(dist, "set_timeout"):  # torch 2.13: the timeout of the first step is kept
        dist.set_timeout = nothing
    from torchtitan.distributed import fsdp

    fsdp.disable_fsdp_gradient_division = sum_gradients


if __name__ == "__main__":
    torch.set_num_threads(1)
    use_cpu()
    from torchtitan.train import main

    main()
