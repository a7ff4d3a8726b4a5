"""Serve a Llama from a safetensors checkpoint, sharded ahead of time: prefill, then decode.

    torchrun --standalone --nproc-per-node 2 examples/serve_llama.py

The first rank writes a checkpoint with random weights, as `save_pretrained` would. Every rank then
builds the model without weights, reads its own slices, and holds the KV caches of its own heads.
The tokens are compared with those of the same ladder in one process. For real weights, set
`--config` to the folder of a healed Llama and `--checkpoint` to the folder of its weights.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.export import Dim, export
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.cache_utils import StaticCache

import ladderize

LENGTH = 128  # capacity of the caches, in tokens
SMALL = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "vocab_size": 256,
}


class Served(LlamaForCausalLM):
    """A Llama with KV caches as buffers, which are sharded by heads."""

    def __init__(self, config: LlamaConfig, batch: int = 1) -> None:
        super().__init__(config)
        self.cache = StaticCache(config=config, max_cache_len=LENGTH)
        head = config.hidden_size // config.num_attention_heads
        heads = config.num_key_value_heads
        self.cache.early_initialization(batch, heads, head, self.dtype, torch.device("cpu"))
        for i, layer in enumerate(self.cache.layers):
            self.register_buffer(f"keys_{i}", layer.keys, persistent=False)
            self.register_buffer(f"values_{i}", layer.values, persistent=False)
            self.register_buffer(f"length_{i}", layer.cumulative_length, persistent=False)

    def forward(self, ids: Tensor, positions: Tensor) -> Tensor:
        for i, layer in enumerate(self.cache.layers):
            layer.keys, layer.values = getattr(self, f"keys_{i}"), getattr(self, f"values_{i}")
            layer.cumulative_length = getattr(self, f"length_{i}")
        out = super().forward(
            input_ids=ids, position_ids=positions[None], past_key_values=self.cache, use_cache=True
        )
        logits: Tensor = out.logits[:, -1]
        return logits


@torch.no_grad()
def generate(model: nn.Module, prompt: Tensor, count: int) -> tuple[list[int], float]:
    """Greedy tokens after `prompt`, and seconds per decode step."""
    for name, buffer in model.named_buffers():
        if name.startswith(("keys_", "values_", "length_")):
            buffer.zero_()
    length = prompt.shape[1]
    logits = model(prompt, torch.arange(length, device=prompt.device))
    tokens = [int(logits.argmax())]
    started = time.perf_counter()
    for position in range(length, length + count - 1):
        last = torch.tensor([[tokens[-1]]], device=prompt.device)
        logits = model(last, torch.tensor([position], device=prompt.device))
        tokens.append(int(logits.argmax()))
    return tokens, (time.perf_counter() - started) / max(count - 1, 1)


def in_one_process(config: LlamaConfig, checkpoint: str, inputs: tuple, dims: tuple) -> nn.Module:
    """The same ladder, unsharded."""
    model = Served(config).eval()
    model.load_state_dict(LlamaForCausalLM.from_pretrained(checkpoint).state_dict())
    program = export(model.to(inputs[0].device), inputs, dynamic_shapes=dims)
    return ladderize.rewrite(program).module()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", help="folder with config.json [default: a small Llama]")
    parser.add_argument("--checkpoint", help="folder of safetensors [default: random weights]")
    parser.add_argument("--tokens", type=int, default=32)
    options = parser.parse_args()

    device = "cuda" if torch.cuda.is_available() else "cpu"
    rank = int(os.environ["LOCAL_RANK"])
    if device == "cuda":
        torch.cuda.set_device(rank)
    torch.set_num_threads(1)
    mesh = init_device_mesh(device, (int(os.environ["WORLD_SIZE"]),))
    config = LlamaConfig.from_pretrained(options.config) if options.config else LlamaConfig(**SMALL)

    with tempfile.TemporaryDirectory() as folder:
        folders = [options.checkpoint or folder]
        dist.broadcast_object_list(folders, src=0)
        if rank == 0 and not options.checkpoint:
            torch.manual_seed(0)
            LlamaForCausalLM(config).save_pretrained(folder)
        dist.barrier()

        prompt = torch.arange(1, 17, device=device)[None]
        inputs = (prompt, torch.arange(16, device=device))
        new = Dim("new", max=LENGTH)  # 16 tokens of the prompt, then one at a time
        dims = ({1: new}, {0: new})
        shard = ladderize.parallelize(
            lambda: Served(config).eval(),
            mesh,
            inputs,
            dynamic_shapes=dims,
            checkpoint=Path(folders[0]),
        )
        tokens, _ = generate(shard, prompt, options.tokens)  # warm-up
        tokens, seconds = generate(shard, prompt, options.tokens)

        if rank == 0:
            print(shard.local_program.lines[0])
            mine = shard.get_buffer("keys_0")
            print(f"a layer's keys: {list(mine.shape)} on each of {mesh.size()} ranks")
            print(f"decode: {1 / seconds:.1f} tokens/s")
            whole = in_one_process(config, folders[0], inputs, dims)
            expected, alone = generate(whole, prompt, options.tokens)
            print(f"one process: {1 / alone:.1f} tokens/s")
            print(f"tokens: {tokens}")
            print("same tokens as one process" if tokens == expected else f"differ: {expected}")
            assert tokens == expected
        dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
