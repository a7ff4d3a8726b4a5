"""Run a Hugging Face Llama as a tensor-parallel ladder network on two processes.

    torchrun --standalone --nproc-per-node 2 examples/quickstart.py

It uses random weights and a tiny configuration, and runs on a laptop without a GPU.
"""

import os

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from transformers import LlamaConfig, LlamaForCausalLM


def main() -> None:
    torch.set_num_threads(1)
    mesh = init_device_mesh("cpu", (int(os.environ["WORLD_SIZE"]),))
    torch.manual_seed(0)  # every rank must hold the same model
    model = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            vocab_size=128,
        )
    ).eval()
    ids = torch.randint(0, 128, (2, 16))

    one_device = torch.compile(
        model, backend="ladderize", fullgraph=True, options={"lowering": "eager"}
    )
    sharded = torch.compile(
        model, backend="ladderize", fullgraph=True, options={"mesh": mesh, "verify": "code"}
    )
    with torch.no_grad():
        standard = model(input_ids=ids, use_cache=False).logits
        ladder = one_device(input_ids=ids, use_cache=False).logits
        logits = sharded(input_ids=ids, use_cache=False).logits

    if dist.get_rank() == 0:
        print(f"sharded ladder to ladder on one device: {(logits - ladder).abs().max():.1e}")
        print(f"ladder to standard model: {(ladder - standard).abs().max():.1e} (another function)")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
